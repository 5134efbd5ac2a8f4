"""Linen models: `create_model` builds one, `list_models` names them; likewise for dense tasks."""

from rest_jax.models.dense_registry import (
  create_detector,
  create_segmenter,
  list_detectors,
  list_segmenters,
)
from rest_jax.models.registry import create_model, list_models, register

__all__ = [
  'create_detector',
  'create_model',
  'create_segmenter',
  'list_detectors',
  'list_models',
  'list_segmenters',
  'register',
]
