"""ROAD: remove and debias (Rong et al. 2022, arXiv 2202.00449)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rest_jax.errors import UserError
from rest_jax.explain.metrics.imputation import impute
from rest_jax.explain.metrics.order import ranks
from rest_jax.explain.metrics.queries import (
  check_finite_scores,
  check_maps,
  of_target,
  probabilities,
)
from rest_jax.explain.queries import prepare, resolve_targets

PERCENTILES = (10, 20, 30, 40, 50, 70, 90)  # of the authors' experiments
_TOLERANCE = 1e-5  # some 1e-4 in a pixel, far below the noise


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


def road(
  model: Any,
  images: jax.Array | np.ndarray,
  maps: jax.Array | np.ndarray,
  targets: Any = None,
  *,
  key: jax.Array | None = None,
  percentiles: Sequence[float] = PERCENTILES,
  noise: float = 0.01,
  output: str | None = None,
  score: Callable[[Any], jax.Array] | None = None,
  query_batch: int = 64,
) -> Road:
  """Removes pixels by noisy linear imputation, so that what is left gives no mask away.

  Args:
    model: as `tap` takes it: a `Classifier`, or any function of images to logits (B, K).
    images: float32 (B, H, W, C).
    maps: (B, H, W), any scale; only their order counts; ties go in an order without a
      pattern (`metrics.order`).
    targets: class indices, (B,) or one for all; None for the predicted classes.
    key: of the noise, the same for every image; jax.random.key(0) by default.
    percentiles: per cent of the pixels to remove, each in [0, 100).
    noise: deviation of the Gaussian noise on imputed pixels, in the images' units.
    output: 'softmax' or 'sigmoid', what makes probabilities of logits; as `explain.tap` takes it.
    score: what is explained instead of a class; as `explain.tap` takes it.
    query_batch: images a forward pass; 2 P + 1 passes an image.

  Returns:
    `Road`.

  Raises:
    UserError: shapes that do not belong together, percentiles or noise out of range.
  """
  point, images, targets = prepare(model, images, targets, output=output, score=score)
  places = ranks(check_maps(maps, images))
  if not len(percentiles) or not all(0 <= p < 100 for p in percentiles):
    raise UserError(f'percentiles are in [0, 100), one or more, got {tuple(percentiles)}')
  if not noise >= 0:
    raise UserError(f'noise is 0 or more, got {noise}')
  key = jax.random.key(0) if key is None else key
  shares = jnp.asarray(percentiles, jnp.float32)
  found = _road(point, images, places, targets, key, shares, noise, query_batch)
  check_finite_scores(found.whole, found.morf, found.lerf)
  return found


@functools.partial(jax.jit, static_argnames='query_batch')
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
