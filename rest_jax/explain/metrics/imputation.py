"""ROAD, remove and debias, and the noisy linear imputation that it removes pixels by.

Rong et al. 2022, "A Consistent and Efficient Evaluation Strategy for Attribution Methods", ICML,
arXiv 2202.00449, section 4.2. Removed pixels become the weighted mean of their eight neighbours:
these weigh 1/6, diagonal ones 1/12; at the border the weights that are left are scaled up to 1. The
equations of all removed pixels are solved together.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rest_jax.errors import UserError
from rest_jax.explain.metrics.faithfulness import (
  check_finite_scores,
  check_maps,
  measure,
  of_target,
  probabilities,
)
from rest_jax.explain.metrics.order import ranks
from rest_jax.explain.queries import resolve_targets
from rest_jax.explain.taps import Tap
from rest_jax.ops.platform import jit

PERCENTILES = (10, 20, 30, 40, 50, 70, 90)  # of the authors' experiments
_TOLERANCE = 1e-5  # some 1e-4 in a pixel, far below the noise
_DIRECT, _DIAGONAL = 1 / 6, 1 / 12


class Road(NamedTuple):
  """Confidence as the most or the least relevant pixels are imputed.

  Attributes:
    percentiles: float32 (P,), per cent of the pixels removed.
    whole: float32 (B,), the class's probability on the image.
    morf: float32 (B, P), most relevant first; lower is better.
    lerf: float32 (B, P), least relevant first; higher is better.
    score: float32 (B,) in [-1, 1], mean over the percentiles of (lerf - morf) / 2; higher is
      better, 0 what a random order has.
  """

  percentiles: jax.Array
  whole: jax.Array
  morf: jax.Array
  lerf: jax.Array
  score: jax.Array


@measure
def road(
  point: Tap,
  images: jax.Array,
  maps: Any,
  targets: jax.Array | None,
  key: jax.Array,
  query_batch: int,
  *,
  percentiles: Sequence[float] = PERCENTILES,
  noise: float = 0.01,
) -> Road:
  """Removes pixels by noisy linear imputation, so that what is left gives no mask away.

  Args:
    key: of the noise, the same for every image; jax.random.key(0) by default.
    percentiles: per cent of the pixels to remove, each in [0, 100).
    noise: deviation of the Gaussian noise on imputed pixels, in the images' units.
    query_batch: images a forward pass; 2 P + 1 passes an image.

  Raises:
    UserError: shapes that do not belong together, percentiles or noise out of range.
  """
  places = ranks(check_maps(maps, images))
  if not len(percentiles) or not all(0 <= p < 100 for p in percentiles):
    raise UserError(f'percentiles are in [0, 100), one or more, got {tuple(percentiles)}')
  if not noise >= 0:
    raise UserError(f'noise is 0 or more, got {noise}')
  shares = jnp.asarray(percentiles, jnp.float32)
  found = _road(point, images, places, targets, key, shares, noise, query_batch)
  check_finite_scores(found.whole, found.morf, found.lerf)
  return found


@functools.partial(jit, static_argnames='query_batch')
def _road(point, images, places, targets, key, percentiles, noise, query_batch: int) -> Road:
  pixels = places[0].size
  removed = jnp.round(percentiles * (pixels / 100)).astype(jnp.int32)
  # The most relevant pixels have the lowest ranks; a first query removes nothing.
  low = jnp.concatenate([jnp.zeros_like(removed), pixels - removed, jnp.zeros(1, jnp.int32)])
  high = jnp.concatenate([removed, jnp.full_like(removed, pixels), jnp.zeros(1, jnp.int32)])
  shape = (len(images), len(low))
  items = tuple(jax.lax.broadcasted_iota(jnp.int32, shape, a).reshape(-1) for a in range(2))
  disturbance = noise * jax.random.normal(key, images.shape[1:])

  def make(chunk):
    image, query = chunk
    rank = places[image]
    gone = (rank >= low[query][:, None, None]) & (rank < high[query][:, None, None])
    filled = impute(images[image], gone, tolerance=_TOLERANCE)
    return filled + jnp.where(gone[..., None], disturbance[None], 0)

  scores = probabilities(point, make, items, query_batch).reshape(*shape, -1)
  curves = of_target(scores, resolve_targets(scores[:, -1], targets))
  morf, lerf = jnp.split(curves[:, :-1], 2, axis=1)
  return Road(percentiles, curves[:, -1], morf, lerf, jnp.mean(lerf - morf, 1) / 2)


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
