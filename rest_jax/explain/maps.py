"""What becomes of a map: its size and its range, and which differences are rounding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rest_jax import ops

# Differences below this share of what they come from are rounding: float32 sums of a network in
# another order differ by a few units in the last place.
ROUNDING = 32 * float(jnp.finfo(jnp.float32).eps)


def gained(after: jax.Array, before: jax.Array, size: jax.Array | None = None) -> jax.Array:
  """after - before, and 0 where the difference is one of rounding.

  A model that does not look at what was changed gives the same value but for the order of its
  sums; brought to [0, 1] that noise would be a picture.

  Args:
    after: float32, any shape.
    before: the same shape.
    size: that of the numbers from which both came; the larger of the two by default.
  """
  size = jnp.maximum(jnp.abs(after), jnp.abs(before)) if size is None else size
  change = after - before
  return jnp.where(jnp.abs(change) <= ROUNDING * size, 0, change)


def upsample(maps: jax.Array, size: Sequence[int]) -> jax.Array:
  """Bilinear, half-pixel centres: (B, h, w) -> (B, H, W)."""
  return ops.resize_bilinear(maps[..., None], (size[0], size[1]))[..., 0]


class Span(NamedTuple):
  """Least and greatest value of maps (..., H, W), (..., 1, 1) each, and whether they differ."""

  low: jax.Array
  high: jax.Array
  varied: jax.Array


def span(maps: jax.Array) -> Span:
  """Range of maps (..., H, W). One under four units in the last place counts as none."""
  low, high = (f(maps, axis=(-2, -1), keepdims=True) for f in (jnp.min, jnp.max))
  half = 0.5 * high - 0.5 * low  # their difference may overflow
  info = jnp.finfo(maps.dtype)
  least = 2 * float(info.eps) * jnp.maximum(jnp.abs(low), jnp.abs(high))
  varied = (half > least) & (half > float(info.tiny)) & jnp.isfinite(half)
  return Span(low, high, varied)


def min_max(maps: jax.Array) -> jax.Array:
  """Maps (..., H, W) onto [0, 1]; one that is constant (to rounding) becomes 0.

  One that is not finite stays so, all of it not a number: it must not look like an empty map.
  """
  return rescale(maps, span(maps))


def rescale(maps: jax.Array, range_: Span) -> jax.Array:
  """(maps - low) / (high - low); 0 where they are equal, not a number where they are not finite."""
  low, high, varied = range_
  half = jnp.where(varied, 0.5 * high - 0.5 * low, 1)
  unit = jnp.clip((0.5 * maps - 0.5 * low) / half, 0, 1)
  # A compiler may divide by multiplying, which leaves the greatest value a little under 1.
  unit = jnp.where(varied, jnp.where(maps == high, 1, unit), 0)
  return jnp.where(jnp.isfinite(low) & jnp.isfinite(high), unit, jnp.nan)


def support(values: jax.Array) -> jax.Array:
  """What speaks for the class: signed values (..., H, W) to [0, 1], those of 0 or less to 0.

  Unlike `min_max` it leaves 'no effect' at 0 where something speaks against the class.
  """
  high = jnp.max(values, axis=(-2, -1), keepdims=True)
  low = jnp.min(values, axis=(-2, -1), keepdims=True)
  real = high > float(jnp.finfo(values.dtype).tiny)
  unit = jnp.where(real, jnp.maximum(values, 0) / jnp.where(real, high, 1), 0)
  unit = jnp.where(real & (values == high), 1, unit)
  return jnp.where(jnp.isfinite(low) & jnp.isfinite(high), unit, jnp.nan)


def peak(values: jax.Array) -> jax.Array:
  """Largest size of an image's values (B, ...), (B, 1, ...); 1 where all are 0.

  To divide by, where a scale cancels in the end and products would leave the range of float32.
  """
  high = jnp.max(jnp.abs(values), axis=tuple(range(1, values.ndim)), keepdims=True)
  return jnp.where(high > 0, high, 1)


def constant_maps(maps: jax.Array) -> jax.Array:
  """Which of the maps (B, H, W) that a method gave say nothing: bool (B,)."""
  return jnp.max(maps, axis=(-2, -1)) == 0


def finish(maps: jax.Array, size: Sequence[int]) -> jax.Array:
  """Maps at feature resolution (B, h, w) -> (B, H, W) in [0, 1]."""
  return min_max(upsample(maps, size))
