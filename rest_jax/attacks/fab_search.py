"""FAB's final search: along the line to an adversarial image back to the decision boundary."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, Key

from rest_jax.attacks import losses
from rest_jax.attacks.algorithm import select
from rest_jax.attacks.projections import per_image
from rest_jax.attacks.queries import logits_of

# How far beyond the estimated boundary, relative to the way there: far enough that other batch
# sizes and devices, which round differently, agree.
BEYOND = 2e-4


@functools.partial(jax.jit, static_argnames=('targeted', 'steps'))
def final_search(
  model: Partial,
  images: Float[Array, 'B H W C'],
  adv: Float[Array, 'B H W C'],
  labels: Int[Array, ' B'],
  targets: Int[Array, ' B'],
  keys: Key[Array, ' B'],
  targeted: bool,
  steps: int = 10,
) -> Float[Array, 'B H W C']:
  """The nearest adversarial image on each line from an image to its adversarial one.

  The idea of Croce & Hein, arXiv 1907.02044, section 3.3: the secant of the logit margin, here in
  turn with bisection. On a linear model the first secant is the boundary.

  Args:
    model: images to logits.
    images: the originals.
    adv: adversarial images.
    labels: true classes.
    targets: classes to reach, if targeted.
    keys: PRNG keys, for a random model.
    targeted: whether the targets are wanted; any wrong class otherwise.
    steps: queries after the first two.

  Returns:
    Like `adv`, which it is where no nearer one was found.
  """

  def margin(x):
    logits = logits_of(model, x, keys)
    if targeted:
      return -losses.margin(logits, targets)
    return losses.margin(logits, labels)

  def at(share):
    return images + per_image(share, images) * (adv - images)

  def narrow(step, state):
    low, high, low_margin, high_margin, best = state
    rise = high_margin - low_margin
    secant = low - low_margin * (high - low) / jnp.where(rise > 0, rise, 1.0)
    middle = 0.5 * (low + high)
    share = jnp.where((step % 2 == 0) & (rise > 0), secant * (1 + BEYOND), middle)
    share = jnp.clip(share, low, high)
    tried = at(share)
    value = margin(tried)
    good = value >= least
    return (
      jnp.where(good, low, share),
      jnp.where(good, share, high),
      jnp.where(good, low_margin, value),
      jnp.where(good, value, high_margin),
      select(good & (share < high), tried, best),
    )

  none, all_ = jnp.zeros(labels.shape), jnp.ones(labels.shape)
  before = margin(images)
  # Half of what a point that far beyond the boundary of a linear model has.
  least = 0.5 * BEYOND * jnp.abs(before)
  start = (none, all_, before, margin(adv), adv)
  return lax.fori_loop(0, steps, narrow, start)[4]
