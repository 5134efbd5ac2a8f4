"""Denoisers, one registry: F, compress, inverse F, with one strength from 0 to 1.

clean = defend.denoiser('gaussian', 0.5)(images)
"""

from rest_jax.defend.denoise.denoisers import (
  DENOISERS,
  Denoiser,
  DenoiserInfo,
  denoiser,
  list_denoisers,
  noise_only,
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
