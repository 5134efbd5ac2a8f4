"""Faithfulness: what the model says as pixels go and come in the order of a map.

Insertion and deletion curves (Petsiuk et al. 2018, arXiv 1806.07421), as Group-CAM has them: pixels
are taken in order of decreasing saliency, so many a step. Deletion replaces them in the image,
insertion puts them into its blurred form; the score is the class's probability, or a score of one's
own. Drop and increase in confidence: Chattopadhay et al. 2018, arXiv 1710.11063, section 4.1.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rest_jax.errors import UserError
from rest_jax.explain.arguments import Face
from rest_jax.explain.fills import fill_images
from rest_jax.explain.metrics.order import check_unit_maps, ranks
from rest_jax.explain.outputs import PROBABLE, are_probable, distance_from_probabilities
from rest_jax.explain.queries import chunked, resolve_targets
from rest_jax.explain.taps import Tap
from rest_jax.inputs import check_count
from rest_jax.ops.platform import jit

QUERY_BATCH = 64  # images a forward pass unless told
ROWS_PER_STEP = {'paper': 8, 'latest': 2}  # Group-CAM's code: 224 * 8 in May 2021, 224 * 2 later

_ROWS = 224  # of the pictures that it is for

Found = TypeVar('Found')


def measure(function: Callable[..., Found]) -> Callable[..., Found]:
  """Decorator: makes a function a measure of maps that asks the model.

  Args:
    function: takes, by place and by their names, what it needs of `point` (the tap), `images`
      (float32 (B, H, W, C)), `maps` (as given), `targets` (int32 (B,), or None for the predicted
      classes), `key` (if it is random) and `query_batch`; keyword-only are its own options, with
      an entry each in its docstring's Args.

  Returns:
    The function that users call, `(model, images, maps, targets=None, *, ...)`.
  """
  annotation = inspect.signature(function).return_annotation
  face = Face.of(
    function,
    ('model', 'images', 'maps', 'targets'),
    layer=False,
    query_batch=QUERY_BATCH,
    returns=(annotation, f'`{annotation}`.'),
    raises='shapes that do not belong together, or bad options.',
  )

  def asked(*args: Any, **kwargs: Any) -> Any:
    return face.ask(args, kwargs).found

  return face.put_on(asked)


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


@measure
def insertion_deletion(
  point: Tap,
  images: jax.Array,
  maps: Any,
  targets: jax.Array | None,
  query_batch: int,
  *,
  pixels_per_step: int | None = None,
  variant: str | None = None,
  insertion_fill: str | jax.Array | np.ndarray = 'blur',
  deletion_fill: str | jax.Array | np.ndarray = 'zero',
) -> Curves:
  """Curves and areas of a batch; costs 2 (ceil(HW / pixels_per_step) + 1) forward passes an image.

  Pixels with equal saliency go in an order without a pattern (`metrics.order`): what a constant map
  gets is what a random order gets. The areas are those under the curves over `Curves.share`.

  Args:
    targets: class indices, (B,) or one for all; None for those predicted on the whole images.
    pixels_per_step: pixels changed a step; by default `variant` decides.
    variant: instead of `pixels_per_step`. 'paper', the default: eight rows of pixels a step;
      'latest': two, as the authors' later code.
    insertion_fill: what insertion starts from, see `fill_images`.
    deletion_fill: what deletion ends at.
    query_batch: images a forward pass; changes memory and speed only.

  Raises:
    UserError: shapes that do not belong together, an unknown variant or fill, no positive step, a
      map or a score that is not finite.
  """
  step = _pixels_per_step(pixels_per_step, variant, images.shape[2])
  last, turns = _turns(maps, images.shape[:3], step)
  share = np.minimum(np.arange(last + 1) * step, turns[0].size) / turns[0].size
  fills = (fill_images(point, images, insertion_fill), fill_images(point, images, deletion_fill))
  share = jnp.broadcast_to(jnp.asarray(share, jnp.float32)[None], (len(images), last + 1))
  curves, distances = _curves(point, images, fills, turns, targets, share, last, query_batch)
  check_scores(distances, curves.deletion, curves.insertion)
  return curves


def step_at(shape: Sequence[int], variant: str = 'paper') -> int:
  """Pixels a step that make as many steps at any size as Group-CAM's code makes at 224 px.

  Args:
    shape: height and width of the pictures first.
    variant: as `insertion_deletion` has it: 28 steps, or 112.
  """
  return math.ceil(shape[0] * shape[1] * ROWS_PER_STEP[variant] / _ROWS)


def area(curve: jax.Array, share: jax.Array) -> jax.Array:
  """Mean height of a curve (..., n) over its axis (..., n), 0 to 1, by the trapezoidal rule."""
  return jnp.sum((curve[..., 1:] + curve[..., :-1]) / 2 * jnp.diff(share), -1)


@functools.partial(jit, static_argnames=('last', 'query_batch'))
def _curves(point, images, fills, turns, targets, share, last: int, query_batch: int):
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

  scores, distances = probabilities(point, make, items, query_batch)
  scores = scores.reshape(*shape, -1)
  # The whole image is among the queries: what the class is costs no pass of its own.
  targets = resolve_targets(scores[:, 1, 0], targets)
  curves = of_target(scores, targets)
  insertion, deletion = curves[:, 0], curves[:, 1]
  areas = area(insertion, share), area(deletion, share)
  return Curves(insertion, deletion, *areas, share), distances


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
  check_count('pixels_per_step', step)
  return int(step)


class DropIncrease(NamedTuple):
  """What becomes of the confidence when only the salient part is seen.

  Attributes:
    drop: float32 (B,) in [0, 1], max(0, whole - masked) / whole; lower is better. (Of a score of
      one's own over its size, and with no bound.)
    increase: bool (B,), masked > whole; the more the better.
  """

  drop: jax.Array
  increase: jax.Array


@measure
def drop_increase(
  point: Tap,
  images: jax.Array,
  maps: Any,
  targets: jax.Array | None,
  query_batch: int,
  *,
  fill: str | jax.Array | np.ndarray = 'zero',
) -> DropIncrease:
  """Compares the class's probability of the image and of image * map + fill * (1 - map).

  With the default fill that is the map times the normalised image, as the paper's authors mask.
  Their tables hold 100 times the mean of `drop` and of `increase`.

  Args:
    maps: (B, H, W) in [0, 1].
    fill: what is seen where the map is 0, see `fill_images`.
    query_batch: images a forward pass.

  Raises:
    UserError: shapes that do not belong together, an unknown fill, maps or a fill beyond [0, 1].
  """
  checked = check_maps(maps, images)
  check_unit_maps(maps)
  fills = fill_images(point, images, fill)
  found, distances = _drop_increase(point, images, fills, checked, targets, query_batch)
  check_scores(distances, found.drop)
  return found


@functools.partial(jit, static_argnames='query_batch')
def _drop_increase(point, images, fills, maps, targets, query_batch: int):
  shape = (2, len(images))
  items = tuple(jax.lax.broadcasted_iota(jnp.int32, shape, a).reshape(-1) for a in range(2))

  def make(chunk):
    masked, image = chunk
    mask = jnp.where((masked == 1)[:, None, None], maps[image], 1.0)[..., None]
    return images[image] * mask + fills[image] * (1 - mask)

  scores, distances = probabilities(point, make, items, query_batch)
  scores = scores.reshape(*shape, -1)
  targets = resolve_targets(scores[0], targets)
  whole, seen = (of_target(s, targets) for s in scores)
  size = jnp.where(whole == 0, 1, jnp.abs(whole))
  return DropIncrease(jnp.maximum(whole - seen, 0) / size, seen > whole), distances


def probabilities(
  point: Tap, make: Callable[[Any], jax.Array], items: Any, query_batch: int
) -> tuple[jax.Array, jax.Array]:
  """Probabilities, or the score of one's own, of the images that `make(items)` gives.

  Never more than `query_batch` of them at once.

  Args:
    point: images (Q, H, W, C) to logits (Q, K).
    make: turns a chunk of items into images.
    items: pytree of arrays with a leading axis N.
    query_batch: images a forward pass.

  Returns:
    float32 (N, K); and int32 (N,), how far what the model gave is from probabilities already.
  """

  def run(chunk):
    logits = point(make(chunk))
    return point.probabilities(logits), distance_from_probabilities(logits)

  return chunked(run, items, query_batch)


def check_scores(distances: jax.Array, *scores: jax.Array) -> None:
  """Raises `UserError` unless they are finite, of logits; not inside jit.

  Args:
    distances: int32 (N,), of the model's outputs from probabilities.
    *scores: (B, ...) of images.
  """
  if any(isinstance(values, Tracer) for values in scores):
    return
  if are_probable(distances):
    raise UserError(PROBABLE)
  for values in map(np.asarray, scores):
    wrong = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(1))
    if len(wrong):
      count = int((~np.isfinite(values)).sum())
      raise UserError(
        f"{count} of the model's {values.size} scores are not finite (logits of nan or inf), the "
        f'first those of image {wrong[0]}; look at the weights, and at what overflows'
      )


def check_maps(maps: jax.Array | np.ndarray, images: jax.Array) -> jax.Array:
  """Maps as float32, after a check that there is one for each image and each pixel.

  Raises:
    UserError: another shape.
  """
  if np.shape(maps) != images.shape[:3]:
    raise UserError(
      f'maps {np.shape(maps)} do not fit images {images.shape}: one number for each pixel is needed'
    )
  return jnp.asarray(maps, jnp.float32)


def of_target(scores: jax.Array, targets: jax.Array) -> jax.Array:
  """Takes each image's class: scores (B, ..., K) and int (B,) to (B, ...)."""
  index = targets.reshape(-1, *([1] * (scores.ndim - 1)))
  return jnp.take_along_axis(scores, index, axis=-1)[..., 0]
