"""The measures of the noise-only study: a batch in, a column a number out, on all devices."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from rest_jax.attacks.losses import undefined, undefined_count
from rest_jax.attacks.queries import as_classes
from rest_jax.defend.denoise.denoisers import Denoiser, noise_only
from rest_jax.defend.features import FeatureDenoiser, noise_only_logits
from rest_jax.layers import with_layer
from rest_jax.ops.bands import band_energies, scale_bands
from rest_jax.ops.platform import jit


class Rows(NamedTuple):
  """A batch, on the devices: images and their perturbations (B, H, W, C), labels and keys (B,)."""

  images: jax.Array
  delta: jax.Array
  labels: jax.Array
  keys: jax.Array


def _mesh() -> Mesh:
  return Mesh(np.asarray(jax.local_devices()), ('images',))


def everywhere(tree: Any) -> Any:
  """What was put on some device, on all of this process; the rest moves by itself."""
  place = NamedSharding(_mesh(), PartitionSpec())

  def put(leaf: Any) -> Any:
    return jax.device_put(leaf, place) if getattr(leaf, 'committed', False) else leaf

  return jax.tree.map(put, tree)


def spread_out(rows: Any) -> Any:
  """Arrays of a batch laid out over the devices, each with a share of the rows."""
  return jax.device_put(rows, NamedSharding(_mesh(), PartitionSpec('images')))


@functools.partial(jit, static_argnums=0)
def spread(function: Callable[..., Any], parts: Any, *rows: jax.Array) -> Any:
  """`function(parts, *rows)`, of which each device has a share of the rows; compiled by itself.

  So a model compiles once and a denoiser once for all strengths, not one with every other.
  """
  if jax.local_device_count() == 1:
    return function(parts, *rows)
  whole, share = PartitionSpec(), PartitionSpec('images')
  specs = (whole, *(share for _ in rows))
  # check_vma is off: what a model does inside need not say how it varies over devices.
  shares = jax.shard_map(function, mesh=_mesh(), in_specs=specs, out_specs=share, check_vma=False)
  return shares(parts, *rows)


# ---- Measures: f(model, parts, rows) -> columns (B,) ---------------------------------------------


def _correct(model: Partial, images: jax.Array, noise: jax.Array, labels: jax.Array) -> jax.Array:
  return _is_right(as_classes(model(images + noise)), labels)


def _is_right(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Whether the label's logit is the first of the highest; never where one is not a number."""
  return (jnp.argmax(logits, axis=1) == labels) & ~undefined(logits)


def _clean(model: Partial, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
  logits = as_classes(model(images))
  return _is_right(logits, labels), undefined_count(logits)


@jit
def _energy(x: jax.Array) -> jax.Array:
  return jnp.sum(jnp.square(x), axis=(1, 2, 3))


def plain(model: Partial, parts: None, rows: Rows) -> dict[str, jax.Array]:
  """Without any denoiser."""
  del parts
  clean, bad = spread(_clean, model, rows.images, rows.labels)
  attacked = spread(_correct, model, rows.images, rows.delta, rows.labels)
  return {'clean': clean, 'bad': bad, 'attacked': attacked}


def _left(model: Partial, rows: Rows, left: jax.Array) -> dict[str, jax.Array]:
  """What is left of the perturbations, added to the images."""
  right = spread(_correct, model, rows.images, left, rows.labels)
  return {'right': right, 'before': _energy(rows.delta), 'after': _energy(left)}


def weakened(model: Partial, factor: Any, rows: Rows) -> dict[str, jax.Array]:
  return _left(model, rows, factor * rows.delta)


def _alone(denoiser: Denoiser, delta: jax.Array, keys: jax.Array) -> jax.Array:
  return noise_only(denoiser, delta, keys)


def _apply(denoiser: Denoiser, images: jax.Array, keys: jax.Array) -> jax.Array:
  return denoiser(images, keys)


def _pixels_alone(model: Partial, denoiser: Denoiser, rows: Rows) -> dict[str, jax.Array]:
  return _left(model, rows, spread(_alone, denoiser, rows.delta, rows.keys))


def _pixels_in_context(model: Partial, denoiser: Denoiser, rows: Rows) -> dict[str, jax.Array]:
  clean = spread(_apply, denoiser, rows.images, rows.keys)
  noisy = spread(_apply, denoiser, rows.images + rows.delta, rows.keys)
  none = jnp.zeros_like(clean)
  return {
    **_pixels_alone(model, denoiser, rows),
    **_prefixed(_left(model, rows, noisy - clean)),
    'clean': spread(_correct, model, clean, none, rows.labels),
    'defended': spread(_correct, model, noisy, none, rows.labels),
  }


def _prefixed(columns: dict[str, jax.Array]) -> dict[str, jax.Array]:
  return {f'in_place_{name}': column for name, column in columns.items()}


def _layer(parts: Any, images: jax.Array, noisy: jax.Array) -> Any:
  model, denoiser = parts
  return noise_only_logits(model, denoiser, images, noisy)


def _layer_in_place(parts: Any, images: jax.Array, noisy: jax.Array) -> Any:
  model, denoiser = parts
  found = noise_only_logits(model, denoiser, images, noisy, in_place=True)
  defended = (with_layer(model, denoiser.layer, denoiser, x) for x in (images, noisy))
  return *found, *defended


def _features_alone(model: Partial, denoiser: FeatureDenoiser, rows: Rows) -> dict[str, jax.Array]:
  noisy = rows.images + rows.delta
  logits, before, after = spread(_layer, (model, denoiser), rows.images, noisy)
  return {'right': _is_right(as_classes(logits), rows.labels), 'before': before, 'after': after}


def _features_in_context(
  model: Partial, denoiser: FeatureDenoiser, rows: Rows
) -> dict[str, jax.Array]:
  noisy = rows.images + rows.delta
  found = spread(_layer_in_place, (model, denoiser), rows.images, noisy)
  logits, before, after, clean, defended = found
  right = [_is_right(as_classes(one), rows.labels) for one in (logits, clean, defended)]
  in_place = {'right': right[0], 'before': before, 'after': after}
  return {
    **_features_alone(model, denoiser, rows),
    **_prefixed(in_place),
    'clean': right[1],
    'defended': right[2],
  }


# By whether the denoiser is measured in its place too.
IN_PIXELS = (_pixels_alone, _pixels_in_context)
IN_LAYER = (_features_alone, _features_in_context)


@dataclasses.dataclass(frozen=True)
class Band:
  """A band of the perturbations, alone and left out."""

  bands: int
  transform: str

  def __call__(self, model: Partial, band: Any, rows: Rows) -> dict[str, jax.Array]:
    """Columns of the band of that number."""
    kept, energy = spread(self._cut, band, rows.delta)
    others = rows.delta - kept
    return {
      'kept': spread(_correct, model, rows.images, kept, rows.labels),
      'removed': spread(_correct, model, rows.images, others, rows.labels),
      'energy': energy,
      'total': _energy(rows.delta),
    }

  def _cut(self, band: jax.Array, delta: jax.Array) -> tuple[jax.Array, jax.Array]:
    gains = jnp.zeros((1, self.bands, 1)).at[:, band].set(1.0)
    kept = scale_bands(delta, gains, self.transform)
    energies = band_energies(delta, self.bands, self.transform).sum(axis=2)
    return kept, jnp.take(energies, band, axis=1)
