"""Images in: data sets, the input pipeline, augmentation on the host and on the device."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from rest_jax.data.augmentation import AugmentConfig, eval_view
from rest_jax.data.iterators import TrainIterator, eval_batches, train_iterator
from rest_jax.data.sources import (
  CachedSource,
  DataSources,
  ImageSource,
  JudgedData,
  cached,
  load,
  load_judged,
)

if TYPE_CHECKING:
  from rest_jax.data import device

__all__ = [
  'AugmentConfig',
  'CachedSource',
  'DataSources',
  'ImageSource',
  'JudgedData',
  'TrainIterator',
  'cached',
  'device',
  'eval_batches',
  'eval_view',
  'load',
  'load_judged',
  'train_iterator',
]


if not TYPE_CHECKING:  # else every name would be one

  def __getattr__(name: str):
    # Worker processes import this package too, and have no use for JAX.
    if name == 'device':
      return importlib.import_module('rest_jax.data.device')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
