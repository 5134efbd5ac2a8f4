"""Classification losses on soft targets."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def smooth_one_hot(
  labels: Int[Array, ' B'], num_classes: int, smoothing: float = 0.0
) -> Float[Array, 'B K']:
  """Turns labels into target distributions with label smoothing.

  Szegedy et al. 2016 (arXiv 1512.00567), section 7: the true class gets
  1 - smoothing + smoothing / K, every other one smoothing / K.

  Args:
    labels: int32 (B,), values 0..K-1.
    num_classes: K.
    smoothing: probability mass spread over all K classes, in [0, 1).

  Returns:
    float32 (B, K), rows sum to 1.
  """
  hot = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
  return hot * (1.0 - smoothing) + smoothing / num_classes


def soft_cross_entropy(
  logits: Float[Array, 'B K'], targets: Float[Array, 'B K']
) -> Float[Array, ' B']:
  """Cross entropy of each example, -sum_k targets_k log softmax(logits)_k, in float32.

  Args:
    logits: (B, K), any floating type.
    targets: (B, K), rows sum to 1.

  Returns:
    float32 (B,), in nats.
  """
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
  return -jnp.sum(targets * log_probs, axis=-1)
