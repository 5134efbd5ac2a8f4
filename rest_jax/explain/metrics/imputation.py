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
  check_maps,
  check_scores,
  measure,
  of_target,
  probabilities,
)
from rest_jax.explain.metrics.multigrid import Graph, solve
from rest_jax.explain.metrics.order import ranks
from rest_jax.explain.queries import resolve_targets
from rest_jax.explain.taps import Tap
from rest_jax.ops.platform import jit

PERCENTILES = (10, 20, 30, 40, 50, 70, 90)  # of the authors' experiments
_TOLERANCE = 1e-5  # some 3e-5 in a pixel, far below the noise
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
  found, distances = _road(point, images, places, targets, key, shares, noise, query_batch)
  check_scores(distances, found.whole, found.morf, found.lerf)
  return found


@functools.partial(jit, static_argnames='query_batch')
def _road(point, images, places, targets, key, percentiles, noise, query_batch: int):
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

  scores, distances = probabilities(point, make, items, query_batch)
  scores = scores.reshape(*shape, -1)
  curves = of_target(scores, resolve_targets(scores[:, -1], targets))
  morf, lerf = jnp.split(curves[:, :-1], 2, axis=1)
  found = Road(percentiles, curves[:, -1], morf, lerf, jnp.mean(lerf - morf, 1) / 2)
  return found, distances


def impute(
  images: jax.Array, removed: jax.Array, *, tolerance: float = 1e-6, iterations: int = 2000
) -> jax.Array:
  """Fills removed pixels from those that are left, without noise.

  The system is symmetric and positive definite, so conjugate gradients solve it; with multigrid,
  in some 15 steps for a photograph.

  Args:
    images: float32 (B, H, W, C).
    removed: bool (B, H, W), not all True in an image; all-True planes come back as their mean.
    tolerance: the residual's norm over the right-hand side's at which a channel is solved.
    iterations: no more steps than these.

  Returns:
    float32 (B, H, W, C): the image where nothing was removed, imputed values elsewhere.
  """
  return _impute(jnp.asarray(images), jnp.asarray(removed), tolerance, iterations)


@jit
def _impute(images, removed, tolerance, iterations):
  def fill(image, gone):
    planes = jnp.moveaxis(image, -1, 0)
    return jnp.moveaxis(_fill(planes, gone[None], tolerance, iterations), 0, -1)

  return jax.vmap(fill)(images, removed)


def _fill(planes, gone, tolerance, iterations):
  """Imputes planes (C, H, W) where `gone` (1, H, W); as differences from the mean that is left.

  A constant picture comes back exactly, and rounding is that of the contrast.
  """
  gone, nothing = jnp.broadcast_to(gone, planes.shape), gone.all()
  mean = jnp.mean(planes, (1, 2), where=~gone | nothing, keepdims=True)
  kept = jnp.where(gone, 0, planes - mean)
  right = jnp.where(gone, _neighbours(kept), 0)
  found = solve(_graph(gone[:1].astype(planes.dtype)), right, tolerance, iterations)
  return jnp.where(gone, mean + found, planes)


def _graph(free) -> Graph:
  """Links between the removed pixels (1, H, W), and their weights to those that are left."""
  padded = jnp.pad(free, ((0, 0), (0, 1), (1, 1)))
  below = padded[:, 1:]
  return Graph(
    free * _neighbours(1 - free),
    free * padded[:, :-1, 2:] * _DIRECT,
    free * below[..., 1:-1] * _DIRECT,
    free * below[..., 2:] * _DIAGONAL,
    free * below[..., :-2] * _DIAGONAL,
  )


def _neighbours(x):
  """The weighted sum of the eight neighbours, zero beyond the border; as two passes of three taps.

  Row and column sums with (1, 2, 1) / 12 count the pixel itself 4 / 12, which is taken off.
  """
  height, width = x.shape[1:]
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1)))
  rows = padded[:, :height] + 2 * padded[:, 1 : height + 1] + padded[:, 2:]
  both = rows[..., :width] + 2 * rows[..., 1 : width + 1] + rows[..., 2:]
  return both * _DIAGONAL - x * (2 * _DIRECT)
