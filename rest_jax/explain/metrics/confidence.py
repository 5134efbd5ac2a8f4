"""Drop and increase in confidence (Chattopadhay et al. 2018, arXiv 1710.11063, section 4.1)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rest_jax.explain.fills import fill_images
from rest_jax.explain.metrics.queries import (
  check_finite_scores,
  check_maps,
  of_target,
  probabilities,
)
from rest_jax.explain.queries import prepare, resolve_targets


class DropIncrease(NamedTuple):
  """What becomes of the confidence when only the salient part is seen.

  Attributes:
    drop: float32 (B,) in [0, 1], max(0, whole - masked) / whole; lower is better. (Of a score of
      one's own over its size, and with no bound.)
    increase: bool (B,), masked > whole; the more the better.
  """

  drop: jax.Array
  increase: jax.Array


def drop_increase(
  model: Any,
  images: jax.Array | np.ndarray,
  maps: jax.Array | np.ndarray,
  targets: Any = None,
  *,
  fill: str | jax.Array | np.ndarray = 'zero',
  output: str | None = None,
  score: Callable[[Any], jax.Array] | None = None,
  query_batch: int = 64,
) -> DropIncrease:
  """Compares the class's probability of the image and of image * map + fill * (1 - map).

  With the default fill that is the map times the normalised image, as the paper's authors mask.
  Their tables hold 100 times the mean of `drop` and of `increase`.

  Args:
    model: as `tap` takes it: a `Classifier`, or any function of images to logits (B, K).
    images: float32 (B, H, W, C).
    maps: (B, H, W) in [0, 1].
    targets: class indices, (B,) or one for all; None for the predicted classes.
    fill: what is seen where the map is 0, see `fill_images`.
    output: 'softmax' or 'sigmoid', what makes probabilities of logits; as `explain.tap` takes it.
    score: what is explained instead of a class; as `explain.tap` takes it.
    query_batch: images a forward pass.

  Returns:
    `DropIncrease`.

  Raises:
    UserError: shapes that do not belong together, an unknown fill.
  """
  point, images, targets = prepare(model, images, targets, output=output, score=score)
  maps = check_maps(maps, images)
  fills = fill_images(point, images, fill)
  found = _drop_increase(point, images, fills, maps, targets, query_batch)
  check_finite_scores(found.drop)
  return found


@functools.partial(jax.jit, static_argnames='query_batch')
def _drop_increase(point, images, fills, maps, targets, query_batch: int) -> DropIncrease:
  shape = (2, len(images))
  items = tuple(jax.lax.broadcasted_iota(jnp.int32, shape, a).reshape(-1) for a in range(2))

  def make(chunk):
    masked, image = chunk
    mask = jnp.where((masked == 1)[:, None, None], maps[image], 1.0)[..., None]
    return images[image] * mask + fills[image] * (1 - mask)

  scores = probabilities(point, make, items, query_batch).reshape(*shape, -1)
  targets = resolve_targets(scores[0], targets)
  whole, seen = (of_target(s, targets) for s in scores)
  size = jnp.where(whole == 0, 1, jnp.abs(whole))
  return DropIncrease(jnp.maximum(whole - seen, 0) / size, seen > whole)
