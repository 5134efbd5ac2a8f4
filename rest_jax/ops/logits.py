"""What logits say: the probabilities of classes, and their logarithms.

The one place that knows what a single logit means: that of a yes against a no, which a sigmoid
reads; a softmax over it would be 1 whatever the image.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def probabilities(logits: Float[Array, '*B K']) -> Float[Array, '*B K']:
  """The softmax over K, the sigmoid of a single logit; finite for any finite logits.

  A compiler may compute logits anew, and with another rounding, for their maximum and for the
  difference to it: at 1e9 that difference is then in the hundreds, up or down. So none goes over
  0, and that of the largest logit is 0.
  """
  if logits.shape[-1] == 1:
    return jax.nn.sigmoid(logits)
  is_top = jax.nn.one_hot(jnp.argmax(logits, -1), logits.shape[-1], dtype=bool)
  below = jnp.minimum(logits - jnp.max(logits, -1, keepdims=True), 0)
  shares = jnp.where(is_top, 1, jnp.exp(below))
  return shares / jnp.sum(shares, -1, keepdims=True)


def log_probabilities(logits: Float[Array, '*B K']) -> Float[Array, '*B K']:
  """The logarithms of `probabilities`, in nats."""
  if logits.shape[-1] == 1:
    return jax.nn.log_sigmoid(logits)
  return jax.nn.log_softmax(logits, axis=-1)
