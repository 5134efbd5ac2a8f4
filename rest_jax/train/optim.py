"""Optimizers and learning rates of the papers' recipe: schedule, clipping, decay by layer.

Layer-wise decay of the learning rate (the deeper from the head, the smaller the rate) is that of
the authors' code, github.com/wofmanaf/ResT (optim_factory.py, after BEiT's). Layers are numbered
from the stem, 0; each block of a stage and each patch embedding is a layer; the final norm and the
head are the last, L = d1 + d2 + d3 + d4 + 4 for depths d. A parameter of layer i gets decay^(L - i)
times the learning rate, weight decay included. Decay by stage is mmsegmentation's 'stage_wise': the
head 1, stage 4 decay, stage 3 decay^2, ..., the stem decay^5.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from rest_jax.errors import UserError
from rest_jax.train.config import Config

_BACKBONE = 'backbone/'  # where the layers of a detector or segmenter are


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
  floor + (peak - floor) (1 + cos(pi (s - warmup) / (total - warmup))) / 2, computed as the square
  of a sine of the steps that are left, of which float32 leaves the last ones a rate too. The step
  after the last one would have exactly `floor`.

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
    count = jnp.asarray(count, jnp.int32)
    rising = start + (peak - start) * (count.astype(jnp.float32) / max(warmup, 1))
    # Counted down as whole numbers: beyond 2^24 float32 has no odd ones.
    left = (total - count).astype(jnp.float32) / max(total - warmup, 1)
    falling = floor + (peak - floor) * jnp.square(jnp.sin(0.5 * jnp.pi * jnp.clip(left, 0.0, 1.0)))
    return jnp.where(count < warmup, rising, falling)

  return schedule


def warmup_linear(
  peak: float, *, total: int, warmup: int, start: float, floor: float, power: float = 1.0
) -> optax.Schedule:
  """As `warmup_cosine` with a line, or a power of it, down to `floor`: mmsegmentation's 'poly'.

  For step s from the warm-up on: floor + (peak - floor) ((total - s) / (total - warmup))^power.

  Args:
    peak: learning rate at step `warmup`.
    total: number of steps of the whole training.
    warmup: number of warm-up steps, 0 for none.
    start: learning rate of step 0 where there is a warm-up.
    floor: learning rate at step `total`.
    power: of what is left; below 1 the rate stays high for longer.

  Returns:
    Function from the step (int32 scalar) to the learning rate (float32 scalar).
  """

  def schedule(count):
    count = jnp.asarray(count, jnp.int32)
    rising = start + (peak - start) * (count.astype(jnp.float32) / max(warmup, 1))
    left = jnp.clip((total - count).astype(jnp.float32) / max(total - warmup, 1), 0.0, 1.0)
    return jnp.where(count < warmup, rising, floor + (peak - floor) * left**power)

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
    count = jnp.asarray(count, jnp.int32)
    rising = start + (peak - start) * (count.astype(jnp.float32) / max(warmup, 1))
    falling = jnp.float32(peak)
    for i, mark in enumerate(marks, 1):
      falling = jnp.where(count < mark, falling, peak * 0.1**i)
    return jnp.where(count < warmup, rising, falling)

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
  floor = peak if optim.schedule == 'constant' else min(optim.min_lr, peak)
  ends: dict[str, Any] = dict(total=total, warmup=warmup, start=start, floor=floor)
  if optim.schedule == 'linear':
    return warmup_linear(peak, power=optim.power, **ends)
  return warmup_cosine(peak, **ends)


def global_norm(tree) -> jax.Array:
  """The L2 norm over all arrays of a tree, at any scale: its squares neither over- nor underflow.

  Scaled by a power of two, so that ordinary gradients have the norm of the plain formula.

  Args:
    tree: pytree of float arrays.

  Returns:
    A float32 scalar; not finite only where an array is not, or the norm itself is beyond float32.
  """
  leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(tree) if leaf.size]
  if not leaves:
    return jnp.zeros((), jnp.float32)
  largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in leaves]))
  exponent = jnp.clip(jnp.frexp(largest)[1], -120, 120)
  down, up = (jnp.ldexp(jnp.ones((), jnp.float32), sign * exponent) for sign in (-1, 1))
  total = sum(jnp.sum(jnp.square(leaf * down)) for leaf in leaves)
  return jnp.where(jnp.isfinite(largest), jnp.sqrt(jnp.asarray(total)) * up, largest)


def clip_by_norm(most: float) -> optax.GradientTransformation:
  """Scales all gradients down together where their `global_norm` is above `most`.

  As optax's own, whose norm of gradients above 1e19 is infinite, so that it makes zeros of them.
  """

  def clip(updates, params=None):
    del params
    norm = global_norm(updates)
    factor = most / jnp.maximum(norm, most)
    return jax.tree.map(lambda g: g * factor.astype(g.dtype), updates)

  return optax.stateless(clip)


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
  clip = clip_by_norm(optim.clip_norm) if optim.clip_norm else optax.identity()
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
  if optim.stage_decay != 1.0:
    rule = optax.chain(rule, scale_by_stage(optim.stage_decay))
  return _with_standard_promotion(optax.chain(clip, rule))


def _with_standard_promotion(
  optimizer: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """Lets optax mix its int32 step counts with floats where JAX is told to be strict."""

  def update(updates, state, params=None):
    with jax.numpy_dtype_promotion('standard'):
      return optimizer.update(updates, state, params)

  return optax.GradientTransformation(optimizer.init, update)


def layer_id(path: str, depths: tuple[int, ...]) -> int:
  """The number of the layer that a parameter belongs to.

  Args:
    path: such as 'stage2/block0/attn/q/kernel'.
    depths: blocks of the four stages.

  Returns:
    0 for the stem, up to `sum(depths) + 4` for the final norm, the head and whatever else.
  """
  path = path.removeprefix(_BACKBONE)
  if path.startswith('stem/'):
    return 0
  if found := re.match(r'patch_embed(\d)/', path):
    stage = int(found[1])
    return sum(depths[: stage - 1]) + stage - 1
  if found := re.match(r'stage(\d)/block(\d+)/', path):
    stage, block = int(found[1]), int(found[2])
    return sum(depths[: stage - 1]) + block + stage
  return sum(depths) + 4


def depths_of(params: Any) -> tuple[int, ...]:
  """Counts the blocks of the four stages by the names of their parameters.

  Raises:
    UserError: the model has no stages with blocks.
  """
  paths = ['/'.join(path).removeprefix(_BACKBONE) for path in traverse_util.flatten_dict(params)]
  blocks = {found.groups() for path in paths if (found := re.match(r'stage(\d)/(block\d+)/', path))}
  depths = tuple(sum(stage == str(i) for stage, _ in blocks) for i in range(1, 5))
  if not all(depths):
    raise UserError(
      'optim.layer_decay numbers the layers of models with four stages of blocks; this model has '
      f'{", ".join(sorted({path.split("/")[0] for path in paths}))}; set optim.layer_decay=1.0 '
      'and optim.stage_decay=1.0'
    )
  return depths


def check_decay(params: Any, optim: Config) -> None:
  """Raises `UserError` where the rates shall go by layers or stages that a model has not."""
  if optim.layer_decay != 1.0 or optim.stage_decay != 1.0:
    depths_of(params)


def layer_scales(params: Any, decay: float, depths: tuple[int, ...]) -> Any:
  """decay^(L - id) for each parameter, a tree of Python floats like `params`."""
  last = sum(depths) + 4
  flat = traverse_util.flatten_dict(params)
  scales = {path: decay ** (last - layer_id('/'.join(path), depths)) for path in flat}
  return traverse_util.unflatten_dict(scales)


def scale_by_layer(decay: float, depths: tuple[int, ...]) -> optax.GradientTransformation:
  """Multiplies updates by their layers' factors; comes after the learning rate.

  Args:
    decay: factor from a layer to the one below.
    depths: blocks of the four stages; of the whole model, also where parts of it are frozen.

  Returns:
    A transformation without state.
  """

  def scale(updates, params=None):
    del params
    return jax.tree.map(lambda u, s: u * s, updates, layer_scales(updates, decay, depths))

  return optax.stateless(scale)


def stage_id(path: str) -> int:
  """The number of the stage that a parameter belongs to.

  Args:
    path: such as 'backbone/stage2/block0/attn/q/kernel'.

  Returns:
    0 for the stem, 1 to 4 for a stage with its patch embedding, 5 for whatever else: norms of the
    backbone's outputs, its final norm, the heads.
  """
  path = path.removeprefix(_BACKBONE)
  if path.startswith('stem/'):
    return 0
  found = re.match(r'(?:patch_embed|stage)(\d)/', path)
  return int(found[1]) if found else 5


def scale_by_stage(decay: float) -> optax.GradientTransformation:
  """Multiplies updates by decay^(5 - stage); comes after the learning rate.

  Args:
    decay: factor from a stage to the one below.

  Returns:
    A transformation without state.
  """

  def scale(updates, params=None):
    del params
    flat: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(updates)
    scaled = {path: u * decay ** (5 - stage_id('/'.join(path))) for path, u in flat.items()}
    return traverse_util.unflatten_dict(scaled)

  return optax.stateless(scale)
