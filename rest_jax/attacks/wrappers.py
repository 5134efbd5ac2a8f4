"""Models that are not attacked as they are: not differentiable, random, in bfloat16, shared.

Each wrapper takes functions or classifiers and gives a `Partial` that every attack takes. A shared
model is evaluated by all devices of this process, each on its rows of a batch, so that no attack,
judge or defence knows of devices. An attack stays one compiled program; between two questions its
own arithmetic, which is little, is laid out by the compiler.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from rest_jax.attacks.queries import as_classes, fold_each, image_keys, is_random
from rest_jax.attacks.threat import check_key
from rest_jax.callables import as_function
from rest_jax.errors import UserError
from rest_jax.inputs import check_choice, check_count
from rest_jax.ops.rewrite import fast_convolutions

AVERAGES = ('loss', 'logits', 'probabilities')
_AXIS = 'images'
_ROWS, _WHOLE = PartitionSpec(_AXIS), PartitionSpec()


def bpda(forward: Any, surrogate: Any = None) -> Partial:
  """Backward pass differentiable approximation: Athalye et al., "Obfuscated gradients give a
  false sense of security", 2018, section 4.1.

  Args:
    forward: what is not differentiable (or masks its gradients), arrays to arrays: a defence in
      front of a model, images to images, or a whole model.
    surrogate: a differentiable function near it, of the same shapes, whose gradient is taken
      instead; by default the identity, for a `forward` from images to images.

  Returns:
    Computes `forward`, bit for bit, and has the surrogate's gradient. For a defended classifier
    use it as one: `defended = lambda x: classifier(purify(x))` with `purify = bpda(forward)`.

  Raises:
    UserError: one of them cannot be called.
  """
  return Partial(_bpda, as_function(forward), None if surrogate is None else as_function(surrogate))


def _bpda(forward: Partial, surrogate: Partial | None, x: jax.Array) -> jax.Array:
  out = lax.stop_gradient(forward(lax.stop_gradient(x)))
  near = x if surrogate is None else surrogate(x)
  if near.shape != out.shape:
    raise UserError(
      f'bpda: forward gives {tuple(out.shape)}, its surrogate {tuple(near.shape)}; the identity '
      'stands in only for a function that keeps the shape'
    )
  return _swap_value(near, out)


@jax.custom_vjp
def _swap_value(near: jax.Array, out: jax.Array) -> jax.Array:
  """The value of `out`, with the gradient of `near`; a sum of differences would round."""
  del near
  return out


def _swap_forward(near: jax.Array, out: jax.Array):
  return out, jnp.zeros((0,), near.dtype)


def _swap_backward(like: jax.Array, gradient: jax.Array):
  return gradient.astype(like.dtype), jnp.zeros_like(gradient)


_swap_value.defvjp(_swap_forward, _swap_backward)


def chain(*functions: Any) -> Partial:
  """One function after the other, the first argument first: a defence, then the classifier.

  Args:
    *functions: functions of an array, classifiers or `Partial`s; none of them random.

  Returns:
    The composition, with all their weights as data.
  """
  return Partial(_chain, *map(as_function, functions))


def _chain(*functions_and_input: Any) -> jax.Array:
  *functions, x = functions_and_input
  for function in functions:
    x = function(x)
  return x


def in_bfloat16(logits_fn: Any) -> Partial:
  """Evaluates a model in bfloat16, for accelerators; on CPUs it is slower.

  The images and perturbations of the attack stay in float32, and so do the logits and gradients
  that come back. An attack then searches with the rounded model: judge its images by the exact
  one.

  Args:
    logits_fn: a `Classifier`, whose module gets dtype bfloat16 (it gets the images in float32
      and normalises them first), or another function, which gets images of bfloat16 and, where it
      is a pytree, its float weights rounded to it.

  Returns:
    The rounded model.
  """
  module = getattr(logits_fn, 'module', None)
  if dataclasses.is_dataclass(logits_fn) and hasattr(module, 'dtype'):
    rounded = module.clone(dtype=jnp.bfloat16)  # pyright: ignore
    return as_function(dataclasses.replace(logits_fn, module=rounded))  # pyright: ignore
  return Partial(_in_bfloat16, jax.tree.map(_rounded, as_function(logits_fn)))


def _rounded(leaf: jax.Array) -> jax.Array:
  return leaf.astype(jnp.bfloat16) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _in_bfloat16(model: Partial, images: jax.Array) -> jax.Array:
  return model(images.astype(jnp.bfloat16)).astype(jnp.float32)


def eot(logits_fn: Any, samples: int, key: Any, *, average: str = 'loss') -> Partial:
  """Expectation over transformation, for models that are random.

  Athalye et al., "Synthesizing robust adversarial examples", 2018, section 2. At every step of an
  attack new draws are taken; the key of a draw is made of the image's, the step and the draw, so
  results do not depend on batches. Square and others that need no gradient see the mean too.

  Args:
    logits_fn: `f(images, key)` to logits, of images (B, H, W, C) and one key; it is called on one
      image at a time (mapped over the batch), because each has its own key.
    samples: draws a question, one after the other.
    key: used where the model is called without an attack: `model(images)`.
    average: of what. 'loss': gradients are the mean of the gradients of each draw's loss, which
      is the gradient of the expected loss; predictions are those of the mean probabilities.
      'logits' and 'probabilities': the model is the mean of the logits, or the logarithm of the
      mean of the probabilities, and losses are of that.

  Returns:
    A model that takes keys; every attack knows it.

  Raises:
    UserError: a bad number of samples, kind of average or key.
  """
  check_count('samples', samples)
  check_choice('average', average, AVERAGES)
  return Partial(RandomModel(int(samples), average), as_function(logits_fn), check_key(key))


@dataclasses.dataclass(frozen=True)
class RandomModel:
  """The function of a `Partial` that `eot` makes: static settings, called with model and key."""

  samples: int
  average: str
  takes_key = True

  def __call__(
    self, model: Partial, key: jax.Array, images: jax.Array, keys: jax.Array | None = None
  ) -> jax.Array:
    """The mean over the draws: float32 (B, K) for keys (B,)."""
    keys = image_keys(key, images.shape[0]) if keys is None else keys

    def term(index):
      logits = self.draw(model, key, images, keys, index)
      return logits if self.average == 'logits' else jax.nn.softmax(logits, axis=1)

    def add(added, index):
      return added + term(index), None

    first = term(0)
    added, _ = lax.scan(jax.checkpoint(add), first, jnp.arange(1, self.samples))
    mean = added / self.samples
    return mean if self.average == 'logits' else jnp.log(jnp.maximum(mean, 1e-37))

  def draw(
    self,
    model: Partial,
    key: jax.Array,
    images: jax.Array,
    keys: jax.Array | None,
    index: jax.Array | int,
    /,
  ) -> jax.Array:
    """One draw: float32 (B, K), K from 2."""
    keys = image_keys(key, images.shape[0]) if keys is None else keys

    def one(image, image_key):
      return model(image[None], image_key)[0]

    return as_classes(jax.vmap(one)(images, fold_each(keys, index)))


# ---- Shared over devices -------------------------------------------------------------------------


def shared(model: Partial) -> Partial:
  """The same model, evaluated by all devices of this process.

  Args:
    model: images (B, H, W, C) to logits, each row by itself; or a random model of `attacks.eot`.

  Returns:
    A model of the same logits, up to the rounding of smaller batches: device i of n has the i-th
    n-th of a batch. A batch that does not divide (see `shared_batch`) is one device's. The model
    itself where there is one device, or a random one of another making.
  """
  devices = jax.local_devices()
  if len(devices) < 2 or isinstance(model.func, _Shared | _SharedRandom):
    return model
  mesh = Mesh(np.asarray(devices), (_AXIS,))
  placed = jax.tree.map(lambda leaf: _everywhere(leaf, mesh), model)
  if not is_random(model):
    return Partial(_Shared(mesh), placed)
  if type(model.func) is not RandomModel:
    return model
  return Partial(_SharedRandom(model.func.samples, model.func.average, mesh), *placed.args)


def shared_batch(size: int) -> int:
  """The least batch from `size` images on that divides over the devices of this process."""
  count = jax.local_device_count()
  return -(-size // count) * count


def grain_of(model: Partial, size: int) -> int:
  """The least batch from `size` images on that divides over the devices of a shared model."""
  mesh = getattr(model.func, 'mesh', None)
  return size if mesh is None else -(-size // mesh.size) * mesh.size


def lay_out(model: Partial, tree: Any) -> Any:
  """Puts rows where a shared model evaluates them, so that a loop on the host compiles once.

  Args:
    model: shared or not.
    tree: arrays with one row an image, under jit or not; a pytree.

  Returns:
    The same values; untouched where nothing is shared or the rows do not divide.
  """
  mesh = getattr(model.func, 'mesh', None)
  if mesh is None or not all(_divides(mesh, leaf) for leaf in jax.tree.leaves(tree)):
    return tree
  return jax.device_put(tree, NamedSharding(mesh, _ROWS))


def _everywhere(leaf: Any, mesh: Mesh) -> Any:
  """An array that was put on some device, on all; others are moved when they are used."""
  if isinstance(leaf, jax.Array) and leaf.committed:
    return jax.device_put(leaf, NamedSharding(mesh, _WHOLE))
  return leaf


def _divides(mesh: Mesh, images: jax.Array) -> bool:
  return images.shape[0] > 0 and images.shape[0] % mesh.size == 0


@dataclasses.dataclass(frozen=True)
class _Shared:
  """The function of a shared model."""

  mesh: Mesh

  def __call__(self, model: Partial, images: jax.Array) -> Any:
    if not _divides(self.mesh, images):
      return model(images)
    # check_vma is off: what a user's model does inside need not say how it varies over devices.
    return jax.shard_map(
      _ask,
      mesh=self.mesh,
      in_specs=(_WHOLE, _ROWS),
      out_specs=_ROWS,
      check_vma=False,
    )(model, images)


def _ask(model: Partial, images: jax.Array) -> Any:
  return fast_convolutions(model)(images)


@dataclasses.dataclass(frozen=True)
class _SharedRandom(RandomModel):
  """A random model whose draws are shared: the keys are the images', so they are the same ones."""

  mesh: Mesh

  def draw(self, *arguments: Any) -> jax.Array:
    """As `RandomModel.draw`."""
    model, key, images, keys, index = arguments
    if not _divides(self.mesh, images):
      return super().draw(*arguments)
    keys = image_keys(key, images.shape[0]) if keys is None else keys
    return jax.shard_map(
      super().draw,
      mesh=self.mesh,
      in_specs=(_WHOLE, _WHOLE, _ROWS, _ROWS, _WHOLE),
      out_specs=_ROWS,
      check_vma=False,
    )(model, key, images, keys, jnp.int32(index))
