"""Non-local means as a denoiser."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rest_jax.defend.denoise.denoisers import Denoiser, check_positive, in_pixels, register, step
from rest_jax.defend.denoise.shifts import (
  channels_first,
  channels_last,
  convolve_planes,
  pad_plane,
  shifted,
  square_distance,
  weighted_mean,
)
from rest_jax.errors import UserError
from rest_jax.inputs import check_count

# exp(-5) = 0.007: patches farther away than that do not count.
_FARTHEST = 5.0


@register(
  'non_local_means',
  family='spatial',
  strength='distance h at which patches still count as alike, up to 0.1',
  source='Buades et al., 2005; skimage.restoration.denoise_nl_means(fast_mode=False)',
)
def non_local_means(strength: float, h: float = 0.1, patch: int = 5, distance: int = 5) -> Denoiser:
  """Mean of the pixels of a window, weighted by how alike the patches around them are.

  w(p, q) = exp(-D(p, q) / h^2), 0 where D > 5 h^2; D is the mean over channels and, by a Gaussian
  of deviation (patch - 1) / 4, over the patch of the squared difference. Patches at the border are
  mirrored without repeating the outermost pixel; only pixels of the picture are averaged. That is
  scikit-image's original algorithm (which looks whether a distance is beyond 5 before the last
  row of a patch, and so counts a few patches that are cut here).

  Args:
    strength: from 0 to 1; h is multiplied by it.
    h: in units of [0, 1] pixels, at strength 1.
    patch: pixels a patch's side, odd.
    distance: pixels to each side that are searched.

  Raises:
    UserError: an option out of range.
  """
  check_positive('h', h)
  check_count('distance', distance)
  check_count('patch', patch)
  if patch % 2 == 0 or patch < 3:
    raise UserError(f'the patch of non-local means has an odd side from 3, not {patch}')
  options = {'h': float(h), 'patch': patch, 'distance': distance}
  return in_pixels('non_local_means', strength, step(_filter, **options))


def _filter(
  images: jax.Array, strength: jax.Array, *, h: float, patch: int, distance: int
) -> jax.Array:
  x, edge = channels_first(images), patch // 2
  size = (images.shape[1], images.shape[2])
  width = jnp.maximum(jnp.square(strength * h), jnp.finfo(jnp.float32).tiny)
  weights = functools.partial(
    _weights, pad_plane(x, edge, 'reflect'), 1 / (len(x) * width), size=size, reach=distance
  )
  # What is beyond the picture gets no weight: any filling does.
  around = pad_plane(pad_plane(x, edge, 'reflect'), distance, 'constant')
  return channels_last(weighted_mean(around, distance, size, weights, edge=edge))


def _weights(patches, scale, padded, dy, dx, *, size: tuple[int, int], reach: int):
  edge = (patches.shape[-1] - size[1]) // 2
  there = shifted(padded, dy, dx, patches.shape[-2:])
  apart = convolve_planes(square_distance(patches, there), _taps(2 * edge + 1)) * scale
  row = jnp.arange(size[0])[:, None] + dy - reach
  column = jnp.arange(size[1])[None, :] + dx - reach
  inside = (row >= 0) & (row < size[0]) & (column >= 0) & (column < size[1])
  counts = inside[None] & (apart <= _FARTHEST)
  return jnp.where(counts, jnp.exp(-jnp.minimum(apart, 2 * _FARTHEST)), 0.0)


def _taps(patch: int) -> tuple[float, ...]:
  """One axis of the patch's Gaussian; both together sum to 1."""
  deviation = (patch - 1) / 4
  taps = np.exp(-0.5 * ((np.arange(patch) - patch // 2) / deviation) ** 2)
  return tuple((taps / taps.sum()).tolist())
