"""Which way and how far to step along a gradient, for each norm."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rest_jax.attacks.projections import kth_smallest, normalize, per_image, total
from rest_jax.attacks.threat import Norm


def usable(gradient: jax.Array) -> jax.Array:
  """The gradient with 0 for what is NaN or infinite: no step goes there."""
  return jnp.where(jnp.isfinite(gradient), gradient, 0.0)


def ascent(gradient: jax.Array, norm: Norm, length: jax.Array | float) -> jax.Array:
  """A step uphill of norm `length`: along the sign (Linf) or the gradient (L2).

  L1: equal amounts along the signs of the largest 5 % of the gradient, as in Tramer & Boneh,
  "Adversarial training and robustness for multiple perturbations", 2019, section 4.

  Args:
    gradient: (B, ...).
    norm: which.
    length: a scalar or (B,).

  Returns:
    Like `gradient`; zeros for an image without gradient.
  """
  length = per_image(length, gradient)
  if norm == 'linf':
    return length * jnp.sign(gradient)
  if norm == 'l2':
    return length * normalize(gradient, 'l2')
  return length * sparse_sign(gradient, jnp.full(gradient.shape[:1], 0.05))


def sparse_sign(gradient: jax.Array, share: jax.Array) -> jax.Array:
  """The signs of the largest part of the gradient, scaled to L1 norm 1.

  Croce & Hein, "Mind the box", 2021, section 4.

  Args:
    gradient: (B, ...).
    share: of the values, from 0 to 1, (B,); equals of the smallest one taken are taken too.

  Returns:
    Like `gradient`.
  """
  size = jnp.abs(gradient).reshape(gradient.shape[0], -1)
  count = size.shape[1]
  rank = jnp.clip((1 - share) * count, 0, count - 1).astype(jnp.int32)
  least = per_image(kth_smallest(size, rank), gradient)
  chosen = jnp.where(jnp.abs(gradient) >= least, jnp.sign(gradient), 0.0)
  return chosen / jnp.maximum(total(jnp.abs(chosen)), 1.0)
