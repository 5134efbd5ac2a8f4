"""The compiled parts of a run: initialisation, training step, evaluation step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from rest_jax.train import freezing, parallel
from rest_jax.train.config import Config
from rest_jax.train.optim import check_decay, depths_of, make_optimizer, make_schedule
from rest_jax.train.parallel import AXIS
from rest_jax.train.pipeline import Plan
from rest_jax.train.processes import is_main
from rest_jax.train.purpose import purpose_of
from rest_jax.train.state import TrainState, create_state, seed_keys
from rest_jax.train.step import make_train_step


@dataclasses.dataclass(frozen=True)
class Task:
  """What the loop calls; every function compiles once.

  Attributes:
    mesh: the devices.
    create: () -> TrainState at step 0, replicated.
    template: shapes and dtypes of the state.
    train_step: (state, global batch) -> (state, metrics); uses the state up.
    eval_step: (variables, global batch, totals) -> totals; of a detector or segmenter (variables,
      images, sizes) -> its outputs.
    measure: (variables, source) -> result, see `rest_jax.train.measured`.
  """

  mesh: Mesh
  create: Callable[[], TrainState]
  template: TrainState
  train_step: Callable[..., Any]
  eval_step: Callable[..., Any]
  measure: Callable[[Any, Any], dict[str, Any]]


def build_task(
  config: Config,
  plan: Plan,
  mesh: Mesh,
  class_names: Sequence[str],
  class_weights: Sequence[float] | None = None,
) -> Task:
  """Builds model, optimizer and mapped steps of a config; compiles nothing yet.

  Args:
    config: the whole experiment configuration.
    plan: from `pipeline.make_plan`.
    mesh: from `parallel.make_mesh`.
    class_names: one a class.
    class_weights: one a class, or None for equal ones.

  Returns:
    The task.

  Raises:
    UserError: unknown model or overrides.
  """
  # Only the training step runs inside the mapped axis that synchronised batch norm needs.
  purpose = purpose_of(config)
  model, trained = (purpose.create(config, len(class_names), axis) for axis in (None, AXIS))
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
    weights, what = purpose.initial(config, len(class_names))
    if is_main():
      print(what, flush=True)
    return compiled(weights)

  eval_step, measure = purpose.measuring(model, config, mesh, class_names)
  step = make_train_step(trained, optimizer, schedule, config, len(class_names), class_weights)
  return Task(
    mesh=mesh,
    create=start,
    template=template,
    train_step=parallel.map_train_step(step, mesh, spec),
    eval_step=eval_step,
    measure=measure,
  )


def _create(model: nn.Module, optimizer: Any, config: Config, start: Any = None) -> TrainState:
  key, _ = seed_keys(config.seed)
  return create_state(
    model,
    optimizer,
    key,
    purpose_of(config).init_side(config),
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
  if optim.freeze or optim.layer_decay != 1.0 or optim.stage_decay != 1.0:
    image = jax.ShapeDtypeStruct((1, *(config.data.image_size,) * 2, 3), jnp.float32)
    init = functools.partial(model.init, train=False)
    params = jax.eval_shape(init, {'params': jax.random.key(0)}, image)['params']
    freezing.check_pattern(params, optim.freeze)
    check_decay(params, optim)
    depths = depths_of(params) if optim.layer_decay != 1.0 else ()
  # Free training updates several times a step; all of them have the step's learning rate.
  replays = adversarial.replays if adversarial.kind == 'free' else 1
  by_update = schedule if replays == 1 else lambda count: schedule(count // replays)
  return make_optimizer(optim, by_update, depths)
