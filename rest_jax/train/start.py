"""What is checked at the start of a run, before any data is opened or an epoch is spent."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rest_jax import hub
from rest_jax.errors import UserError
from rest_jax.models import create_model, model_dir
from rest_jax.models.model_config import ModelConfig, freeze_overrides
from rest_jax.train import dense, freezing
from rest_jax.train.config import Config
from rest_jax.train.optim import check_decay
from rest_jax.train.parallel import check_batch


def check_start(config: Config, mesh: Mesh) -> None:
  """Refuses a config that would fail later.

  Args:
    config: from `check_config`.
    mesh: the devices.

  Raises:
    UserError: batches that do not divide over the devices; an unknown model or override, or a model
      that does not take images of this size; a pattern of `optim.freeze` that matches nothing or
      everything; `optim.layer_decay` for a model without stages of blocks; no model of the name
      `model.init`.
  """
  train = config.train
  check_batch(train.batch_size, train.accumulate, mesh, 'train.batch_size')
  check_batch(config.data.eval_batch_size or train.batch_size, 1, mesh, 'data.eval_batch_size')
  if dense.kind_of(config):
    dense.check(config)
  else:
    _check_model(config)
    _check_release(config)
  init = config.model.init
  if (
    init
    and not hub.is_remote(init)
    and not Path(init).exists()
    and init not in model_dir.zoo_names()
  ):
    raise UserError(
      f'model.init: there is no file, model directory or zoo model {init!r}; the zoo has '
      f'{", ".join(model_dir.zoo_names())}'
    )


def _check_model(config: Config) -> None:
  """Traces the model once, with two classes: those of the data are not known yet."""
  overrides = dict(config.model.overrides.to_dict())
  for name, whose in (('num_classes', "the data's"), ('bn_axis_name', 'train.sync_bn')):
    if name in overrides:
      raise UserError(f'model.overrides: {name!r} is {whose}; leave it out')
  if config.train.sync_bn:
    overrides['bn_axis_name'] = None  # whether the model knows it
  try:
    model = create_model(config.model.name, num_classes=2, **overrides)
    image = jax.ShapeDtypeStruct((1, *(config.data.image_size,) * 2, 3), jnp.float32)
    init = functools.partial(model.init, train=False)
    params = jax.eval_shape(init, {'params': jax.random.key(0)}, image)['params']
  except UserError as error:
    raise UserError(f'{_described(config)}: {error}') from error
  except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    raise UserError(f'{_described(config)} make no model: {reason}') from error
  freezing.check_pattern(params, config.optim.freeze)
  check_decay(params, config.optim)


def _described(config: Config) -> str:
  return (
    f'model.name={config.model.name!r}, model.overrides={config.model.overrides.to_dict()} and '
    f'data.image_size={config.data.image_size}'
  )


def _check_release(config: Config) -> None:
  """What the model directory will say of the images must be what it can say."""
  try:
    ModelConfig(
      config.model.name,
      0,
      freeze_overrides(config.model.overrides.to_dict()),
      tuple(config.data.mean),
      tuple(config.data.std),
      config.data.image_size,
      config.data.eval_resize,
      config.data.eval_crop_pct,
      config.augment.interpolation,
    )
  except UserError as error:
    raise UserError(f'the model of this config could not be saved: {error}') from error
