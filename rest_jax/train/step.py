"""The training and the evaluation step, in single-program form with `axis_name='batch'`.

Each device runs these functions on its slice of the batch; `rest_jax.train.parallel` maps them.
Images arrive as uint8 and are scaled, augmented and normalised here, on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from rest_jax.data import device
from rest_jax.train.config import Config
from rest_jax.train.losses import smooth_one_hot, soft_cross_entropy
from rest_jax.train.state import TrainState, update_average

AXIS = 'batch'
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def seed_keys(seed: int) -> tuple[jax.Array, jax.Array]:
  """Returns the keys of the initialisation and of the training steps."""
  init, steps = jax.random.split(jax.random.key(seed))
  return init, steps


def to_unit(images: jax.Array) -> jax.Array:
  """Scales uint8 images to float32 in [0, 1]."""
  return images.astype(jnp.float32) / 255.0


def normalise(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
  """Removes the channel means and divides by the channel standard deviations.

  Args:
    images: float32 (B, H, W, 3) in [0, 1].
    mean: three channel means.
    std: three channel standard deviations.

  Returns:
    float32 (B, H, W, 3).
  """
  shape = (1, 1, 1, 3)
  centred = images - jnp.asarray(mean, jnp.float32).reshape(shape)
  return centred / jnp.asarray(std, jnp.float32).reshape(shape)


def augment_on_device(
  key: jax.Array, batch: Batch, config: Config, num_classes: int
) -> tuple[jax.Array, jax.Array]:
  """Random erasing, then mixup or cutmix (timm's order).

  Args:
    key: random key of this step and device.
    batch: 'image' uint8 (B, H, W, 3), 'label' int32 (B,).
    config: the whole experiment configuration.
    num_classes: K.

  Returns:
    Images float32 (B, H, W, 3) in [0, 1] and targets float32 (B, K).
  """
  augment, mean, std = config.augment, tuple(config.data.mean), tuple(config.data.std)
  images = to_unit(batch['image'])
  targets = smooth_one_hot(batch['label'], num_classes, augment.label_smoothing)
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


def _micro_gradients(model: nn.Module) -> Callable[..., Any]:
  """Returns f(params, stats, images, targets, key) -> ((loss, (stats, hits)), gradients)."""

  def loss_fn(params, stats, images, targets, key):
    logits, new = model.apply(
      {'params': params, 'batch_stats': stats},
      images,
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': key},
    )
    loss = jnp.mean(soft_cross_entropy(logits, targets))
    hits = jnp.mean((jnp.argmax(logits, -1) == jnp.argmax(targets, -1)).astype(jnp.float32))
    return loss, (new.get('batch_stats', {}), hits)

  return jax.value_and_grad(loss_fn, has_aux=True)


def _accumulated_gradients(model: nn.Module, pieces: int) -> Callable[..., Any]:
  """Returns the gradient function averaged over `pieces` micro-batches, one after the other."""
  gradients = _micro_gradients(model)
  if pieces == 1:
    return gradients

  def accumulated(params, stats, images, targets, key):
    def split(x):
      return x.reshape((pieces, x.shape[0] // pieces) + x.shape[1:])

    def body(carry, piece):
      stats, total = carry
      (loss, (stats, hits)), grads = gradients(params, stats, *piece)
      return (stats, jax.tree.map(jnp.add, total, (loss, hits, grads))), None

    zero = jnp.zeros((), jnp.float32)
    start = (stats, (zero, zero, jax.tree.map(jnp.zeros_like, params)))
    keys = jax.random.split(key, pieces)
    (stats, total), _ = jax.lax.scan(body, start, (split(images), split(targets), keys))
    loss, hits, grads = jax.tree.map(lambda x: x / pieces, total)
    return (loss, (stats, hits)), grads

  return accumulated


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
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """Builds the training step of one device.

  Args:
    model: Linen module; with `bn_axis_name=AXIS` where batch norm is synchronised.
    optimizer: applied to the gradient averaged over the devices.
    schedule: learning rate by step, for the metrics.
    config: the whole experiment configuration.
    num_classes: K.

  Returns:
    Function (state, batch) -> (state, metrics) to be mapped over `AXIS`. The batch is this
    device's slice: 'image' uint8 (b, H, W, 3), 'label' int32 (b,). The metrics are float32
    scalars equal on all devices: loss, top1 (fraction), grad_norm (before clipping), lr.
  """
  gradients = _accumulated_gradients(model, config.train.accumulate)

  def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    _, key = seed_keys(config.seed)
    key = jax.random.fold_in(key, state.step)
    key = jax.random.fold_in(key, jax.lax.axis_index(AXIS))
    augment_key, dropout_key = jax.random.split(key)
    images, targets = augment_on_device(augment_key, batch, config, num_classes)
    images = normalise(images, config.data.mean, config.data.std)

    (loss, (stats, hits)), grads = gradients(
      state.params, state.batch_stats, images, targets, dropout_key
    )
    loss, hits, grads = jax.lax.pmean((loss, hits, grads), AXIS)
    if not config.train.sync_bn:
      stats = _mean_statistics(stats)

    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema is not None:
      new = {'params': params, 'batch_stats': stats}
      ema = update_average(ema, new, config.train.ema)
    metrics = {
      'loss': loss,
      'top1': hits,
      'grad_norm': optax.tree.norm(grads),
      'lr': schedule(state.step),
    }
    return TrainState(state.step + 1, params, stats, opt_state, ema), metrics

  return step


def make_eval_step(model: nn.Module, config: Config) -> Callable[[Any, Batch, Metrics], Metrics]:
  """Builds the evaluation step of one device.

  Args:
    model: Linen module without a batch-norm axis.
    config: the whole experiment configuration.

  Returns:
    Function (variables, batch, totals) -> totals to be mapped over `AXIS`. The batch has a bool
    'mask' (b,), False for padding. The totals are sums over all real examples seen so far:
    count, top1, top5 (int32) and loss (float32).
  """

  def step(variables: Any, batch: Batch, totals: Metrics) -> Metrics:
    images = normalise(to_unit(batch['image']), config.data.mean, config.data.std)
    logits = jnp.asarray(model.apply(variables, images, train=False), jnp.float32)
    mask, labels = batch['mask'], batch['label']
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    # Ties count against the model: an example is right only where its class is on top alone.
    rank = jnp.sum((logits >= own).astype(jnp.int32), axis=-1) - 1
    losses = soft_cross_entropy(logits, smooth_one_hot(labels, logits.shape[-1]))
    sums = {
      'count': jnp.sum(mask.astype(jnp.int32)),
      'top1': jnp.sum((mask & (rank < 1)).astype(jnp.int32)),
      'top5': jnp.sum((mask & (rank < 5)).astype(jnp.int32)),
      'loss': jnp.sum(jnp.where(mask, losses, 0.0)),
    }
    return jax.tree.map(jnp.add, totals, jax.lax.psum(sums, AXIS))

  return step
