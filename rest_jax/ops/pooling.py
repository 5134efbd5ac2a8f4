"""Pooling: means over a fixed number of cells whatever the size of the map, maxima over windows."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rest_jax.errors import UserError
from rest_jax.ops.platform import is_portable
from rest_jax.ops.resize import apply_matrices


def adaptive_avg_pool(x: jax.Array, size: int) -> jax.Array:
  """Means over size x size cells, as PyTorch's `adaptive_avg_pool2d`.

  Cell i reaches from floor(i H / size) to ceil((i + 1) H / size): cells overlap where `size` does
  not divide the side, and repeat pixels of a map smaller than `size`.

  Args:
    x: floats (B, H, W, C).
    size: cells a side.

  Returns:
    (B, size, size, C), dtype of `x`.

  Raises:
    UserError: another rank, or a size under 1.
  """
  if x.ndim != 4 or size < 1 or min(x.shape[1:3]) < 1:
    raise UserError(
      f'adaptive_avg_pool takes (B, H, W, C) and a positive size, got {x.shape}, {size}'
    )
  return apply_matrices(x, *(pooling_matrix(n, size) for n in x.shape[1:3]))


def max_pool(x: jax.Array, size: int, stride: int, padding: int = 0) -> jax.Array:
  """Maxima over size x size windows; what is padded is below everything.

  The operation itself and not Flax's function, in whose place converters to other formats put one
  of theirs.

  Args:
    x: floats (B, H, W, C).
    size: side of a window.
    stride: from one window to the next.
    padding: places at each side.

  Returns:
    (B, h, w, C), h being (H + 2 padding - size) // stride + 1, dtype of `x`.
  """
  sides = ((0, 0), (padding, padding), (padding, padding), (0, 0))
  if is_portable():
    return _max_of_slices(jnp.pad(x, sides, constant_values=-np.inf), size, stride)
  window, strides = (1, size, size, 1), (1, stride, stride, 1)
  return lax.reduce_window(x, np.array(-np.inf, x.dtype), lax.max, window, strides, sides)


def _max_of_slices(x, size: int, stride: int):
  """The same by size * size strided slices, without padding."""
  height, width = ((n - size) // stride + 1 for n in x.shape[1:3])
  down, right = ((n - 1) * stride + 1 for n in (height, width))
  places = itertools.product(range(size), range(size))
  parts = (x[:, i : i + down : stride, j : j + right : stride] for i, j in places)
  return functools.reduce(jnp.maximum, parts)


@functools.lru_cache(maxsize=64)
def pooling_matrix(n: int, m: int) -> np.ndarray:
  """(m, n): weights of n samples in m cells; float64, rows sum to 1."""
  matrix = np.zeros((m, n))
  for i in range(m):
    start, end = i * n // m, -(-(i + 1) * n // m)
    matrix[i, start:end] = 1 / (end - start)
  matrix.setflags(write=False)
  return matrix
