"""The training step, in single-program form with `axis_name='batch'`.

Each device runs it on its slice of the batch; `rest_jax.train.parallel` maps it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from rest_jax.train import freezing
from rest_jax.train.config import Config
from rest_jax.train.gradients import accumulated
from rest_jax.train.losses import weigh_classes
from rest_jax.train.optim import global_norm
from rest_jax.train.parallel import AXIS
from rest_jax.train.purpose import purpose_of
from rest_jax.train.state import TrainState, seed_keys, update_average

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def _mean_statistics(stats: Any) -> Any:
  """Averages per-device statistics so that the state stays replicated; counts are equal."""
  return jax.tree.map(
    lambda x: jax.lax.pmean(x, AXIS) if jnp.issubdtype(x.dtype, jnp.floating) else x, stats
  )


def make_train_step(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  config: Config,
  num_classes: int,
  class_weights: Sequence[float] | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """Builds the training step of one device.

  Args:
    model: Linen module; with `bn_axis_name=AXIS` where batch norm is synchronised.
    optimizer: applied to the gradient averaged over the devices.
    schedule: learning rate by step, for the metrics.
    config: the whole experiment configuration.
    num_classes: K.
    class_weights: K factors of the loss of the classes' images.

  Returns:
    Function (state, batch) -> (state, metrics) to be mapped over `AXIS`. The batch is this
    device's slice: 'image' uint8 (b, H, W, 3), 'label' int32 (b,), or one of
    `DenseTrainBatches`. The metrics are float32 scalars equal on all devices: loss, grad_norm
    (before clipping), lr, and those of the loss (`gradients.Aux`).
  """
  update = _make_update(model, optimizer, config)
  purpose = purpose_of(config)

  def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    _, key = seed_keys(config.seed)
    key = jax.random.fold_in(key, state.step)
    key = jax.random.fold_in(key, jax.lax.axis_index(AXIS))
    augment_key, loss_key = jax.random.split(key)
    rows = (model, state.variables(), batch, augment_key)
    images, targets = purpose.inputs(config, num_classes, *rows)
    if class_weights is not None:
      weights = jnp.asarray(class_weights, jnp.float32)
      targets = weigh_classes(targets, weights, config.augment.label_smoothing)
    new, metrics = update(state, images, targets, loss_key)
    metrics['lr'] = jnp.asarray(schedule(state.step))
    return dataclasses.replace(new, step=state.step + 1), metrics

  return step


def _make_update(
  model: nn.Module, optimizer: optax.GradientTransformation, config: Config
) -> Callable[..., tuple[TrainState, Metrics]]:
  """Returns f(state, images, targets, key) -> (state, metrics): one update, or several."""
  gradients = accumulated(purpose_of(config).gradients(model, config), config.train.accumulate)

  def update(state, images, targets, key, perturbation=None):
    trained, frozen = freezing.split(state.params, config.optim.freeze)
    fixed = freezing.frozen_modules(state.params, config.optim.freeze)
    rows = (images, targets, perturbation)
    with freezing.evaluating(fixed):
      (loss, aux), grads = gradients(trained, frozen, state.batch_stats, rows, key)
    loss, measured, grads = jax.lax.pmean((loss, aux.metrics, grads), AXIS)
    stats = aux.stats if config.train.sync_bn else _mean_statistics(aux.stats)
    stats = freezing.keep(stats, state.batch_stats, fixed)

    updates, opt_state = optimizer.update(grads, state.opt_state, trained)
    params = freezing.merge(optax.apply_updates(trained, updates), frozen)
    ema = state.ema
    if ema is not None:
      values = {'params': params, 'batch_stats': stats}
      ema = _averaged(ema, values, config, fixed, state.step)
    new = dataclasses.replace(state, params=params, batch_stats=stats, opt_state=opt_state, ema=ema)
    metrics = {'loss': loss, **measured, 'grad_norm': global_norm(grads)}
    return new, metrics, aux.perturbation

  def once(state, images, targets, key):
    return update(state, images, targets, key)[:2]

  def replayed(state, images, targets, key):
    def replay(state, key):
      new, metrics, moved = update(state, images, targets, key, state.perturbation)
      return dataclasses.replace(new, perturbation=moved), metrics

    keys = jax.random.split(key, config.adversarial.replays)
    state, metrics = jax.lax.scan(replay, state, keys)
    return state, jax.tree.map(jnp.mean, metrics)

  return replayed if config.adversarial.kind == 'free' else once


def _averaged(
  ema: Any, new: Any, config: Config, fixed: frozenset[freezing.Path], step: jax.Array
) -> Any:
  """The moving average after an update; what is frozen is taken as it is."""
  average = update_average(ema, new, config.train.ema, step)
  trained, _ = freezing.split(average['params'], config.optim.freeze)
  _, frozen = freezing.split(new['params'], config.optim.freeze)
  stats = freezing.keep(average['batch_stats'], new['batch_stats'], fixed)
  return {'params': freezing.merge(trained, frozen), 'batch_stats': stats}
