"""A config that takes from `model.init` what goes with its weights (`model.as_init`)."""

from __future__ import annotations

import functools
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from rest_jax import hub
from rest_jax.errors import UserError
from rest_jax.models import create_model, list_models, model_dir
from rest_jax.models.layers import shapes_only
from rest_jax.models.model_config import ModelConfig
from rest_jax.train.config import Config
from rest_jax.train.optim import depths_of


def adopt_init(config: Config, given: Collection[str]) -> None:
  """Sets, in place, the keys that say which model it is and what its images look like.

  These are model.name and model.overrides, data.mean, data.std and data.image_size, the crop of
  test images and the interpolation. `optim.layer_decay` is switched off for a model whose layers it
  cannot number.

  Args:
    config: from `check_config`, with `model.as_init` and `model.init` set.
    given: dotted keys that the user set, which stay as they are.

  Raises:
    UserError: there is no such model, or a checkpoint whose file is not called after its model and
      no model.name.
  """
  init = config.model.init
  if not init:
    raise UserError('model.as_init takes the model from model.init, which is empty: set it')
  for name, value in _of(init, config, given).items():
    if not any(key == name or key.startswith(f'{name}.') for key in given):
      group, key = name.split('.')
      config[group][key] = value
  if (
    config.optim.layer_decay != 1.0 and 'optim.layer_decay' not in given and not _has_stages(config)
  ):
    config.optim.layer_decay = 1.0


def _of(init: str, config: Config, given: Collection[str]) -> dict[str, Any]:
  """{dotted key: value} of what `init` says."""
  file = None if hub.is_remote(init) else model_dir.checkpoint(init)
  if file is not None:
    name = config.model.name if 'model.name' in given else Path(file).name.split('.')[0]
    if name not in list_models():
      raise UserError(
        f'model.init: which model is {init}? Say it with --config.model.name, one of '
        f'{", ".join(list_models())}'
      )
    return _keys(ModelConfig(name, 0))
  directory = model_dir.resolve(hub.fetch(init) if hub.is_remote(init) else init)
  return _keys(model_dir.read_config(directory))


def _keys(found: ModelConfig) -> dict[str, Any]:
  return {
    'model.name': found.model,
    'model.overrides': dict(found.overrides),
    'data.mean': found.mean,
    'data.std': found.std,
    'data.image_size': found.input_size,
    'data.eval_resize': found.resize,
    'data.eval_crop_pct': found.crop_pct,
    'augment.interpolation': found.interpolation,
  }


def _has_stages(config: Config) -> bool:
  """Whether the layers of the config's model can be numbered; what else is wrong is told later."""
  try:
    model = create_model(config.model.name, num_classes=2, **config.model.overrides.to_dict())
    image = jax.ShapeDtypeStruct((1, *(config.data.image_size,) * 2, 3), jnp.float32)
    init = functools.partial(model.init, train=False)
    with shapes_only():
      depths_of(jax.eval_shape(init, {'params': jax.random.key(0)}, image)['params'])
  except UserError:
    return False
  return True
