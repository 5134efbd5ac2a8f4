"""Bilinear resizing as two small matrix products.

A row of the matrix has two entries, yet the dense product wins: a gather costs XLA's CPU backend
more than the arithmetic, and on GPU and TPU a product is what the hardware does best.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from rest_jax.errors import UserError


def resize_bilinear(x: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Bilinear interpolation with half-pixel centres and no antialiasing.

  The same as PyTorch's `interpolate(mode='bilinear', align_corners=False)`; beyond the outermost
  centres the border value goes on.

  Args:
    x: floats (B, h, w, C).
    size: (H, W) of the result, in pixels.

  Returns:
    (B, H, W, C), dtype of `x`.

  Raises:
    UserError: another rank, or a size under 1.
  """
  if x.ndim != 4 or min(size) < 1 or min(x.shape[1:3]) < 1:
    raise UserError(
      f'resize_bilinear takes (B, h, w, C) and a positive (H, W), got {x.shape}, {size}'
    )
  rows, columns = (interpolation_matrix(n, m) for n, m in zip(x.shape[1:3], size, strict=True))
  return apply_matrices(x, rows, columns)


def apply_matrices(x: jax.Array, rows: ArrayLike, columns: ArrayLike) -> jax.Array:
  """Linear maps along the two axes of the plane: (B, h, w, C), (H, h), (W, w) -> (B, H, W, C)."""
  # Tensor cores and TPUs would round float32 factors to 10 or 8 bits.
  x = jnp.einsum('Ih,bhwc->bIwc', jnp.asarray(rows, x.dtype), x, precision='highest')
  return jnp.einsum('Jw,bIwc->bIJc', jnp.asarray(columns, x.dtype), x, precision='highest')


@functools.lru_cache(maxsize=64)
def interpolation_matrix(n: int, m: int) -> np.ndarray:
  """(m, n): weights of n samples at m half-pixel centres; float64, rows sum to 1."""
  position = np.clip((np.arange(m) + 0.5) * (n / m) - 0.5, 0, n - 1)
  low = np.minimum(position.astype(int), n - 1)
  high = np.minimum(low + 1, n - 1)
  matrix = np.zeros((m, n))
  np.add.at(matrix, (np.arange(m), low), 1 - (position - low))
  np.add.at(matrix, (np.arange(m), high), position - low)
  matrix.setflags(write=False)
  return matrix
