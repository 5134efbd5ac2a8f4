"""Gaussian blur as a denoiser."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from rest_jax.defend.denoise.denoisers import Denoiser, check_positive, in_pixels, register, step
from rest_jax.ops.resize import apply_matrices

# Standard deviations to either side at which the kernel ends, as in SciPy.
_TRUNCATE = 4.0


@register(
  'gaussian',
  family='spatial',
  strength='standard deviation of the blur, up to 2 pixels',
  source='scipy.ndimage.gaussian_filter',
)
def gaussian(strength: float, sigma: float = 2.0) -> Denoiser:
  """Gaussian blur of standard deviation strength * sigma.

  The same as `scipy.ndimage.gaussian_filter` with its defaults: cut off at 4 standard deviations,
  borders mirrored with the outermost pixel repeated.

  Args:
    strength: from 0 to 1.
    sigma: pixels, at strength 1.
  """
  check_positive('sigma', sigma)
  return in_pixels('gaussian', strength, step(_blur, sigma=float(sigma)))


def _blur(images: jax.Array, strength: jax.Array, *, sigma: float) -> jax.Array:
  rows, columns = (_blur_matrix(n, strength * sigma, sigma) for n in images.shape[1:3])
  return apply_matrices(images, rows, columns)


def _blur_matrix(n: int, sigma: jax.Array, largest: float) -> jax.Array:
  """(n, n): weight of each sample in each blurred one, for a sigma up to the static largest."""
  radius = jnp.floor(_TRUNCATE * sigma + 0.5)
  # The smallest normal number instead of a division by 0: then all weight is in the middle.
  scale = 0.5 / jnp.maximum(sigma * sigma, jnp.finfo(jnp.float32).tiny)
  here, there = jnp.arange(n)[:, None], jnp.arange(n)[None, :]
  weights = jnp.zeros((n, n), jnp.float32)
  # The line is continued by its mirror images, of period 2n.
  mirrors = math.floor(_TRUNCATE * largest + 0.5) // (2 * n) + 1
  for period in range(-mirrors, mirrors + 1):
    for copy in (there + 2 * n * period, 2 * n * period - 1 - there):
      distance = jnp.abs(here - copy).astype(jnp.float32)
      kernel = jnp.exp(-jnp.minimum(distance * distance * scale, 1e4))
      weights += jnp.where(distance <= radius, kernel, 0.0)
  return weights / jnp.sum(weights, axis=1, keepdims=True)
