"""Classification losses on soft targets."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


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


def hits_at(logits: Float[Array, 'B K'], labels: Int[Array, ' B'], k: int) -> Bool[Array, ' B']:
  """Whether the class of each example is among the `k` highest logits.

  Ties count against the model: at k = 1 an example is right only where its class is on top alone.

  Args:
    logits: (B, K).
    labels: (B,).
    k: 1 or more.

  Returns:
    bool (B,).
  """
  own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
  return jnp.sum((logits >= own).astype(jnp.int32), axis=-1) <= k


def hit_rate(logits: Float[Array, 'B K'], targets: Float[Array, 'B K']) -> Float[Array, '']:
  """The share of examples whose largest logit is at the largest target, float32 in [0, 1]."""
  return jnp.mean((jnp.argmax(logits, -1) == jnp.argmax(targets, -1)).astype(jnp.float32))


def kl_divergence(logits: Float[Array, 'B K'], others: Float[Array, 'B K']) -> Float[Array, ' B']:
  """KL(softmax(logits) || softmax(others)) of each example, in float32.

  Args:
    logits: (B, K), any floating type; of the distribution that the mean is taken over.
    others: (B, K).

  Returns:
    float32 (B,), in nats, 0 or more up to rounding.
  """
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
  log_q = jax.nn.log_softmax(others.astype(jnp.float32), axis=-1)
  return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def trades_loss(
  natural: Float[Array, 'B K'],
  adversarial: Float[Array, 'B K'],
  targets: Float[Array, 'B K'],
  beta: float,
) -> Float[Array, ' B']:
  """Cross entropy on the image plus beta KL(p(image) || p(perturbed image)), of each example.

  Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy", 2019 (arXiv
  1901.08573), equation 5 with the authors' choice of the surrogate; both terms have a gradient.

  Args:
    natural: logits of the images.
    adversarial: logits of the perturbed images.
    targets: rows sum to 1.
    beta: the paper's 1/lambda.

  Returns:
    float32 (B,), in nats.
  """
  return soft_cross_entropy(natural, targets) + beta * kl_divergence(natural, adversarial)


def mart_loss(
  natural: Float[Array, 'B K'],
  adversarial: Float[Array, 'B K'],
  targets: Float[Array, 'B K'],
  beta: float,
) -> Float[Array, ' B']:
  """Boosted cross entropy plus the KL divergence weighted by how wrong the image is taken.

  Wang et al., "Improving Adversarial Robustness Requires Revisiting Misclassified Examples", 2020,
  equation 11: -log p'_y - log(1 - max_{k != y} p'_k) + beta KL(p || p') (1 - p_y), with p of the
  image and p' of the perturbed one. All factors have a gradient, as in the authors' code; the
  small constants which it adds inside of logarithms are not needed here.

  Args:
    natural: logits of the images.
    adversarial: logits of the perturbed images.
    targets: one-hot rows.
    beta: the paper's lambda.

  Returns:
    float32 (B,), in nats.
  """
  adversarial = adversarial.astype(jnp.float32)
  is_label = targets > 0.5
  others = jnp.where(is_label, -jnp.inf, adversarial)
  rival = jnp.arange(targets.shape[-1])[None] == jnp.argmax(others, -1)[:, None]
  # log(1 - p'_k) without a difference of nearly equal numbers.
  rest = jax.nn.logsumexp(jnp.where(rival, -jnp.inf, adversarial), axis=-1)
  boosted = soft_cross_entropy(adversarial, targets) + jax.nn.logsumexp(adversarial, -1) - rest
  wrong = 1.0 - jnp.sum(jax.nn.softmax(natural.astype(jnp.float32)) * targets, axis=-1)
  return boosted + beta * kl_divergence(natural, adversarial) * wrong
