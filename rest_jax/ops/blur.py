"""Gaussian blur as two banded matrix products, borders included.

A kernel of 51 taps along both axes is 102 passes over the image as shifted sums; as products with
(H, H) and (W, W) matrices it is two, and the reflection at the border is part of the matrix.
"""

from __future__ import annotations

import functools
import math

import jax
import numpy as np

from rest_jax.errors import UserError
from rest_jax.ops.resize import apply_matrices


def gaussian_blur(images: jax.Array, size: int = 51, sigma: float = 50.0) -> jax.Array:
  """Separable Gaussian blur with reflected borders (the border pixel is not repeated).

  The same as torchvision's and kornia's `gaussian_blur2d`. An image smaller than half the kernel
  is reflected as often as it takes, as `numpy.pad(mode='reflect')` does. The kernel sums to 1, so
  the blur commutes with normalisation by mean and deviation.

  Args:
    images: floats (B, H, W, C), any range.
    size: taps along each axis, odd.
    sigma: standard deviation in pixels.

  Returns:
    As `images`.

  Raises:
    UserError: another rank, an even size, a sigma of 0 or less.
  """
  if images.ndim != 4 or min(images.shape[1:3]) < 1:
    raise UserError(f'gaussian_blur takes images (B, H, W, C), got shape {images.shape}')
  if size < 1 or size % 2 == 0 or not (sigma > 0 and math.isfinite(sigma)):
    raise UserError(f'a blur takes an odd size and a positive sigma, got {size} and {sigma}')
  rows, columns = (blur_matrix(n, size, float(sigma)) for n in images.shape[1:3])
  return apply_matrices(images, rows, columns)


@functools.lru_cache(maxsize=32)
def blur_matrix(n: int, size: int, sigma: float) -> np.ndarray:
  """(n, n): weight of each of n samples in each blurred one; float64, rows sum to 1."""
  offsets = np.arange(size) - size // 2
  kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
  period = max(2 * (n - 1), 1)
  source = np.abs(np.arange(n)[:, None] + offsets) % period
  source = np.minimum(source, period - source) if n > 1 else np.zeros_like(source)
  matrix = np.zeros((n, n))
  np.add.at(matrix, (np.arange(n)[:, None], source), kernel / kernel.sum())
  matrix.setflags(write=False)
  return matrix
