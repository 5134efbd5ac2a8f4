"""The compiled parts of a run: initialisation, training step, evaluation step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rest_jax.models import create_model
from rest_jax.train import parallel
from rest_jax.train.config import Config
from rest_jax.train.optim import make_optimizer, make_schedule
from rest_jax.train.pipeline import Plan
from rest_jax.train.state import TrainState, create_state
from rest_jax.train.step import AXIS, make_eval_step, make_train_step, seed_keys


@dataclasses.dataclass(frozen=True)
class Task:
  """What the loop calls; every function compiles once.

  Attributes:
    mesh: the devices.
    create: () -> TrainState at step 0, replicated.
    template: shapes and dtypes of the state.
    train_step: (state, global batch) -> (state, metrics); uses the state up.
    eval_step: (variables, global batch, totals) -> totals.
  """

  mesh: Mesh
  create: Callable[[], TrainState]
  template: TrainState
  train_step: Callable[..., Any]
  eval_step: Callable[..., Any]


def build_task(config: Config, plan: Plan, mesh: Mesh, num_classes: int) -> Task:
  """Builds model, optimizer and mapped steps of a config; compiles nothing yet.

  Args:
    config: the whole experiment configuration.
    plan: from `pipeline.make_plan`.
    mesh: from `parallel.make_mesh`.
    num_classes: K.

  Returns:
    The task.

  Raises:
    UserError: unknown model or overrides.
  """
  overrides = config.model.overrides.to_dict()
  if config.model.dtype != 'float32':
    overrides['dtype'] = jnp.dtype(config.model.dtype)
  model = create_model(config.model.name, num_classes=num_classes, **overrides)
  # Only the training step runs inside the mapped axis that synchronised batch norm needs.
  axis = {'bn_axis_name': AXIS} if config.train.sync_bn else {}
  trained = create_model(config.model.name, num_classes=num_classes, **overrides, **axis)
  schedule = make_schedule(
    config.optim,
    batch_size=config.train.batch_size,
    steps_per_epoch=plan.steps_per_epoch,
    total=plan.total,
  )
  optimizer = make_optimizer(config.optim, schedule)

  def create() -> TrainState:
    key, _ = seed_keys(config.seed)
    size, ema = config.data.image_size, bool(config.train.ema)
    return create_state(model, optimizer, key, size, ema=ema)

  step = make_train_step(trained, optimizer, schedule, config, num_classes)
  return Task(
    mesh=mesh,
    create=parallel.replicate(create, mesh),
    template=jax.eval_shape(create),
    train_step=parallel.map_train_step(step, mesh),
    eval_step=parallel.map_eval_step(make_eval_step(model, config), mesh),
  )
