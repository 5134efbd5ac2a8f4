"""The two small networks of `benchmarks/autoattack.py`: a plain CNN, trained twice on CIFAR-10.

Three layers that are the same in PyTorch: 3x3/2 convolutions to 16 and 32 channels and two dense
layers, 0.54 million multiply-adds an image. Once trained as usual, once on adversarial images
(fast adversarial training: one gradient step from a random start, Wong et al., 2020).
"""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from rest_jax import data
from rest_jax.attacks.projected_gradient import pgd_delta
from rest_jax.ops import conv

SHAPES = {
  'conv1': (3, 3, 3, 16),
  'conv2': (3, 3, 16, 32),
  'dense1': (8 * 8 * 32, 64),
  'dense2': (64, 10),
}
EPOCHS = {'standard': 8, 'adversarial': 6}
PEAK_RATES = {'standard': 2e-3, 'adversarial': 1e-3}
EPS, BATCH = 8 / 255, 128


def logits(params: dict[str, jax.Array], images: jax.Array) -> jax.Array:
  """Images (B, 32, 32, 3) in [0, 1] to logits (B, 10)."""
  x = jax.nn.relu(_first_conv(images, params['conv1']) + params['conv1_bias'])
  x = jax.nn.relu(conv(x, params['conv2'], stride=2, padding=1) + params['conv2_bias'])
  x = x.reshape(x.shape[0], -1)
  x = jax.nn.relu(x @ params['dense1'] + params['dense1_bias'])
  return x @ params['dense2'] + params['dense2_bias']


def _first_conv(images: jax.Array, kernel: jax.Array) -> jax.Array:
  """3x3/2 convolution with padding 1, as a product of patches and kernel.

  The input gradient of XLA:CPU's convolution takes twice the time of all else for 3 channels.
  """
  padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
  size = images.shape[1] // 2
  taps = [padded[:, i : i + 2 * size : 2, j : j + 2 * size : 2] for i in range(3) for j in range(3)]
  patches = jnp.concatenate(taps, axis=-1)
  flat = patches.reshape(-1, patches.shape[-1]) @ kernel.reshape(-1, kernel.shape[-1])
  return flat.reshape(*patches.shape[:3], -1)


def model(params: dict[str, np.ndarray]) -> Partial:
  """The network that weights belong to, as the attacks take it: weights as data."""
  if 'layer1.0.conv1.weight' in params:
    return resnet20(params)
  return Partial(logits, jax.tree.map(jnp.asarray, params))


def resnet20(weights: dict[str, np.ndarray]) -> Partial:
  """The public ResNet-20 of CIFAR-10 as a plain function; weights under PyTorch's names.

  He et al., "Deep residual learning", 2016, section 4.2, with shortcuts of zeros (option A), as in
  github.com/akamaster/pytorch_resnet_cifar10.
  """
  given = {k: v.transpose(2, 3, 1, 0) if v.ndim == 4 else v for k, v in weights.items()}
  return Partial(_resnet20, {k: jnp.asarray(v) for k, v in given.items() if v.ndim})


def _resnet20(p: dict[str, jax.Array], x: jax.Array) -> jax.Array:
  def conv_norm(x, conv, norm, stride=1):
    x = jax.lax.conv_general_dilated(
      x,
      p[conv + '.weight'],
      (stride, stride),
      ((1, 1), (1, 1)),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    scale = p[norm + '.weight'] / jnp.sqrt(p[norm + '.running_var'] + 1e-5)
    return (x - p[norm + '.running_mean']) * scale + p[norm + '.bias']

  x = (x - jnp.asarray([0.485, 0.456, 0.406])) / jnp.asarray([0.229, 0.224, 0.225])
  x = jax.nn.relu(conv_norm(x, 'conv1', 'bn1'))
  for name in (f'layer{stage}.{block}.' for stage in (1, 2, 3) for block in (0, 1, 2)):
    stride = 2 if name in ('layer2.0.', 'layer3.0.') else 1
    y = jax.nn.relu(conv_norm(x, name + 'conv1', name + 'bn1', stride))
    if stride == 2:
      more = x.shape[-1] // 2
      x = jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (more, more)))
    x = jax.nn.relu(x + conv_norm(y, name + 'conv2', name + 'bn2'))
  return x.mean((1, 2)) @ p['linear.weight'].T + p['linear.bias']


