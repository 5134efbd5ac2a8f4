"""The training and the evaluation step, in single-program form with `axis_name='batch'`.

Each device runs these functions on its slice of the batch; `rest_jax.train.parallel` maps them.
Images arrive as uint8 and are scaled, augmented and normalised here, on the device.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from rest_jax.data import device
from rest_jax.data.device import normalise, to_unit
from rest_jax.train import dense, freezing
from rest_jax.train.adversarial import adversarial_gradients, attack_for_evaluation
from rest_jax.train.config import Config
from rest_jax.train.denoising import denoising_gradients, denoising_sums
from rest_jax.train.gradients import GradientFunction, accumulated, plain_gradients
from rest_jax.train.losses import hits_at, smooth_one_hot, soft_cross_entropy
from rest_jax.train.optim import global_norm
from rest_jax.train.saliency import blur_background
from rest_jax.train.state import TrainState, update_average
from rest_jax.train.totals import add, note_outputs

AXIS = 'batch'
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def seed_keys(seed: int) -> tuple[jax.Array, jax.Array]:
  """Returns the keys of the initialisation and of the training steps."""
  init, steps = jax.random.split(jax.random.key(seed))
  return init, steps


def augment_on_device(
  key: jax.Array,
  batch: Batch,
  config: Config,
  num_classes: int,
  classify: Callable[[jax.Array], jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Group-CAM's blurring, random erasing, then mixup or cutmix (timm's order).

  Args:
    key: random key of this step and device.
    batch: 'image' uint8 (B, H, W, 3), 'label' int32 (B,).
    config: the whole experiment configuration.
    num_classes: K.
    classify: images in [0, 1] to logits, what Group-CAM explains; needed where it is on.

  Returns:
    Images float32 (B, H, W, 3) in [0, 1] and targets float32 (B, K).
  """
  augment, mean, std = config.augment, tuple(config.data.mean), tuple(config.data.std)
  images = to_unit(batch['image'])
  targets = smooth_one_hot(batch['label'], num_classes, augment.label_smoothing)
  if augment.group_cam and classify is not None:
    images = blur_background(classify, images, batch['label'], augment)
  erase_key, mix_key = jax.random.split(key)
  if augment.erasing:
    images = device.random_erasing(erase_key, images, augment.erasing, mean=mean, std=std)
  if augment.mixup or augment.cutmix:
    images, targets = device.mixup_cutmix(
      mix_key,
      images,
      targets,
      mixup_alpha=augment.mixup,
      cutmix_alpha=augment.cutmix,
      switch_prob=augment.switch_prob,
      prob=augment.mix_prob,
    )
  return images, targets


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
    class_weights: K factors of the targets, and so of the classes' terms of the loss.

  Returns:
    Function (state, batch) -> (state, metrics) to be mapped over `AXIS`. The batch is this
    device's slice: 'image' uint8 (b, H, W, 3), 'label' int32 (b,), or one of
    `DenseTrainBatches`. The metrics are float32 scalars equal on all devices: loss, grad_norm
    (before clipping), lr, and those of the loss (`gradients.Aux`).
  """
  update = _make_update(model, optimizer, config)
  apply = functools.partial(_logits, model, config)

  def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    _, key = seed_keys(config.seed)
    key = jax.random.fold_in(key, state.step)
    key = jax.random.fold_in(key, jax.lax.axis_index(AXIS))
    augment_key, loss_key = jax.random.split(key)
    classify = Partial(apply, state.variables())
    if dense.kind_of(config):
      images, targets = dense.inputs(batch, config)
    else:
      images, targets = augment_on_device(augment_key, batch, config, num_classes, classify)
      if class_weights is not None:
        targets = targets * jnp.asarray(class_weights, jnp.float32)[None]
      if config.adversarial.kind:
        images = jnp.clip(images, 0.0, 1.0)  # the noise of random erasing goes beyond
      else:
        images = normalise(images, config.data.mean, config.data.std)
    new, metrics = update(state, images, targets, loss_key)
    metrics['lr'] = jnp.asarray(schedule(state.step))
    return dataclasses.replace(new, step=state.step + 1), metrics

  return step


def _make_update(
  model: nn.Module, optimizer: optax.GradientTransformation, config: Config
) -> Callable[..., tuple[TrainState, Metrics]]:
  """Returns f(state, images, targets, key) -> (state, metrics): one update, or several."""
  gradients = _make_gradients(model, config)

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


def _make_gradients(model: nn.Module, config: Config) -> GradientFunction:
  """Builds the gradient function of the config's loss, averaged over its micro-batches.

  Its images are normalised, but in [0, 1] for adversarial losses, which perturb pixels. Loss and
  gradients are means over all rows.
  """
  kind, pieces = config.adversarial.kind, config.train.accumulate
  if dense.kind_of(config):
    return accumulated(dense.gradients(model), pieces)
  if config.denoise.noise:
    return accumulated(denoising_gradients(model, config), pieces)
  of_batch = adversarial_gradients(model, config) if kind else plain_gradients(model)
  return accumulated(of_batch, pieces)


def _averaged(
  ema: Any, new: Any, config: Config, fixed: frozenset[freezing.Path], step: jax.Array
) -> Any:
  """The moving average after an update; what is frozen is taken as it is."""
  average = update_average(ema, new, config.train.ema, step)
  trained, _ = freezing.split(average['params'], config.optim.freeze)
  _, frozen = freezing.split(new['params'], config.optim.freeze)
  stats = freezing.keep(average['batch_stats'], new['batch_stats'], fixed)
  return {'params': freezing.merge(trained, frozen), 'batch_stats': stats}


def make_eval_step(model: nn.Module, config: Config) -> Callable[[Any, Batch, Metrics], Metrics]:
  """Builds the evaluation step of one device.

  Args:
    model: Linen module without a batch-norm axis.
    config: the whole experiment configuration.

  Returns:
    Function (variables, batch, totals) -> totals to be mapped over `AXIS`. The batch has a bool
    'mask' (b,), False for padding. The totals are sums over all real examples seen so far:
    count, top1, top5 (int32) and loss (float32 in two parts, `totals.add`); robust_top1 (int32)
    where `config.adversarial.eval_steps` is set: right before and after the attack. Of a model that
    takes noise out of images (`config.denoise.noise`) they are `denoising_sums`'. Outputs that are
    not finite are counted (`totals.note_outputs`) and no hits. `evaluate.zero_totals` begins them.
  """

  def step(variables: Any, batch: Batch, totals: Metrics) -> Metrics:
    def classify(images):
      return jnp.asarray(_logits(model, config, variables, images), jnp.float32)

    images, mask, labels = to_unit(batch['image']), batch['mask'], batch['label']
    logits = classify(images)
    losses = soft_cross_entropy(logits, smooth_one_hot(labels, logits.shape[-1]))
    sums = {
      'count': jnp.sum(mask.astype(jnp.int32)),
      'top1': jnp.sum((mask & hits_at(logits, labels, 1)).astype(jnp.int32)),
      'top5': jnp.sum((mask & hits_at(logits, labels, 5)).astype(jnp.int32)),
      'loss': jnp.sum(jnp.where(mask, losses, 0.0)),
    }
    outputs = [logits]
    if config.adversarial.eval_steps:
      keys = _image_keys(config.seed, totals['count'], labels.shape[0])
      attacked = classify(attack_for_evaluation(classify, images, labels, keys, config))
      robust = mask & hits_at(logits, labels, 1) & hits_at(attacked, labels, 1)
      sums['robust_top1'] = jnp.sum(robust.astype(jnp.int32))
      outputs.append(attacked)
    return _added(totals, sums, outputs, mask)

  def denoise(variables: Any, batch: Batch, totals: Metrics) -> Metrics:
    keys = _image_keys(config.seed, totals['count'], batch['mask'].shape[0])
    batch = batch | {'image': to_unit(batch['image'])}
    sums, outputs = denoising_sums(model, config, variables, batch, keys)
    return _added(totals, sums, [outputs], batch['mask'])

  return denoise if config.denoise.noise else step


def _added(totals: Metrics, sums: Metrics, outputs: list[jax.Array], mask: jax.Array) -> Metrics:
  """The totals with this batch's sums of every device."""
  new = {name: add(totals[name], value) for name, value in jax.lax.psum(sums, AXIS).items()}
  return totals | new | note_outputs(totals, outputs, mask, AXIS)


def _logits(model: nn.Module, config: Config, variables: Any, images: jax.Array) -> jax.Array:
  """Logits of images in [0, 1], in evaluation mode."""
  images = normalise(images, config.data.mean, config.data.std)
  return jnp.asarray(model.apply(variables, images, train=False))


def _image_keys(seed: int, seen: jax.Array, rows: int) -> jax.Array:
  """A key an image, by its place in the split: the same for any number of devices."""
  _, key = seed_keys(seed)
  places = seen + jax.lax.axis_index(AXIS) * rows + jnp.arange(rows, dtype=jnp.int32)
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, places)
