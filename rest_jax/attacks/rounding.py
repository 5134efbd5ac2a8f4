"""Returned images keep to the ball and to [0, 1] exactly, whatever was rounded on the way."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rest_jax.attacks.projections import per_image
from rest_jax.attacks.threat import Norm

_TINY = 1.2e-38  # the smallest normal float32: a radius below it is 0
_ULP = 2.0**-24  # relative error of one float32 operation


def finish(adv: jax.Array, images: jax.Array, norm: Norm, eps: jax.Array | float) -> jax.Array:
  """Takes back what rounding added: in real numbers, |result - images| <= eps and 0 <= result <= 1.

  Linf is exact to the ulp. For L2 and L1 a perturbation within the rounding error of its norm's
  sum (some 1e-6 of eps for 32x32x3) of the surface is scaled to just inside. So an attack that
  evaluates what `finish` gave can return it as it is.

  Args:
    adv: float32 (B, ...), in the ball up to rounding.
    images: float32 (B, ...) in [0, 1].
    norm: of the ball.
    eps: its radius, a scalar or (B,); infinity for none.

  Returns:
    Like `adv`; `images` where the radius is 0.
  """
  eps = per_image(eps, adv)
  adv = jnp.clip(adv, 0.0, 1.0)
  delta = adv - images
  if norm == 'linf':
    shorter = jnp.clip(delta, -eps, eps)
    adv = jnp.where(jnp.abs(delta) < eps, adv, _add_towards_zero(images, shorter))
  else:
    margin = _ULP * (sum(adv.shape[1:]) + 8)
    ratio = _ratio(delta, norm, eps)
    scaled = _add_towards_zero(images, delta * ((1 - 2 * margin) / jnp.maximum(ratio, 0.5)))
    adv = jnp.where(ratio > 1 - margin, scaled, adv)
  return jnp.where(eps >= _TINY, adv, images)


def _ratio(delta: jax.Array, norm: Norm, eps: jax.Array) -> jax.Array:
  """Norm over eps, (B, 1, ...), with a relative error below `margin`.

  Axis after axis, so that no chain of additions is longer than a side. The maximum between them
  keeps the compiler from merging the sums into one.
  """
  size = jnp.abs(delta / jnp.maximum(eps, _TINY))
  size = jnp.square(size) if norm == 'l2' else size
  for axis in range(1, size.ndim):
    size = jnp.maximum(jnp.sum(size, axis=axis, keepdims=True), 1e-37)
  return jnp.sqrt(size) if norm == 'l2' else size


def _add_towards_zero(x: jax.Array, delta: jax.Array) -> jax.Array:
  """x + delta, rounded such that it is never further from x than delta is long."""
  added = x + delta
  # Knuth's two-sum: the exact sum is added + error.
  back = added - x
  error = (x - (added - back)) + (delta - back)
  return jnp.where(error * jnp.sign(delta) < 0, jnp.nextafter(added, x), added)
