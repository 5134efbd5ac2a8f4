"""Denoisers, one registry: F, compress, inverse F, with one strength from 0 to 1.

clean = defend.denoiser('gaussian', 0.5)(images)
"""

from rest_jax.defend.denoise.denoiser import Denoiser, noise_only
from rest_jax.defend.denoise.registry import (
  DENOISERS,
  DenoiserInfo,
  denoiser,
  list_denoisers,
  register,
)

__all__ = [
  'DENOISERS',
  'Denoiser',
  'DenoiserInfo',
  'denoiser',
  'list_denoisers',
  'noise_only',
  'register',
]
