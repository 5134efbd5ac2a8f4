"""Hard and soft thresholding of the DCT of 8x8 blocks as denoisers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rest_jax.defend.denoise.denoisers import (
  Denoiser,
  check_positive,
  check_strength,
  register,
  step,
)
from rest_jax.ops.dct import block_dct2, block_idct2

_SIZE = 8


@register(
  'dct_hard',
  family='frequency',
  strength='size under which coefficients of 8x8 blocks are removed, up to 0.2',
  source='Donoho and Johnstone, "Ideal spatial adaptation by wavelet shrinkage", 1994; scipy.fft',
)
def dct_hard(strength: float, threshold: float = 0.2) -> Denoiser:
  """Sets coefficients up to strength * threshold in size to 0, but for each block's mean.

  The DCT is orthonormal, of blocks of 8x8 pixels of one channel: noise of a standard deviation
  has coefficients of that standard deviation. A side that is no multiple of 8 is continued by its
  last row or column.

  Args:
    strength: from 0 to 1.
    threshold: in units of [0, 1] pixels, at strength 1.
  """
  return _thresholding('dct_hard', strength, threshold, _hard)


@register(
  'dct_soft',
  family='frequency',
  strength='what coefficients of 8x8 blocks are shrunk by, up to 0.1',
  source='Donoho, "De-noising by soft-thresholding", 1995; scipy.fft',
)
def dct_soft(strength: float, threshold: float = 0.1) -> Denoiser:
  """Shrinks coefficients towards 0 by strength * threshold, but for each block's mean.

  Transform and arguments as of `dct_hard`.
  """
  return _thresholding('dct_soft', strength, threshold, soft_threshold)


def soft_threshold(z: jax.Array, threshold: jax.Array) -> jax.Array:
  """sign(z) max(|z| - threshold, 0)."""
  # As a difference: a threshold of 0 gives z to the bit.
  return z - jnp.clip(z, -threshold, threshold)


def _hard(z: jax.Array, threshold: jax.Array) -> jax.Array:
  return jnp.where(jnp.abs(z) > threshold, z, 0.0)


def _thresholding(name: str, strength: Any, threshold: float, rule: Callable[..., Any]) -> Denoiser:
  check_positive('threshold', threshold)
  return Denoiser(
    name,
    check_strength(name, strength),
    forward=step(block_dct2, size=_SIZE),
    compress=step(_but_for_means, rule=rule, threshold=float(threshold)),
    inverse=step(_inverse),
  )


def _but_for_means(
  z: jax.Array, strength: jax.Array, *, rule: Callable[..., Any], threshold: float
) -> jax.Array:
  """Applies the rule to (B, h, w, 8, 8, C), the first coefficient of each block apart."""
  limits = jnp.full((_SIZE, _SIZE, 1), threshold).at[0, 0].set(0.0)
  return rule(z, jnp.broadcast_to(strength * limits, z.shape))


def _inverse(z: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  return block_idct2(z, _SIZE, shape)
