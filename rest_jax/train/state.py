"""What a training step reads and writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from rest_jax.models import model_dir
from rest_jax.train import freezing


@flax.struct.dataclass
class TrainState:
  """The whole state of a training, replicated on every device.

  Attributes:
    step: int32 scalar, number of steps done.
    params: float32 parameter tree of the model.
    batch_stats: running statistics of the model, `{}` where it has none.
    opt_state: state of the optimizer.
    ema: moving average {'params', 'batch_stats'}, or None where it is off.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any
  ema: Any = None

  def variables(self, averaged: bool = False) -> dict[str, Any]:
    """Returns {'params', 'batch_stats'} for `model.apply`, of the average where asked."""
    return self.ema if averaged else {'params': self.params, 'batch_stats': self.batch_stats}


@flax.struct.dataclass
class FreeTrainState(TrainState):
  """The state of free adversarial training.

  Attributes:
    perturbation: float32 (global batch, H, W, 3), carried from batch to batch. Each device holds
      its own rows.
  """

  perturbation: Any = None


def create_state(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  key: jax.Array,
  image_size: int,
  ema: bool = False,
  *,
  start: Mapping[str, jax.Array] | None = None,
  freeze: str = '',
  free_batch: int = 0,
) -> TrainState:
  """Initialises model, optimizer and average; call it under one `jax.jit`.

  Args:
    model: Linen module taking (B, H, W, 3) and `train`.
    optimizer: see `rest_jax.train.optim.make_optimizer`.
    key: random key of the parameters.
    image_size: side of the images in pixels.
    ema: whether a moving average is kept.
    start: {'params/...': array} that replace initial values, from `initial.load_initial`.
    freeze: pattern of the parameters that the optimizer does not get, see `freezing`.
    free_batch: the global batch of free adversarial training; 0 for any other.

  Returns:
    The state at step 0.
  """
  image = jnp.zeros((1, image_size, image_size, 3), jnp.float32)
  variables = model.init({'params': key}, image, train=False)
  if start:
    variables = model_dir.unflatten(model_dir.flatten(variables) | dict(start))
  params, stats = variables['params'], variables.get('batch_stats', {})
  average = {'params': params, 'batch_stats': stats} if ema else None
  fields: dict[str, Any] = dict(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=stats,
    opt_state=optimizer.init(freezing.split(params, freeze)[0]),
    ema=average,
  )
  if free_batch:
    shape = (free_batch, image_size, image_size, 3)
    return FreeTrainState(**fields, perturbation=jnp.zeros(shape, jnp.float32))
  return TrainState(**fields)


def update_average(average: Any, new: Any, decay: float) -> Any:
  """Returns decay * average + (1 - decay) * new; integer arrays (counts) are taken as they are.

  Batch statistics are averaged like parameters, as timm's ModelEma does.
  """

  def update(old, value):
    if not jnp.issubdtype(value.dtype, jnp.floating):
      return value
    return old * decay + value * (1.0 - decay)

  return jax.tree.map(update, average, new)
