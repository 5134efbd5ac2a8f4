"""Median filter as a denoiser, by exchanges of minima and maxima."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
from jax import lax

from rest_jax.defend.denoise.denoisers import Denoiser, in_pixels, register, step
from rest_jax.errors import UserError

SIZES = (3, 5)


@register(
  'median',
  family='spatial',
  strength='0.5: median of 3x3 pixels, 1: of 5x5; mixtures between',
  source='Xu et al., "Feature squeezing", 2018; scipy.ndimage.median_filter',
)
def median(strength: float, size: int = 5) -> Denoiser:
  """Median of the pixels around each, for each channel by itself.

  The same as `scipy.ndimage.median_filter` with its defaults: borders mirrored with the outermost
  pixel repeated. Between the settings the outcome is mixed linearly: at size 5 from the image
  itself over the 3x3 median at strength 0.5 to the 5x5 median, at size 3 from the image itself to
  the 3x3 median. The derivative is that of the pixel which is the median.

  Args:
    strength: from 0 to 1.
    size: pixels a side of the window at strength 1: 3 or 5.

  Raises:
    UserError: another size.
  """
  if size not in SIZES:
    raise UserError(f'the size of a median filter is 3 or 5 pixels, not {size!r}')
  return in_pixels('median', strength, step(_mixed, size=size))


def _mixed(images: jax.Array, strength: jax.Array, *, size: int) -> jax.Array:
  sizes = [s for s in SIZES if s <= size]
  mixed, place = images, strength * len(sizes)
  for index, s in enumerate(sizes):
    share = jnp.clip(place - index, 0.0, 1.0)
    # Exactly the one or the other at the ends.
    mixed = (1 - share) * mixed + share * median_filter(images, s)
  return mixed


def median_filter(images: jax.Array, size: int) -> jax.Array:
  """Median of size x size pixels around each, borders mirrored: floats (B, H, W, C)."""
  edge = size // 2
  padded = jnp.pad(images, ((0, 0), (edge, edge), (edge, edge), (0, 0)), mode='symmetric')
  return _median(padded, size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _median(padded: jax.Array, size: int) -> jax.Array:
  return _median_value(padded, size)


def _median_forward(padded: jax.Array, size: int):
  value = _median_value(padded, size)
  return value, (padded, value)


def _median_backward(size: int, kept, gradient: jax.Array):
  """To the pixel that is the median; in equal parts to several that are equal to it."""
  padded, value = kept
  equal = (_window(padded, at, value.shape) == value for at in _places(size))
  count = functools.reduce(jnp.add, (e.astype(value.dtype) for e in equal))
  share = gradient / count
  # Each pixel asks the windows it lies in; beyond the picture there are none, and NaN equals none.
  around = ((0, 0), (size - 1, size - 1), (size - 1, size - 1), (0, 0))
  value, share = jnp.pad(value, around, constant_values=jnp.nan), jnp.pad(share, around)
  # Materialised, or each of the shifts below would divide anew.
  value, share = lax.optimization_barrier((value, share))
  parts = (
    jnp.where(_window(value, at, padded.shape) == padded, _window(share, at, padded.shape), 0.0)
    for at in _places(size)
  )
  return (functools.reduce(jnp.add, parts),)


_median.defvjp(_median_forward, _median_backward)


def _places(size: int) -> list[tuple[int, int]]:
  return list(itertools.product(range(size), range(size)))


def _window(x: jax.Array, at: tuple[int, int], shape: tuple[int, ...]) -> jax.Array:
  i, j = at
  return x[:, i : i + shape[1], j : j + shape[2]]


def _median_value(padded: jax.Array, size: int) -> jax.Array:
  """Sorts columns, which neighbouring windows share, then rows; few can then be the median."""
  height, width = padded.shape[1] - size + 1, padded.shape[2] - size + 1
  columns = _sorted([padded[:, i : i + height] for i in range(size)])
  columns = lax.optimization_barrier(columns)  # or each shift of them would sort them anew
  middle, rest = (size * size + 1) // 2, []
  for i, column in enumerate(columns):
    row = _sorted([column[:, :, j : j + width] for j in range(size)])
    for j, value in enumerate(row):
      # With rows and columns sorted, (i + 1)(j + 1) - 1 values are not above this one, and
      # likewise not below: who has half of them or more on one side is not the median.
      if (i + 1) * (j + 1) <= middle and (size - i) * (size - j) <= middle:
        rest.append(value)
  return _select_middle(rest)


def _sorted(values: list[jax.Array]) -> list[jax.Array]:
  values = list(values)
  for last in range(len(values) - 1, 0, -1):
    for i in range(last):
      values[i], values[i + 1] = _exchange(values[i], values[i + 1])
  return values


def _select_middle(values: list[jax.Array]) -> jax.Array:
  """The median of an odd number: of any half and two more, the least and the most cannot be it."""
  held, waiting = values[: len(values) // 2 + 2], values[len(values) // 2 + 2 :]
  while len(held) > 1:
    for i in range(len(held) - 1):  # the largest goes to the end
      held[i], held[i + 1] = _exchange(held[i], held[i + 1])
    held.pop()
    if len(held) > 1:
      for i in range(len(held) - 1, 0, -1):  # the smallest to the front
        held[i - 1], held[i] = _exchange(held[i - 1], held[i])
      held.pop(0)
    held += waiting[:1]
    waiting = waiting[1:]
  return held[0]


def _exchange(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
  # XLA:CPU's minimum and maximum, which pass NaN on, take four times as long (5x5, 224 pixels).
  first = a < b
  return jnp.where(first, a, b), jnp.where(first, b, a)