def load_split(data_dir: str | None, split: str) -> tuple[np.ndarray, np.ndarray]:
  """Images float32 (N, 32, 32, 3) in [0, 1] and labels int32 (N,) of 'train' or 'test'."""
  source = getattr(data.load('cifar10', data_dir=data_dir), split)
  examples = [source[i] for i in range(len(source))]
  images = np.stack([example['image'] for example in examples]).astype(np.float32) / 255
  return images, np.asarray([example['label'] for example in examples], np.int32)


def trained(name: str, directory: Path, data_dir: str | None) -> dict[str, np.ndarray]:
  """Weights of 'standard' or 'adversarial', trained now unless the directory has them."""
  path = directory / f'{name}.npz'
  if not path.exists():
    start = None if name == 'standard' else trained('standard', directory, data_dir)
    params = train(*load_split(data_dir, 'train'), start)
    np.savez(path.with_suffix('.tmp.npz'), **jax.tree.map(np.asarray, params))
    path.with_suffix('.tmp.npz').rename(path)
  with np.load(path) as file:
    return dict(file)


def train(
  images: np.ndarray, labels: np.ndarray, start: dict[str, np.ndarray] | None
) -> dict[str, jax.Array]:
  """Adam with a linear warm-up and decay, random flips and shifts by up to 4 pixels.

  Adversarial where there is a start.
  """
  name = 'adversarial' if start else 'standard'
  steps = len(images) // BATCH
  count = EPOCHS[name] * steps
  optimiser = optax.adam(optax.linear_onecycle_schedule(count, PEAK_RATES[name]))
  params = jax.tree.map(jnp.asarray, start) if start else _initial(jax.random.key(0))
  state = optimiser.init(params)
  numbers = np.random.default_rng(0)
  for epoch in range(EPOCHS[name]):
    order = numbers.permutation(len(images))
    losses = []
    for step in range(steps):
      rows = order[step * BATCH : (step + 1) * BATCH]
      done = epoch * steps + step
      eps = EPS * min(1.0, 2 * done / count)
      batch = (_shifted(images[rows], numbers), labels[rows], jax.random.key(done), eps)
      params, state, loss = _update(optimiser.update, bool(start), params, state, *batch)
      losses.append(loss)
    loss = np.mean(jax.device_get(losses))
    print(f'  {name}, epoch {epoch + 1} of {EPOCHS[name]}: loss {loss:.3f}', flush=True)
  return params


def _initial(key: jax.Array) -> dict[str, jax.Array]:
  params = {}
  for i, (name, shape) in enumerate(SHAPES.items()):
    params[name] = jax.nn.initializers.he_normal()(jax.random.fold_in(key, i), shape)
    params[name + '_bias'] = jnp.zeros(shape[-1])
  return params


def _shifted(images: np.ndarray, numbers: np.random.Generator) -> np.ndarray:
  padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
  out = np.empty_like(images)
  for i, (top, left) in enumerate(numbers.integers(0, 9, (len(images), 2))):
    out[i] = padded[i, top : top + 32, left : left + 32]
  return np.where(numbers.random((len(images), 1, 1, 1)) < 0.5, out, out[:, :, ::-1])


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2, 3))
def _update(optimise, adversarial: bool, params, state, images, labels, key, eps):
  def losses(params, images):
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, images), labels)

  if adversarial:
    attack = functools.partial(losses, params)
    images = images + pgd_delta(attack, images, key, 'linf', eps, 1.25 * eps, 1)
  loss, gradient = jax.value_and_grad(lambda p: jnp.mean(losses(p, images)))(params)
  updates, state = optimise(gradient, state, params)
  return optax.apply_updates(params, updates), state, loss
