"""Losses of attacks: of each image, to be maximised; logits (B, K), labels (B,) to (B,)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rest_jax.errors import UserError

# How many classes each needs.
MIN_CLASSES = {
  'ce': 2,
  'ce_targeted': 2,
  'margin': 2,
  'margin_targeted': 2,
  'dlr': 3,
  'dlr_targeted': 4,
}


def pick(logits: jax.Array, classes: jax.Array) -> jax.Array:
  """logits[i, classes[i]], (B,)."""
  # A comparison instead of a gather: its gradient is no scatter.
  chosen = jnp.arange(logits.shape[1])[None] == classes[:, None]
  return jnp.sum(jnp.where(chosen, logits, 0.0), axis=1)


def largest(logits: jax.Array, count: int) -> tuple[jax.Array, ...]:
  """The `count` largest of each row in falling order, (B,) each; equals count one by one."""
  found, rest = [], jax.lax.stop_gradient(logits)
  for _ in range(count):
    index = jnp.argmax(rest, axis=1)
    found.append(pick(logits, index))
    rest = jnp.where(jnp.arange(logits.shape[1])[None] == index[:, None], -jnp.inf, rest)
  return tuple(found)


def class_of_rank(logits: jax.Array, rank: jax.Array | int) -> jax.Array:
  """The class with the rank-th largest logit, 0 for the predicted one: int32 (B,).

  Args:
    logits: (B, K).
    rank: from 0 to K - 1, a scalar or (B,).
  """
  order = jnp.argsort(-logits, axis=1)
  rank = jnp.broadcast_to(jnp.asarray(rank, jnp.int32), logits.shape[:1])
  return jnp.take_along_axis(order, rank[:, None], axis=1)[:, 0].astype(jnp.int32)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """-log softmax(logits)[label]."""
  return jax.nn.logsumexp(logits, axis=1) - pick(logits, labels)


def margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Largest logit of another class less the label's: positive where the image is misclassified."""
  own = jnp.arange(logits.shape[1])[None] == labels[:, None]
  return jnp.max(jnp.where(own, -jnp.inf, logits), axis=1) - pick(logits, labels)


def dlr(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Difference of logits ratio: Croce & Hein, AutoAttack (2020), equation 6."""
  first, second, third = largest(logits, 3)
  other = jnp.where(jnp.argmax(logits, axis=1) == labels, second, first)
  return -(pick(logits, labels) - other) / (first - third + 1e-12)


def dlr_targeted(logits: jax.Array, labels: jax.Array, targets: jax.Array) -> jax.Array:
  """Targeted difference of logits ratio: Croce & Hein, AutoAttack (2020), equation 7."""
  first, _, third, fourth = largest(logits, 4)
  gap = pick(logits, labels) - pick(logits, targets)
  return -gap / (first - 0.5 * (third + fourth) + 1e-12)


def loss_of(
  name: str, logits: jax.Array, labels: jax.Array, targets: jax.Array | None
) -> jax.Array:
  """One of `MIN_CLASSES` by its name; the targeted ones rise as the target does.

  Args:
    name: which.
    logits: float32 (B, K).
    labels: int32 (B,).
    targets: int32 (B,), for the targeted losses.

  Returns:
    float32 (B,).

  Raises:
    UserError: an unknown name, or no targets for a targeted loss.
  """
  plain = {'ce': cross_entropy, 'margin': margin, 'dlr': dlr}
  if name in plain:
    return plain[name](logits, labels)
  if name not in MIN_CLASSES:
    raise UserError(f'unknown loss {name!r}; there are {", ".join(MIN_CLASSES)}')
  if targets is None:
    raise UserError(f'the loss {name!r} needs targets, one class an image')
  if name == 'ce_targeted':
    return -cross_entropy(logits, targets)
  if name == 'margin_targeted':
    return -margin(logits, targets)
  return dlr_targeted(logits, labels, targets)


def fooled(
  logits: jax.Array, labels: jax.Array, targets: jax.Array | None, targeted: bool
) -> jax.Array:
  """Whether each image is an attacker's success: (B,) bool. Logits that are NaN are none."""
  prediction = jnp.argmax(logits, axis=1)
  reached = prediction == targets if targeted else prediction != labels
  return reached & ~jnp.any(jnp.isnan(logits), axis=1)
