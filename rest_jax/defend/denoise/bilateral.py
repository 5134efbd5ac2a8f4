"""Bilateral filter as a denoiser."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from rest_jax.defend.denoise.denoisers import Denoiser, check_positive, in_pixels, register, step
from rest_jax.defend.denoise.shifts import (
  channels_first,
  channels_last,
  pad_plane,
  shifted,
  square_distance,
  weighted_mean,
)


@register(
  'bilateral',
  family='spatial',
  strength='deviation of the colour distance, up to 0.1 a channel',
  source='Tomasi and Manduchi, 1998; skimage.restoration.denoise_bilateral',
)
def bilateral(strength: float, sigma_color: float = 0.1, sigma_spatial: float = 1.0) -> Denoiser:
  """Mean of the pixels around, weighted by nearness in place and in colour.

  w(p, q) = exp(-|p - q|^2 / 2 sigma_spatial^2 - d^2 / 2 sigma^2), sigma = strength * sigma_color;
  d is the Euclidean distance of the colours divided by the number of channels. The same as
  `denoise_bilateral(mode='symmetric')`, which divides so too, with its default window of
  2 ceil(3 sigma_spatial) + 1 pixels, 5 or more.

  Args:
    strength: from 0 to 1.
    sigma_color: in units of [0, 1] pixels, at strength 1.
    sigma_spatial: pixels, at every strength.
  """
  check_positive('sigma_color', sigma_color)
  check_positive('sigma_spatial', sigma_spatial)
  options = {'sigma_color': float(sigma_color), 'sigma_spatial': float(sigma_spatial)}
  return in_pixels('bilateral', strength, step(_filter, **options))


def _filter(
  images: jax.Array, strength: jax.Array, *, sigma_color: float, sigma_spatial: float
) -> jax.Array:
  reach, size = max(2, math.ceil(3 * sigma_spatial)), (images.shape[1], images.shape[2])
  x = channels_first(images)
  sigma = strength * sigma_color * len(x)
  scale = 0.5 / jnp.maximum(sigma * sigma, jnp.finfo(jnp.float32).tiny)
  weights = functools.partial(_weights, x, scale, reach=reach, spatial=0.5 / sigma_spatial**2)
  return channels_last(weighted_mean(pad_plane(x, reach, 'symmetric'), reach, size, weights))


def _weights(x, scale, padded, dy, dx, *, reach: int, spatial: float) -> jax.Array:
  there = shifted(padded, dy, dx, x.shape[-2:])
  far = spatial * (
    jnp.square((dy - reach).astype(x.dtype)) + jnp.square((dx - reach).astype(x.dtype))
  )
  # The exponent is cut where the weight is 0 anyway: infinite ones have no derivative.
  return jnp.exp(-far - jnp.minimum(square_distance(x, there) * scale, 1e4))
