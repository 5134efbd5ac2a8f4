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
from rest_jax.defend.denoise.pca import fit_patch_pca
from rest_jax.defend.evaluate import DefenceEvaluation, Defended, evaluate_defences
from rest_jax.defend.features import feature_denoiser
from rest_jax.defend.protection import attackable, protect
from rest_jax.defend.spectra import Spectrum, perturbation_spectra
from rest_jax.defend.study import noise_study
from rest_jax.defend.study_results import NoiseStudy
from rest_jax.defend.table import UNDEFENDED, DefenceRow

__all__ = [
  'DENOISERS',
  'UNDEFENDED',
  'BandEnergies',
  'DefenceEvaluation',
  'DefenceRow',
  'Defended',
  'Denoiser',
  'DenoiserInfo',
  'NoiseStudy',
  'Spectrum',
  'add_compression',
  'attackable',
  'denoiser',
  'evaluate_defences',
  'feature_denoiser',
  'fit_patch_pca',
  'list_denoisers',
  'measure_bands',
  'noise_only',
  'noise_study',
  'perturbation_spectra',
  'protect',
  'wiener_gains',
  'with_wiener_gains',
]
