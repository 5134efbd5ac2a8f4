"""Total variation denoising."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from rest_jax.defend.denoise.denoisers import Denoiser, check_positive, in_pixels, register, step
from rest_jax.inputs import check_count

# 1 / (2 * number of axes): the step that is known to converge.
_STEP = 0.25
_NONE = 1e-15  # a weight of nothing; a larger floor would be a weight for faint images


@register(
  'total_variation',
  family='spatial',
  strength='weight of the total variation against fidelity, up to 0.2',
  source='Chambolle, 2004; skimage.restoration.denoise_tv_chambolle',
)
def total_variation(strength: float, weight: float = 0.2, iterations: int = 50) -> Denoiser:
  """argmin_u |u - x|^2 / 2 + strength * weight * TV(u), for each channel by itself.

  Chambolle's iteration on the dual variable, a fixed number of times: the same as
  `denoise_tv_chambolle(eps=0, max_num_iter=iterations, channel_axis=-1)`, whose first iteration
  only measures. A rule that stops early would make an image's outcome depend on its batch.

  Args:
    strength: from 0 to 1.
    weight: at strength 1.
    iterations: one or more.
  """
  check_positive('weight', weight)
  check_count('iterations', iterations)
  options = {'weight': float(weight), 'iterations': iterations}
  return in_pixels('total_variation', strength, step(_filter, **options))


def _filter(images: jax.Array, strength: jax.Array, *, weight: float, iterations: int) -> jax.Array:
  scale = _STEP / jnp.maximum(strength * weight, _NONE)
  dual = jnp.zeros_like(images), jnp.zeros_like(images)

  # For derivatives, states are kept at the square root of the steps and found anew between them.
  def several(dual, count: int):
    return lax.scan(lambda d, _: (_iterate(images, d, scale), None), dual, None, length=count)[0]

  updates = iterations - 1
  length = max(1, round(updates**0.5))
  dual, _ = lax.scan(
    jax.checkpoint(lambda d, _: (several(d, length), None)), dual, None, length=updates // length
  )
  dual = several(dual, updates % length)
  return images + _divergence(*dual)


def _iterate(images: jax.Array, dual: tuple[jax.Array, jax.Array], scale: jax.Array):
  out = images + _divergence(*dual)
  down, right = _difference(out, 1), _difference(out, 2)
  square = down * down + right * right
  # The root's derivative is infinite at 0, where nothing changes.
  flat = square == 0
  norm = jnp.where(flat, 0.0, jnp.sqrt(jnp.where(flat, 1.0, square)))
  shrink = 1 + scale * norm
  return (dual[0] - _STEP * down) / shrink, (dual[1] - _STEP * right) / shrink


def _difference(x: jax.Array, axis: int) -> jax.Array:
  """x(i + 1) - x(i), and 0 at the end."""
  last = x.shape[axis] - 1
  change = lax.slice_in_dim(x, 1, last + 1, axis=axis) - lax.slice_in_dim(x, 0, last, axis=axis)
  return jnp.pad(change, [(0, int(a == axis)) for a in range(x.ndim)])


def _divergence(down: jax.Array, right: jax.Array) -> jax.Array:
  """-(p(i) - p(i - 1)) along both axes: minus the divergence of the dual."""
  return _before(down, 1) - down + _before(right, 2) - right


def _before(p: jax.Array, axis: int) -> jax.Array:
  rest = lax.slice_in_dim(p, 0, p.shape[axis] - 1, axis=axis)
  return jnp.pad(rest, [(int(a == axis), 0) for a in range(p.ndim)])
