"""Denoising defences, feature compression and their honest evaluation, for any JAX classifier.

A defence is a `Denoiser`: images in [0, 1] in, images out, with one strength from 0, the identity,
to 1. `denoiser` builds one by name.
"""

from rest_jax.defend.compression import (
  BandEnergies,
  add_compression,
  measure_bands,
  wiener_gains,
  with_wiener_gains,
)
from rest_jax.defend.denoise import (
  DENOISERS,
  Denoiser,
  DenoiserInfo,
  denoiser,
  list_denoisers,
  noise_only,
)
from rest_jax.defend.evaluation import DefenceEvaluation, Defended, evaluate_defences
from rest_jax.defend.protect import attackable, protect

__all__ = [
  'DENOISERS',
  'BandEnergies',
  'DefenceEvaluation',
  'Defended',
  'Denoiser',
  'DenoiserInfo',
  'add_compression',
  'attackable',
  'denoiser',
  'evaluate_defences',
  'list_denoisers',
  'measure_bands',
  'noise_only',
  'protect',
  'wiener_gains',
  'with_wiener_gains',
]
