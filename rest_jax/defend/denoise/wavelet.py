"""Soft thresholding of wavelet coefficients by BayesShrink as a denoiser.

Its medians are found without sorting, which XLA's CPU backend does slowly.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from rest_jax.defend.denoise.block_dct import soft_threshold
from rest_jax.defend.denoise.denoisers import (
  Denoiser,
  check_positive,
  check_strength,
  register,
  step,
)
from rest_jax.inputs import check_choice, check_count
from rest_jax.ops.wavelets import WAVELETS, Detail, max_level, wavedec2, waverec2

_MODE = 'symmetric'
# Upper quartile of the standard normal distribution: median of |noise| by its deviation.
_QUARTILE = 0.6744897501960817

Coefficients = tuple[jax.Array, list[Detail]]


@register(
  'wavelet',
  family='frequency',
  strength="share of BayesShrink's thresholds that detail coefficients are shrunk by",
  source='Chang et al., "Adaptive wavelet thresholding for image denoising and compression", '
  '2000; skimage.restoration.denoise_wavelet',
)
def wavelet(
  strength: float, wavelet: str = 'db2', levels: int | None = None, sigma: float | None = None
) -> Denoiser:
  """Shrinks details by strength * s^2 / sqrt(max(E[d^2] - s^2, eps s^2)), in each band, channel.

  s is the noise's deviation, of each image and channel the median of the nonzero finest diagonal
  details over 0.6745 (Donoho and Johnstone, 1994); E[d^2] the mean square of a band's details. The
  same as `denoise_wavelet(method='BayesShrink', mode='soft', convert2ycbcr=False)`, but that an
  image without any detail stays as it is, and that the floor eps is one of a share of the noise
  instead of an absolute one: pixels times c give details times c.

  Args:
    strength: from 0 to 1.
    wavelet: 'haar' or 'db2' to 'db4'.
    levels: by default three less than fit, one at least.
    sigma: the noise's deviation, in units of [0, 1] pixels; by default estimated.

  Raises:
    UserError: an option out of range.
  """
  check_choice('wavelet', wavelet, WAVELETS)
  if levels is not None:
    check_count('levels', levels)
  if sigma is not None:
    check_positive('sigma', sigma)
  return Denoiser(
    'wavelet',
    check_strength('wavelet', strength),
    forward=step(_forward, wavelet=wavelet, levels=levels),
    compress=step(_shrink, sigma=sigma),
    inverse=step(_inverse, wavelet=wavelet),
  )


def _forward(images: jax.Array, *, wavelet: str, levels: int | None) -> Coefficients:
  most = max_level((images.shape[1], images.shape[2]), wavelet)
  return wavedec2(images, wavelet, _MODE, max(most - 3, 1) if levels is None else levels)


def _inverse(z: Coefficients, shape: tuple[int, ...], *, wavelet: str) -> jax.Array:
  return waverec2(*z, wavelet, _MODE, (shape[1], shape[2]))


def _shrink(z: Coefficients, strength: jax.Array, *, sigma: float | None) -> Coefficients:
  approximation, details = z
  if sigma is None:
    deviation = nonzero_median(jnp.abs(_rows(details[-1].diagonal))) / _QUARTILE
  else:
    deviation = jnp.full((approximation.shape[0], approximation.shape[-1]), sigma)
  variance = jnp.square(deviation)
  return approximation, jax.tree.map(lambda d: _shrink_band(d, variance, strength), details)


def _shrink_band(d: jax.Array, variance: jax.Array, strength: jax.Array) -> jax.Array:
  """(B, h, w, C), with the noise's variance (B, C)."""
  energy = jnp.mean(jnp.square(_rows(d)), axis=-1)
  # Relative to the noise: an absolute floor would treat small perturbations otherwise than large.
  signal = jnp.maximum(energy - variance, jnp.finfo(d.dtype).eps * variance)
  noisy = variance > 0
  root = jnp.sqrt(jnp.where(noisy, signal, 1.0))
  threshold = jnp.where(noisy, strength * variance / root, 0.0)
  return soft_threshold(d, jnp.broadcast_to(threshold[:, None, None, :], d.shape))


def _rows(d: jax.Array) -> jax.Array:
  """(B, h, w, C) to (B, C, h w): sums over the last axis are fast, over a plane they are not."""
  rows = jnp.moveaxis(d, -1, 1)
  return rows.reshape(*rows.shape[:2], math.prod(rows.shape[2:]))


def nonzero_median(values: jax.Array) -> jax.Array:
  """Median of those that are not 0; of an even number, the mean of the two in the middle.

  Args:
    values: float32 (..., N) from 0.

  Returns:
    (...); 0 where all are 0. The derivative is that of the values in the middle, in equal parts to
    equal ones.
  """
  # The bit patterns of floats from 0 have the order of their values.
  bits = lax.bitcast_convert_type(lax.stop_gradient(values), jnp.int32)
  zeros = jnp.sum(bits == 0, axis=-1, dtype=jnp.int32)
  count = bits.shape[-1] - zeros
  lower = _of_rank(bits, zeros + (count - 1) // 2)
  upper = _of_rank(bits, zeros + count // 2)
  return 0.5 * (_mean_of_equal(values, bits, lower) + _mean_of_equal(values, bits, upper))


def _of_rank(bits: jax.Array, rank: jax.Array) -> jax.Array:
  """The pattern with `rank` smaller ones before it, (...): 31 halvings."""

  def halve(_, ends):
    low, high = ends
    middle = low + (high - low) // 2
    enough = jnp.sum(bits <= middle[..., None], axis=-1, dtype=jnp.int32) > rank
    return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

  ends = jnp.zeros_like(rank), jnp.full_like(rank, jnp.iinfo(jnp.int32).max)
  return lax.fori_loop(0, 31, halve, ends)[0]


def _mean_of_equal(values: jax.Array, bits: jax.Array, pattern: jax.Array) -> jax.Array:
  equal = bits == pattern[..., None]
  count = jnp.sum(equal, axis=-1, dtype=jnp.int32).astype(values.dtype)
  # Dividing first would round: of one value the mean is the value.
  return jnp.sum(jnp.where(equal, values, 0.0), axis=-1) / jnp.maximum(count, 1.0)
