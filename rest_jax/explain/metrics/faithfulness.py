"""Insertion and deletion curves (Petsiuk et al. 2018, arXiv 1806.07421), as Group-CAM has them.

Pixels are taken in order of decreasing saliency, so many a step. Deletion replaces them in the
image, insertion puts them into its blurred form; the score is the class's probability, or a score
of one's own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rest_jax.errors import UserError
from rest_jax.explain.fills import fill_images
from rest_jax.explain.metrics.order import ranks
from rest_jax.explain.metrics.queries import check_finite_scores, of_target, probabilities
from rest_jax.explain.queries import prepare, resolve_targets

ROWS_PER_STEP = {'paper': 8, 'latest': 2}  # Group-CAM's code: 224 * 8 in May 2021, 224 * 2 later


class Curves(NamedTuple):
  """Scores as pixels appear and disappear.

  Attributes:
    insertion: float32 (B, n), from the insertion fill to the image.
    deletion: float32 (B, n), from the image to the deletion fill.
    insertion_auc: float32 (B,), higher is better.
    deletion_auc: float32 (B,), lower is better.
    share: float32 (B, n), of the pixels changed at each point, min(step number * pixels a step,
      HW) / HW: the curves' axis, from 0 to 1, whose last step may be shorter.
  """

  insertion: jax.Array
  deletion: jax.Array
  insertion_auc: jax.Array
  deletion_auc: jax.Array
  share: jax.Array


def insertion_deletion(
  model: Any,
  images: jax.Array | np.ndarray,
  maps: jax.Array | np.ndarray,
  targets: Any = None,
  *,
  pixels_per_step: int | None = None,
  variant: str | None = None,
  insertion_fill: str | jax.Array | np.ndarray = 'blur',
  deletion_fill: str | jax.Array | np.ndarray = 'zero',
  output: str | None = None,
  score: Callable[[Any], jax.Array] | None = None,
  query_batch: int = 64,
) -> Curves:
  """Curves and areas of a batch; costs 2 (ceil(HW / pixels_per_step) + 1) forward passes an image.

  Pixels with equal saliency go in an order without a pattern (`metrics.order`): what a constant map
  gets is what a random order gets. The areas are those under the curves over `Curves.share`.

  Args:
    model: as `tap` takes it: a `Classifier`, or any function of images to logits (B, K).
    images: float32 (B, H, W, C).
    maps: (B, H, W), any scale; only their order counts.
    targets: class indices, (B,) or one for all; None for those predicted on the whole images.
    pixels_per_step: pixels changed a step; by default `variant` decides.
    variant: instead of `pixels_per_step`. 'paper', the default: eight rows of pixels a step;
      'latest': two, as the authors' later code.
    insertion_fill: what insertion starts from, see `fill_images`.
    deletion_fill: what deletion ends at.
    output: 'softmax' or 'sigmoid', what makes probabilities of logits; as `explain.tap` takes it.
    score: what is explained instead of a class; as `explain.tap` takes it.
    query_batch: images a forward pass; changes memory and speed only.

  Returns:
    `Curves`.

  Raises:
    UserError: shapes that do not belong together, an unknown variant or fill, no positive step, a
      map or a score that is not finite.
  """
  point, images, targets = prepare(model, images, targets, output=output, score=score)
  step = _pixels_per_step(pixels_per_step, variant, images.shape[2])
  last, turns = _turns(maps, images.shape[:3], step)
  share = np.minimum(np.arange(last + 1) * step, turns[0].size) / turns[0].size
  fills = (fill_images(point, images, insertion_fill), fill_images(point, images, deletion_fill))
  share = jnp.broadcast_to(jnp.asarray(share, jnp.float32)[None], (len(images), last + 1))
  curves = _curves(point, images, fills, turns, targets, share, last, query_batch)
  check_finite_scores(curves.deletion, curves.insertion)
  return curves


def area(curve: jax.Array, share: jax.Array) -> jax.Array:
  """Mean height of a curve (..., n) over its axis (..., n), 0 to 1, by the trapezoidal rule."""
  return jnp.sum((curve[..., 1:] + curve[..., :-1]) / 2 * jnp.diff(share), -1)


@functools.partial(jax.jit, static_argnames=('last', 'query_batch'))
def _curves(point, images, fills, turns, targets, share, last: int, query_batch: int) -> Curves:
  count, points = len(images), last + 1
  shape = (count, 2, points)
  items = tuple(jax.lax.broadcasted_iota(jnp.int32, shape, a).reshape(-1) for a in range(3))

  def make(chunk):
    image, deletes, done = chunk
    changed = (turns[image] < done[:, None, None])[..., None]
    deletes = (deletes == 1)[:, None, None, None]
    x = images[image]
    fill = jnp.where(deletes, fills[1][image], fills[0][image])
    return jnp.where(changed == deletes, fill, x)

  scores = probabilities(point, make, items, query_batch).reshape(*shape, -1)
  # The whole image is among the queries: what the class is costs no pass of its own.
  targets = resolve_targets(scores[:, 1, 0], targets)
  curves = of_target(scores, targets)
  insertion, deletion = curves[:, 0], curves[:, 1]
  return Curves(insertion, deletion, area(insertion, share), area(deletion, share), share)


def _turns(maps, shape: tuple[int, ...], step: int) -> tuple[int, Any]:
  """How many steps there are, and at which of them each pixel changes: int32 (B, H, W)."""
  if np.shape(maps) != tuple(shape):
    raise UserError(f'maps {np.shape(maps)} do not fit images: one number a pixel, {tuple(shape)}')
  return -(-shape[1] * shape[2] // step), ranks(maps) // step


def _pixels_per_step(given: int | None, variant: str | None, width: int) -> int:
  if variant not in (None, *ROWS_PER_STEP):
    raise UserError(f"variant is 'paper' or 'latest', got {variant!r}")
  if variant is not None and given is not None:
    raise UserError('variant says how many pixels a step: leave it or pixels_per_step out')
  step = ROWS_PER_STEP[variant or 'paper'] * width if given is None else given
  if step < 1:
    raise UserError(f'pixels_per_step is 1 or more, got {step}')
  return int(step)
