"""Losses of detection and segmentation, element by element and in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def binary_cross_entropy(
  logits: Float[Array, '*S'], targets: Float[Array, '*S']
) -> Float[Array, '*S']:
  """Cross entropy of sigmoid(logits) against targets in [0, 1], in nats."""
  logits, targets = logits.astype(jnp.float32), targets.astype(jnp.float32)
  return jnp.maximum(logits, 0) - logits * targets + jnp.log1p(jnp.exp(-jnp.abs(logits)))


def sigmoid_focal_loss(
  logits: Float[Array, '*S'],
  targets: Float[Array, '*S'],
  alpha: float = 0.25,
  gamma: float = 2.0,
) -> Float[Array, '*S']:
  """Cross entropy that looks away from what is right already.

  Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, equation 5.

  Args:
    logits: any shape.
    targets: 0 or 1.
    alpha: weight of the positives, 1 - alpha that of the negatives.
    gamma: power of 1 - p of the true class.

  Returns:
    The loss of each element, in nats.
  """
  logits, targets = logits.astype(jnp.float32), targets.astype(jnp.float32)
  p = jax.nn.sigmoid(logits)
  wrong = p + targets - 2 * p * targets  # 1 - p of the true class
  weight = alpha * targets + (1 - alpha) * (1 - targets)
  return weight * wrong**gamma * binary_cross_entropy(logits, targets)


def smooth_l1(difference: Float[Array, '*S'], beta: float) -> Float[Array, '*S']:
  """|x| - beta / 2, and x^2 / (2 beta) where |x| is under beta; |x| for a beta of 0."""
  size = jnp.abs(difference.astype(jnp.float32))
  if beta <= 0:
    return size
  return jnp.where(size < beta, 0.5 * size * size / beta, size - 0.5 * beta)


def cross_entropy(
  logits: Float[Array, '*S K'], labels: Int[Array, '*S'], ignore: int = -1
) -> Float[Array, '*S']:
  """Cross entropy of whole-number labels, in nats.

  Args:
    logits: of K classes.
    labels: 0..K - 1, or `ignore`.
    ignore: label whose loss is 0.

  Returns:
    The loss of each element.
  """
  logits = logits.astype(jnp.float32)
  there = labels != ignore
  own = jnp.take_along_axis(logits, jnp.where(there, labels, 0)[..., None], axis=-1)[..., 0]
  return jnp.where(there, jax.nn.logsumexp(logits, axis=-1) - own, 0.0)
