"""The inner maximisation of adversarial training: pure, for use inside another compiled step."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from rest_jax.attacks import projections
from rest_jax.attacks.directions import ascent, usable
from rest_jax.attacks.queries import image_keys
from rest_jax.attacks.threat import Norm


def pgd_delta(
  loss_fn: Callable[[jax.Array], jax.Array],
  images: jax.Array,
  key: jax.Array,
  norm: Norm,
  eps: jax.Array | float,
  step_size: jax.Array | float,
  steps: int,
  random_start: bool = True,
  start: jax.Array | None = None,
) -> jax.Array:
  """Projected gradient ascent on a loss.

  Madry et al., "Towards deep learning models resistant to adversarial attacks", 2018, section 2.1.
  With steps = 1, a random start and step_size = 1.25 eps it is the fast training of Wong et al.,
  "Fast is better than free", 2020. No gradient flows through the result. Inside `shard_map`, fold
  the device's index into the key first.

  Args:
    loss_fn: images (B, ...) to the loss of each (B,), to be maximised.
    images: float32 (B, ...) in [0, 1].
    key: PRNG key; image i uses `fold_in(key, i)`.
    norm: 'linf', 'l2' or 'l1'.
    eps: radius, a scalar or (B,).
    step_size: length of a step in the norm, a scalar or (B,).
    steps: gradients, at least 0.
    random_start: begin at a point drawn uniformly from the ball, at the images otherwise.
    start: a perturbation (B, ...) to begin with instead; it is projected first.

  Returns:
    The perturbation (B, ...): in the ball and such that images + it is in [0, 1], to rounding.
  """
  images = lax.stop_gradient(images)
  delta = jnp.zeros_like(images)
  if start is not None:
    delta = projections.project(lax.stop_gradient(start), images, norm, eps)
  elif random_start:
    keys = image_keys(key, images.shape[0])
    delta = projections.random_start(keys, images, norm, eps)

  def climb(_, delta):
    gradient = usable(jax.grad(lambda d: jnp.sum(loss_fn(images + d)))(delta))
    return projections.project(delta + ascent(gradient, norm, step_size), images, norm, eps)

  return lax.stop_gradient(lax.fori_loop(0, steps, climb, delta))
