"""Classification losses on soft targets."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rest_jax.ops.logits import log_probabilities


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


def weigh_classes(
  targets: Float[Array, 'B K'], weights: Float[Array, ' K'], smoothing: float = 0.0
) -> Float[Array, 'B K']:
  """Scales the targets of each example by the weight of its class, and so its cross-entropy.

  What smoothing adds for the other classes does not count as theirs: weighted class by class, as in
  PyTorch's `CrossEntropyLoss`, a rare one would outweigh the label of a frequent one.

  Args:
    targets: (B, K), of `smooth_one_hot`, or mixtures of such with shares that sum to 1.
    weights: (K,).
    smoothing: that the targets were made with.

  Returns:
    float32 (B, K); a mixture has the weight of its shares' mean.
  """
  shares = (targets - smoothing / targets.shape[-1]) / (1.0 - smoothing)
  return targets * jnp.sum(shares * weights[None], axis=-1, keepdims=True)


def soft_cross_entropy(
  logits: Float[Array, 'B K'], targets: Float[Array, 'B K']
) -> Float[Array, ' B']:
  """Cross entropy of each example, -sum_k targets_k log p(logits)_k, in float32.

  p is the softmax, and the sigmoid of a single logit.

  Args:
    logits: (B, K), any floating type.
    targets: (B, K), rows sum to 1.

  Returns:
    float32 (B,), in nats.
  """
  log_probs = log_probabilities(logits.astype(jnp.float32))
  return -jnp.sum(_times(targets, log_probs), axis=-1)


def hits_at(logits: Float[Array, 'B K'], labels: Int[Array, ' B'], k: int) -> Bool[Array, ' B']:
  """Whether the class of each example is among the `k` highest logits.

  Ties count against the model: at k = 1 an example is right only where its class is on top alone,
  so equal logits are no hit for any class. What is not a number is never a hit: neither a class
  whose logit is not finite, nor any class of an example with a NaN or an infinite logit beside it;
  -inf beside it is a class that is ruled out.

  Args:
    logits: (B, K).
    labels: (B,).
    k: 1 or more; from K on every example with numbers for logits is a hit.

  Returns:
    bool (B,).
  """
  own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
  among = jnp.sum((logits >= own).astype(jnp.int32), axis=-1) <= k
  defined = jnp.all(logits < jnp.inf, axis=-1)  # NaN is not below infinity either
  return among & defined & jnp.isfinite(own[:, 0])


def predictions(logits: Float[Array, 'B K'], labels: Int[Array, ' B']) -> Int[Array, ' B']:
  """The class that each example counts as, in agreement with `hits_at` at k = 1.

  The highest logit's; where the label is on top with others, the first of the others.

  Args:
    logits: (B, K).
    labels: (B,).

  Returns:
    int32 (B,).
  """
  own = jnp.arange(logits.shape[-1])[None] == labels[:, None]
  rival = jnp.argmax(jnp.where(own, -jnp.inf, logits), axis=-1)
  # Where nothing is higher than -inf argmax gives the first class, which may be the label itself.
  rival = jnp.where(rival == labels, (labels + 1) % logits.shape[-1], rival)
  return jnp.where(hits_at(logits, labels, 1), labels, rival).astype(jnp.int32)


def hit_rate(logits: Float[Array, 'B K'], targets: Float[Array, 'B K']) -> Float[Array, '']:
  """The share of examples whose largest target's class is a hit, float32 in [0, 1]; see `hits_at`.

  Args:
    logits: (B, K).
    targets: (B, K), rows sum to 1; of equal ones the first counts.
  """
  return jnp.mean(hits_at(logits, jnp.argmax(targets, -1), 1).astype(jnp.float32))


def kl_divergence(logits: Float[Array, 'B K'], others: Float[Array, 'B K']) -> Float[Array, ' B']:
  """KL(softmax(logits) || softmax(others)) of each example, in float32.

  Args:
    logits: (B, K), any floating type; of the distribution that the mean is taken over.
    others: (B, K).

  Returns:
    float32 (B,), in nats, 0 or more; exact to about 1e-4 of itself for near distributions too.
  """
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
  log_q = jax.nn.log_softmax(others.astype(jnp.float32), axis=-1)
  p, d = jnp.exp(log_p), log_q - log_p
  # As sum p (e^d - 1 - d), which is the same because both sum to 1: every term is 0 or more, where
  # those of sum p (-d) nearly cancel for near distributions and leave rounding alone.
  near = jnp.abs(d) < 1.0
  small = jnp.where(near, d, 0.0)
  terms = jnp.where(near, p * (jnp.expm1(small) - small), jnp.exp(log_q) - p - _times(p, d))
  return jnp.sum(terms, axis=-1)


def _times(p: jax.Array, logarithm: jax.Array) -> jax.Array:
  """p log, 0 where p is, whatever the logarithm: p log p goes to 0 with p."""
  there = p > 0
  return jnp.where(there, p * jnp.where(there, logarithm, 0.0), 0.0)


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
  # Not 1 - p_y, of which nothing is left for sure images.
  wrong = jnp.sum(jax.nn.softmax(natural.astype(jnp.float32)) * (1.0 - targets), axis=-1)
  return boosted + beta * kl_divergence(natural, adversarial) * wrong
