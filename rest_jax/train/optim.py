"""Optimizers and the learning-rate schedule of the papers' recipe."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from rest_jax.train.config import Config
from rest_jax.train.layer_decay import scale_by_layer


def decay_mask(params):
  """Marks the parameters that weight decay applies to: everything but vectors and scalars.

  Norm scales and biases are vectors; kernels of any kind are not (papers' recipe, "no decay on
  vectors").

  Args:
    params: pytree of arrays.

  Returns:
    The same tree with a bool for each array.
  """
  return jax.tree.map(lambda p: p.ndim > 1, params)


def peak_learning_rate(optim: Config, batch_size: int) -> float:
  """Returns the highest learning rate; linear in the batch where `lr_batch` is set."""
  return optim.lr * batch_size / optim.lr_batch if optim.lr_batch else optim.lr


def warmup_cosine(
  peak: float, *, total: int, warmup: int, start: float, floor: float
) -> optax.Schedule:
  """Linear warm-up from `start` to `peak`, then half a cosine down to `floor`.

  For step s: start + (peak - start) s / warmup while s < warmup, then
  floor + (peak - floor) (1 + cos(pi (s - warmup) / (total - warmup))) / 2. The step after the
  last one would have exactly `floor`.

  Args:
    peak: learning rate at step `warmup`.
    total: number of steps of the whole training.
    warmup: number of warm-up steps, 0 for none.
    start: learning rate of step 0 where there is a warm-up.
    floor: learning rate at step `total`.

  Returns:
    Function from the step (int32 scalar) to the learning rate (float32 scalar).
  """

  def schedule(count):
    step = jnp.asarray(count, jnp.float32)
    rising = start + (peak - start) * step / max(warmup, 1)
    progress = jnp.clip((step - warmup) / max(total - warmup, 1), 0.0, 1.0)
    falling = floor + (peak - floor) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    return jnp.where(step < warmup, rising, falling)

  return schedule


def warmup_steps(peak: float, *, marks: Sequence[int], warmup: int, start: float) -> optax.Schedule:
  """Linear warm-up from `start` to `peak`, which then falls to a tenth at every mark.

  Args:
    peak: learning rate at step `warmup`.
    marks: steps from which the rate is a tenth of what it was.
    warmup: number of warm-up steps, 0 for none.
    start: learning rate of step 0 where there is a warm-up.

  Returns:
    Function from the step (int32 scalar) to the learning rate (float32 scalar).
  """

  def schedule(count):
    step = jnp.asarray(count, jnp.float32)
    rising = start + (peak - start) * step / max(warmup, 1)
    falling = jnp.float32(peak)
    for i, mark in enumerate(marks, 1):
      falling = jnp.where(step < mark, falling, peak * 0.1**i)
    return jnp.where(step < warmup, rising, falling)

  return schedule


def make_schedule(
  optim: Config, *, batch_size: int, steps_per_epoch: float, total: int
) -> optax.Schedule:
  """Builds the learning-rate schedule of a config.

  Args:
    optim: the config's `optim` group.
    batch_size: images a step over all devices.
    steps_per_epoch: images of the training split / batch_size.
    total: number of steps of the whole training.

  Returns:
    Function from the step to the learning rate.
  """
  peak = peak_learning_rate(optim, batch_size)
  warmup = min(round(optim.warmup_epochs * steps_per_epoch), total)
  start = min(optim.warmup_lr, peak)
  if optim.schedule == 'step':
    marks = [round(epoch * steps_per_epoch) for epoch in optim.step_epochs]
    return warmup_steps(peak, marks=marks, warmup=warmup, start=start)
  return warmup_cosine(
    peak,
    total=total,
    warmup=warmup,
    start=start,
    floor=peak if optim.schedule == 'constant' else min(optim.min_lr, peak),
  )


def make_optimizer(
  optim: Config, schedule: optax.Schedule, depths: tuple[int, ...] = ()
) -> optax.GradientTransformation:
  """Builds clip -> AdamW, or clip -> decay -> SGD with momentum (PyTorch's order).

  Args:
    optim: the config's `optim` group.
    schedule: learning rate by step.
    depths: blocks of the four stages, where the learning rate decays by layer.

  Returns:
    An optax transformation; weight decay skips vectors (`decay_mask`).
  """
  clip = optax.clip_by_global_norm(optim.clip_norm) if optim.clip_norm else optax.identity()
  if optim.name == 'adamw':
    rule = optax.adamw(
      schedule,
      b1=optim.b1,
      b2=optim.b2,
      eps=optim.eps,
      weight_decay=optim.weight_decay,
      mask=decay_mask,
    )
  else:
    rule = optax.chain(
      optax.add_decayed_weights(optim.weight_decay, mask=decay_mask),
      optax.sgd(schedule, momentum=optim.momentum or None),
    )
  if optim.layer_decay != 1.0:
    rule = optax.chain(rule, scale_by_layer(optim.layer_decay, depths))
  return _with_standard_promotion(optax.chain(clip, rule))


def _with_standard_promotion(
  optimizer: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """Lets optax mix its int32 step counts with floats where JAX is told to be strict."""

  def update(updates, state, params=None):
    with jax.numpy_dtype_promotion('standard'):
      return optimizer.update(updates, state, params)

  return optax.GradientTransformation(optimizer.init, update)
