"""Training: configuration, optimizer, the mapped step, the loop, checkpoints, metrics.

  from rest_jax.train import default_config, load_config, train

`train(config, workdir)` is the main path; `default_config()` has every setting, and
`load_config('digit_scenes:full')` those of an experiment, a file or one of the package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from rest_jax.train.command import load_config
  from rest_jax.train.config import default_config
  from rest_jax.train.loop import train

_HOMES = {
  'default_config': 'rest_jax.train.config',
  'load_config': 'rest_jax.train.command',
  'train': 'rest_jax.train.loop',
}

__all__ = ['default_config', 'load_config', 'train']


if not TYPE_CHECKING:  # else every name would be one

  def __getattr__(name: str):
    if name in _HOMES:
      return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
