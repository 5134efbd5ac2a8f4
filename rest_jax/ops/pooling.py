"""Average pooling to a fixed number of cells, whatever the size of the map."""

from __future__ import annotations

import functools

import jax
import numpy as np

from rest_jax.errors import UserError
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


@functools.lru_cache(maxsize=64)
def pooling_matrix(n: int, m: int) -> np.ndarray:
  """(m, n): weights of n samples in m cells; float64, rows sum to 1."""
  matrix = np.zeros((m, n))
  for i in range(m):
    start, end = i * n // m, -(-(i + 1) * n // m)
    matrix[i, start:end] = 1 / (end - start)
  matrix.setflags(write=False)
  return matrix
