"""Noisy linear imputation: removed pixels become the weighted mean of their eight neighbours.

Rong et al. 2022, "A Consistent and Efficient Evaluation Strategy for Attribution Methods", ICML,
arXiv 2202.00449, section 4.2. Neighbours weigh 1/6, diagonal ones 1/12; at the border the weights
that are left are scaled up to 1. The equations of all removed pixels are solved together.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

_DIRECT, _DIAGONAL = 1 / 6, 1 / 12


def impute(
  images: jax.Array, removed: jax.Array, *, tolerance: float = 1e-6, iterations: int = 2000
) -> jax.Array:
  """Fills removed pixels from those that are left, without noise.

  The system is symmetric and positive definite, so conjugate gradients solve it.

  Args:
    images: float32 (B, H, W, C).
    removed: bool (B, H, W), not all True in an image; all-True planes come back as their mean.
    tolerance: the residual's norm over the right-hand side's at which a channel is solved.
    iterations: no more steps than these.

  Returns:
    float32 (B, H, W, C): the image where nothing was removed, imputed values elsewhere.
  """
  free = removed[..., None].astype(images.dtype)
  weights = _neighbours(jnp.ones_like(free))
  kept = images * (1 - free)

  def system(x):
    return free * (weights * x - _neighbours(x))

  right = free * _neighbours(kept)
  count = jnp.maximum(jnp.sum(1 - free, (1, 2), keepdims=True), 1)
  start = free * (jnp.sum(kept, (1, 2), keepdims=True) / count)
  return kept + _conjugate_gradients(system, right, start, tolerance, iterations)


def _conjugate_gradients(system, right, x, tolerance: float, iterations: int):
  """Solves each plane (H, W) of the batch; solved planes stand still."""
  residual = right - system(x)
  limit = tolerance**2 * _dot(right, right)

  def unsolved(state):
    return (state[0] < iterations) & jnp.any(state[4] > limit)

  def step(state):
    i, x, residual, direction, square = state
    image = system(direction)
    length = _ratio(square, _dot(direction, image))
    x, residual = x + length * direction, residual - length * image
    smaller = _dot(residual, residual)
    direction = residual + _ratio(smaller, square) * direction
    # A plane that is solved is not touched again: float32 would make it worse.
    smaller = jnp.where(smaller > limit, smaller, 0.0)
    return i + 1, x, residual, jnp.where(smaller > 0, direction, 0.0), smaller

  square = _dot(residual, residual)
  return jax.lax.while_loop(unsolved, step, (0, x, residual, residual, square))[1]


def _dot(a, b):
  return jnp.sum(a * b, (1, 2), keepdims=True)


def _ratio(a, b):
  return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)


def _neighbours(x):
  """The weighted sum of the eight neighbours, zero beyond the border; as two passes of three taps.

  Row and column sums with (1, 2, 1) / 12 count the pixel itself 4 / 12, which is taken off.
  """
  height, width = x.shape[1:3]
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  rows = padded[:, :height] + 2 * padded[:, 1 : height + 1] + padded[:, 2:]
  both = rows[:, :, :width] + 2 * rows[:, :, 1 : width + 1] + rows[:, :, 2:]
  return both * _DIAGONAL - x * (2 * _DIRECT)
