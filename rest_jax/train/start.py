"""What is checked at the start of a run, before any data is opened or an epoch is spent."""

from __future__ import annotations

from pathlib import Path

from jax.sharding import Mesh

from rest_jax import hub
from rest_jax.errors import UserError
from rest_jax.models import model_dir
from rest_jax.train.config import Config
from rest_jax.train.parallel import check_batch
from rest_jax.train.purpose import purpose_of


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
  purpose_of(config).check(config)
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
