"""Images shared over the devices of this process: each evaluates the model on its rows of a batch.

One wrapper around a model does it, so that no attack, judge or defence knows of devices. An attack
stays one compiled program; between two questions its own arithmetic, which is little, is laid out
by the compiler.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from rest_jax.attacks.queries import image_keys, is_random
from rest_jax.attacks.wrappers import RandomModel
from rest_jax.ops.rewrite import fast_convolutions

_AXIS = 'images'
_ROWS, _WHOLE = PartitionSpec(_AXIS), PartitionSpec()


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

  def draw(
    self,
    model: Partial,
    key: jax.Array,
    *,
    images: jax.Array,
    keys: jax.Array | None,
    index: jax.Array | int,
  ) -> jax.Array:
    """As `RandomModel.draw`."""
    if not _divides(self.mesh, images):
      return super().draw(model, key, images=images, keys=keys, index=index)
    keys = image_keys(key, images.shape[0]) if keys is None else keys
    draw = super().draw
    return jax.shard_map(
      lambda model, key, images, keys, index: draw(
        model, key, images=images, keys=keys, index=index
      ),
      mesh=self.mesh,
      in_specs=(_WHOLE, _WHOLE, _ROWS, _ROWS, _WHOLE),
      out_specs=_ROWS,
      check_vma=False,
    )(model, key, images, keys, jax.numpy.int32(index))
