"""The compiled parts of a run: initialisation, training step, evaluation step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from rest_jax.models import create_model
from rest_jax.train import freezing, parallel
from rest_jax.train.config import Config
from rest_jax.train.initial import load_initial
from rest_jax.train.layer_decay import depths_of
from rest_jax.train.optim import make_optimizer, make_schedule
from rest_jax.train.pipeline import Plan
from rest_jax.train.processes import is_main
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
  optimizer = _optimizer(config, model, schedule)
  create = functools.partial(_create, model, optimizer, config)
  template = jax.eval_shape(create)
  spec, sharding = parallel.state_spec(template), parallel.state_sharding(template, mesh)
  compiled = parallel.replicate(create, mesh, sharding)

  def start() -> TrainState:
    if not config.model.init:
      return compiled()
    weights, what = load_initial(config, num_classes)
    if is_main():
      print(what, flush=True)
    return compiled(weights)

  step = make_train_step(trained, optimizer, schedule, config, num_classes)
  return Task(
    mesh=mesh,
    create=start,
    template=template,
    train_step=parallel.map_train_step(step, mesh, spec),
    eval_step=parallel.map_eval_step(make_eval_step(model, config), mesh),
  )


def _create(model: nn.Module, optimizer: Any, config: Config, start: Any = None) -> TrainState:
  key, _ = seed_keys(config.seed)
  return create_state(
    model,
    optimizer,
    key,
    config.data.image_size,
    ema=bool(config.train.ema),
    start=start,
    freeze=config.optim.freeze,
    free_batch=config.train.batch_size if config.adversarial.kind == 'free' else 0,
  )


def _optimizer(
  config: Config, model: nn.Module, schedule: optax.Schedule
) -> optax.GradientTransformation:
  """The optimizer; where it goes by the names of parameters, they are checked first."""
  optim, adversarial, depths = config.optim, config.adversarial, ()
  if optim.freeze or optim.layer_decay != 1.0:
    image = jax.ShapeDtypeStruct((1, *(config.data.image_size,) * 2, 3), jnp.float32)
    init = functools.partial(model.init, train=False)
    params = jax.eval_shape(init, {'params': jax.random.key(0)}, image)['params']
    freezing.check_pattern(params, optim.freeze)
    depths = depths_of(params) if optim.layer_decay != 1.0 else ()
  # Free training updates several times a step; all of them have the step's learning rate.
  replays = adversarial.replays if adversarial.kind == 'free' else 1
  by_update = schedule if replays == 1 else lambda count: schedule(count // replays)
  return make_optimizer(optim, by_update, depths)
