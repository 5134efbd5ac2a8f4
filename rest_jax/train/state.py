"""What a training step reads and writes."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax


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


def create_state(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  key: jax.Array,
  image_size: int,
  ema: bool = False,
) -> TrainState:
  """Initialises model, optimizer and average; call it under one `jax.jit`.

  Args:
    model: Linen module taking (B, H, W, 3) and `train`.
    optimizer: see `rest_jax.train.optim.make_optimizer`.
    key: random key of the parameters.
    image_size: side of the images in pixels.
    ema: whether a moving average is kept.

  Returns:
    The state at step 0.
  """
  image = jnp.zeros((1, image_size, image_size, 3), jnp.float32)
  variables = model.init({'params': key}, image, train=False)
  params, stats = variables['params'], variables.get('batch_stats', {})
  average = {'params': params, 'batch_stats': stats} if ema else None
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=stats,
    opt_state=optimizer.init(params),
    ema=average,
  )


def update_average(average: Any, new: Any, decay: float) -> Any:
  """Returns decay * average + (1 - decay) * new; integer arrays (counts) are taken as they are.

  Batch statistics are averaged like parameters, as timm's ModelEma does.
  """

  def update(old, value):
    if not jnp.issubdtype(value.dtype, jnp.floating):
      return value
    return old * decay + value * (1.0 - decay)

  return jax.tree.map(update, average, new)
