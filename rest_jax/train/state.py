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
from rest_jax.ops.platform import jit
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


def not_finite(state: TrainState) -> list[str]:
  """Names of the arrays of a state that hold NaN or infinity.

  Args:
    state: replicated over the devices; a perturbation is not looked at.

  Returns:
    Such as 'params/head/kernel'; empty where all is well.
  """
  tree = {
    'params': state.params,
    'batch_stats': state.batch_stats,
    'ema': state.ema,
    'opt_state': state.opt_state,
  }
  leaves = [
    (jax.tree_util.keystr(path, simple=True, separator='/'), leaf)
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    if leaf.size and jnp.issubdtype(leaf.dtype, jnp.floating)
  ]
  broken = jax.device_get(_are_broken([leaf for _, leaf in leaves])) if leaves else []
  return [name for (name, _), bad in zip(leaves, broken, strict=True) if bad]


@jit
def _are_broken(arrays: list[jax.Array]) -> jax.Array:
  return jnp.stack([~jnp.all(jnp.isfinite(array)) for array in arrays])


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


def update_average(average: Any, new: Any, decay: float, step: Any) -> Any:
  """Moves an average towards new values: d average + (1 - d) new, d = min(decay, (1 + t)/(10 + t)).

  The decay warms up, so that the average does not hold the first weights for 1 / (1 - decay) steps.
  Computed as average + (1 - d) (new - average), so that equal values stay as they are, to the bit.
  Batch statistics are averaged like parameters, as timm's ModelEma does; integer arrays (counts)
  are taken as they are.

  Args:
    average: pytree of arrays.
    new: the same tree.
    decay: d after the warm-up, in [0, 1).
    step: t, the steps done before this one.
  """
  # 1 - d itself: of a decay of 1 - 1e-8 float32 makes 1.
  share = jnp.maximum(1.0 - decay, 9.0 / (10.0 + jnp.asarray(step).astype(jnp.float32)))

  def update(old, value):
    if not jnp.issubdtype(value.dtype, jnp.floating):
      return value
    return old + share.astype(old.dtype) * (value - old)

  return jax.tree.map(update, average, new)


def seed_keys(seed: int) -> tuple[jax.Array, jax.Array]:
  """Returns the keys of the initialisation and of the training steps."""
  init, steps = jax.random.split(jax.random.key(seed))
  return init, steps
