"""ResT and ResTv2 in JAX: models, weights, data and training.

  from rest_jax import Classifier, create_model, list_models

Names are loaded on first use, so `import rest_jax` itself costs nothing; the data workers rely
on that.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what editors and type checkers know of the names below
  from rest_jax import attacks, data, defend, explain, export, metrics, models, ops, train
  from rest_jax.errors import UserError
  from rest_jax.models import (
    create_detector,
    create_model,
    create_segmenter,
    list_detectors,
    list_models,
    list_segmenters,
  )
  from rest_jax.models.classifier import Classifier
  from rest_jax.models.dense_model import Detector, Segmenter

__version__ = '0.1.0'

_HOMES = {
  'Classifier': 'rest_jax.models.classifier',
  'Detector': 'rest_jax.models.dense_model',
  'Segmenter': 'rest_jax.models.dense_model',
  'UserError': 'rest_jax.errors',
  'create_detector': 'rest_jax.models',
  'create_model': 'rest_jax.models',
  'create_segmenter': 'rest_jax.models',
  'list_detectors': 'rest_jax.models',
  'list_models': 'rest_jax.models',
  'list_segmenters': 'rest_jax.models',
}
_MODULES = ('attacks', 'data', 'defend', 'explain', 'export', 'metrics', 'models', 'ops', 'train')

__all__ = [
  'Classifier',
  'Detector',
  'Segmenter',
  'UserError',
  'attacks',
  'create_detector',
  'create_model',
  'create_segmenter',
  'data',
  'defend',
  'explain',
  'export',
  'list_detectors',
  'list_models',
  'list_segmenters',
  'metrics',
  'models',
  'ops',
  'train',
]

if not TYPE_CHECKING:  # else every name would be one

  def __getattr__(name: str):
    if name in _HOMES:
      return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _MODULES:
      return importlib.import_module(f'rest_jax.{name}')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__():
  return sorted([*globals(), *__all__])
