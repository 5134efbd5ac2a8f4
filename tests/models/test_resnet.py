"""ResNet against an independent PyTorch one.

`golden/resnet_tiny.npz`: two ResNets of width 4 for 5 classes with torchvision's names, random
weights and statistics, computed in float64: basic blocks (depths 2,1,1,1) and bottlenecks
(1,1,2,1). `<kind>/param/<name>`; for the cases even (2x3x64x64) and odd (1x3x45x33, PyTorch's
layout) `input`, `logits`, `stage<k>` and `grad_input` (of the sum over the batch of logsumexp of
the logits); `train/logits` and some running statistics after one pass in training mode over even.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from one_pass import logits_and_maps

from rest_jax.errors import UserError
from rest_jax.models import create_model, list_models, model_dir
from rest_jax.models.pytorch import from_pytorch, to_pytorch

GOLDEN = np.load(Path(__file__).parents[1] / 'golden' / 'resnet_tiny.npz')
KINDS = {
  'basic': ('resnet18', dict(width=4, depths=(2, 1, 1, 1))),
  'bottleneck': ('resnet50', dict(width=4, depths=(1, 1, 2, 1))),
}
TINY = dict(width=4, depths=(1, 1, 1, 1))


def close(ours, reference):
  """Within 1e-4 of the largest value."""
  reference = reference.transpose(0, 2, 3, 1) if reference.ndim == 4 else reference
  assert ours.shape == reference.shape
  np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-4 * np.abs(reference).max())


@pytest.fixture(scope='module', params=KINDS)
def golden(request):
  """The kind, its model and its variables."""
  name, options = KINDS[request.param]
  model = create_model(name, 5, **options)
  prefix = f'{request.param}/param/'
  state_dict = {n.removeprefix(prefix): GOLDEN[n] for n in GOLDEN.files if n.startswith(prefix)}
  return request.param, model, from_pytorch(state_dict, model)


def images(kind, case):
  return GOLDEN[f'{kind}/input/{case}'].transpose(0, 2, 3, 1)


def initialise(model, size=32):
  init = jax.jit(lambda key: model.init(key, jnp.zeros((1, size, size, 3)), train=False))
  return init(jax.random.key(0))


@pytest.mark.parametrize('case', ['even', 'odd'])
def test_values_and_input_gradient(golden, case):
  kind, model, variables = golden

  @jax.jit
  def run(variables, x):
    def loss(x):
      logits, maps = logits_and_maps(model, variables, x)
      return jax.nn.logsumexp(logits, axis=-1).sum(), (logits, maps)

    grad, (logits, maps) = jax.grad(loss, has_aux=True)(x)
    return logits, grad, maps

  logits, grad, maps = run(variables, images(kind, case))
  close(logits, GOLDEN[f'{kind}/logits/{case}'])
  close(grad, GOLDEN[f'{kind}/grad_input/{case}'])
  for i, stage in enumerate(maps, 1):
    close(stage, GOLDEN[f'{kind}/stage{i}/{case}'])


def test_training_pass(golden):
  kind, model, variables = golden
  apply = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=['batch_stats']))
  logits, new = apply(variables, images(kind, 'even'))
  close(logits, GOLDEN[f'{kind}/train/logits'])
  state = to_pytorch(variables | new, model)
  prefix = f'{kind}/train/'
  checked = [n for n in GOLDEN.files if n.startswith(prefix) and not n.endswith('logits')]
  assert len(checked) > 6
  for name in checked:
    close(state[name.removeprefix(prefix)], GOLDEN[name])


@pytest.mark.parametrize(
  'name, parameters',
  [('resnet18', 11_689_512), ('resnet34', 21_797_672), ('resnet50', 25_557_032)],
)
def test_parameter_counts(name, parameters):
  specs = model_dir.abstract_tensors(create_model(name))
  assert sum(s.size for n, s in specs.items() if n.startswith('params/')) == parameters


def test_all_are_registered():
  sizes = ('resnet18', 'resnet34', 'resnet50', 'resnet101')
  assert {*sizes, *(f'{n}_cifar' for n in sizes)} <= set(list_models('resnet*'))


@pytest.mark.parametrize(
  'name, divisors', [('resnet34', (4, 8, 16, 32)), ('resnet50_cifar', (1, 2, 4, 8))]
)
@pytest.mark.parametrize('height, width', [(32, 32), (33, 47), (225, 333)])
def test_any_size(name, divisors, height, width):
  model = create_model(name, 3, **TINY)
  wide = 4 if model.bottleneck else 1

  def features(x):
    variables = model.init(jax.random.key(0), x, train=False)
    return model.apply(variables, x, train=False, method='features')

  maps = jax.eval_shape(features, jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32))
  assert [m.shape for m in maps] == [
    (2, -(-height // d), -(-width // d), 4 * 2**i * wide) for i, d in enumerate(divisors)
  ]


@pytest.mark.parametrize('shape', [(1, 20, 20, 3), (1, 64, 31, 3), (1, 64, 64, 4), (64, 64, 3)])
def test_wrong_images_are_refused(shape):
  model = create_model('resnet18', **TINY)
  specs = jax.ShapeDtypeStruct(shape, jnp.float32)
  with pytest.raises(UserError, match='ResNet takes'):
    jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), specs)


def test_wrong_depths_are_refused():
  for depths in ((1, 2), (1, 1, 1, 0)):
    with pytest.raises(UserError, match='four numbers'):
      model_dir.abstract_tensors(create_model('resnet18', depths=depths))


def test_initial_values():
  model = create_model('resnet18', width=64, depths=(1, 1, 1, 1), zero_init_last=True)
  block = initialise(model)['params']['stage2']['block0']
  # Kaiming over the fan-out of a 3x3 convolution to 128 channels.
  deviation = np.sqrt(2 / (9 * 128))
  np.testing.assert_allclose(np.std(block['conv1']['kernel']), deviation, rtol=0.02)
  assert not block['norm2']['scale'].any() and block['norm1']['scale'].all()


def test_no_head_remat_and_bfloat16(golden):
  kind, model, variables = golden
  x = images(kind, 'even')
  headless = {**variables, 'params': {k: v for k, v in variables['params'].items() if k != 'head'}}

  def gradient(model):
    def loss(params):
      logits, _ = model.apply(
        {**variables, 'params': params}, x, train=True, mutable=['batch_stats']
      )
      return jax.nn.logsumexp(logits, axis=-1).sum()

    return jax.jit(jax.grad(loss))(variables['params'])

  pooled = jax.jit(lambda v: model.clone(num_classes=0).apply(v, x, train=False))(headless)
  np.testing.assert_allclose(
    pooled, GOLDEN[f'{kind}/stage4/even'].mean((2, 3)), rtol=1e-4, atol=1e-5
  )
  plain, remat = gradient(model), gradient(model.clone(remat=True))
  for one, two in zip(jax.tree.leaves(plain), jax.tree.leaves(remat), strict=True):
    np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-5 * np.abs(one).max())
  half = jax.jit(
    lambda v: model.clone(dtype=jnp.bfloat16).apply(v, x.astype(jnp.bfloat16), train=False)
  )(variables)
  assert half.dtype == jnp.float32
  reference = GOLDEN[f'{kind}/logits/even']
  np.testing.assert_allclose(half, reference, rtol=0, atol=0.05 * np.abs(reference).max())
