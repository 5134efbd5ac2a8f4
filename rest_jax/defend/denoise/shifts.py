"""Weighted means over the pixels around each, one shift after the other.

The window's pixels are never stored at once: a scan goes over the shifts, so that a window of any
size takes the memory of a few images and compiles as fast as one shift. Channels go first,
(C, B, H, W), so that sums over three of them are three operands and not a reduction over the
fastest axis.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Longest axis that is convolved by a matrix product: at 64 pixels non-local means then take 0.6 and
# their gradient 0.5 of the time (8 images, 5x5 patches, 11x11 pixels searched, CPU).
MATRIX_LIMIT = 128

Weights = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def channels_first(images: jax.Array) -> jax.Array:
  """(B, H, W, C) to (C, B, H, W)."""
  return jnp.moveaxis(images, -1, 0)


def channels_last(planes: jax.Array) -> jax.Array:
  """(C, B, H, W) to (B, H, W, C)."""
  return jnp.moveaxis(planes, 0, -1)


def pad_plane(planes: jax.Array, width: int, mode: str) -> jax.Array:
  """Pads the two last axes by `width` as `numpy.pad` does."""
  return jnp.pad(planes, ((0, 0), (0, 0), (width, width), (width, width)), mode=mode)


def shifted(
  padded: jax.Array, dy: jax.Array | int, dx: jax.Array | int, size: tuple[int, int]
) -> jax.Array:
  """The part of `size` at row dy and column dx of the last two axes."""
  rows = lax.dynamic_slice_in_dim(padded, dy, size[0], axis=-2)
  return lax.dynamic_slice_in_dim(rows, dx, size[1], axis=-1)


def square_distance(a: jax.Array, b: jax.Array) -> jax.Array:
  """Sum over the first axis of (a - b)^2."""
  return functools.reduce(jnp.add, [jnp.square(x - y) for x, y in zip(a, b, strict=True)])


def weighted_mean(
  padded: jax.Array, reach: int, size: tuple[int, int], weights: Weights, edge: int = 0
) -> jax.Array:
  """sum_t w_t(p) x(p + t) / sum_t w_t(p) over the (2 reach + 1)^2 shifts t.

  Args:
    padded: (C, B, H + 2 (reach + edge), W + 2 (reach + edge)).
    reach: pixels to each side.
    size: (H, W).
    weights: `weights(padded, dy, dx)` gives those of the shift (dy - reach, dx - reach), (B, H, W),
      not all of a pixel's may be 0.
    edge: further pixels around, which only the weights look at.

  Returns:
    (C, B, H, W).
  """

  # Nothing of a step is kept for its derivative, or each shift would leave several images behind.
  @jax.checkpoint
  def part(padded, shift):
    weight = weights(padded, *shift)
    return weight[None] * shifted(padded, shift[0] + edge, shift[1] + edge, size), weight

  def add(sums, shift):
    return jax.tree.map(jnp.add, sums, part(padded, shift)), None

  channels, batch = padded.shape[:2]
  zeros = jnp.zeros((channels, batch, *size), padded.dtype), jnp.zeros((batch, *size), padded.dtype)
  (total, weight), _ = lax.scan(add, zeros, _square(2 * reach + 1))
  return total / weight[None]


def _square(side: int) -> jax.Array:
  """(side^2, 2): every row and column."""
  return jnp.stack(jnp.meshgrid(*[jnp.arange(side)] * 2, indexing='ij'), axis=-1).reshape(-1, 2)


def convolve_planes(planes: jax.Array, taps: tuple[float, ...]) -> jax.Array:
  """Convolves both axes of the planes with symmetric taps, valid part.

  Args:
    planes: (B, H + n - 1, W + n - 1).
    taps: n of them.

  Returns:
    (B, H, W).
  """
  for axis, over in ((1, 'Hh,bhw->bHw'), (2, 'Ww,bhw->bhW')):
    length = planes.shape[axis] - len(taps) + 1
    if length <= MATRIX_LIMIT:
      matrix = jnp.asarray(_band(length, taps), planes.dtype)
      planes = jnp.einsum(over, matrix, planes, precision='highest')
    else:
      parts = (lax.slice_in_dim(planes, i, i + length, axis=axis) for i in range(len(taps)))
      planes = functools.reduce(jnp.add, [t * p for t, p in zip(taps, parts, strict=True)])
  return planes


@functools.lru_cache(maxsize=16)
def _band(length: int, taps: tuple[float, ...]) -> np.ndarray:
  """(length, length + n - 1): the convolution along an axis."""
  matrix = np.zeros((length, length + len(taps) - 1))
  for i, tap in enumerate(taps):
    np.fill_diagonal(matrix[:, i:], tap)
  return matrix
