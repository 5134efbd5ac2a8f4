"""Gradients of the training losses on one device, whole or summed over micro-batches.

A gradient function is f(trained, frozen, stats, rows, key) -> ((loss, Aux), gradients): `trained`
and `frozen` are the two parts of the parameters (`freezing.split`), `rows` the images, their
targets and, in free adversarial training, their perturbations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rest_jax.train import freezing
from rest_jax.train.losses import hit_rate, soft_cross_entropy

Rows = tuple[jax.Array, jax.Array, jax.Array | None]
GradientFunction = Callable[..., Any]


class Aux(NamedTuple):
  """What comes out beside the loss.

  Attributes:
    stats: the new batch statistics.
    metrics: float32 scalars, means over the batch: of plain training top1, of adversarial
      training adversarial_loss and adversarial_top1 (and top1 where the images themselves are asked
      for), of denoising psnr, of dense tasks each loss.
    perturbation: that of free adversarial training, moved on; None otherwise.
  """

  stats: Any
  metrics: dict[str, jax.Array]
  perturbation: jax.Array | None = None


def plain_gradients(model: nn.Module) -> GradientFunction:
  """The gradient function of the cross entropy of the images as they are."""

  def loss_fn(trained, frozen, stats, rows, key):
    images, targets, _ = rows
    logits, new = model.apply(
      {'params': freezing.merge(trained, frozen), 'batch_stats': stats},
      images,
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': key},
    )
    loss = jnp.mean(soft_cross_entropy(logits, targets))
    return loss, Aux(new.get('batch_stats', {}), {'top1': hit_rate(logits, targets)})

  return jax.value_and_grad(loss_fn, has_aux=True)


def accumulated(gradients: GradientFunction, pieces: int) -> GradientFunction:
  """Averages a gradient function over micro-batches, one after the other.

  Args:
    gradients: of a micro-batch.
    pieces: how many there are in a batch.

  Returns:
    A gradient function of whole batches; the statistics of the micro-batches follow each other.
  """
  if pieces == 1:
    return gradients

  def summed(trained, frozen, stats, rows, key):
    def split(x):
      return x.reshape((pieces, x.shape[0] // pieces) + x.shape[1:])

    def body(carry, piece):
      stats, total = carry
      (loss, aux), grads = gradients(trained, frozen, stats, *piece)
      total = jax.tree.map(jnp.add, total, (loss, aux.metrics, grads))
      return (aux.stats, total), aux.perturbation

    keys = jax.random.split(key, pieces)
    parts = (jax.tree.map(split, rows), keys)
    first = jax.tree.map(lambda x: x[0], parts)
    (loss, aux), grads = jax.eval_shape(gradients, trained, frozen, stats, *first)
    shapes = (loss, aux.metrics, grads)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (stats, total), moved = jax.lax.scan(body, (stats, zeros), parts)
    loss, measured, grads = jax.tree.map(lambda x: x / pieces, total)
    moved = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), moved)
    return (loss, Aux(stats, measured, moved)), grads

  return summed
