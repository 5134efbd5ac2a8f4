"""Gradients summed on the way from a baseline to the image, until they are complete.

Completeness (Sundararajan et al. 2017, arXiv 1703.01365, proposition 1): attributions sum to the
score of the image less that of the baseline. What a sum misses of it is the error that counts; sums
are refined, image by image, until it is small.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rest_jax.errors import UserError
from rest_jax.explain.checking import COMPLETE
from rest_jax.explain.fills import fill_images
from rest_jax.explain.gradients import (
  NOISE,
  channels,
  check_reduction,
  check_samples,
  draws,
  spread,
)
from rest_jax.explain.maps import min_max
from rest_jax.explain.methods import QUERY_BATCH, Detail, method
from rest_jax.explain.queries import (
  all_logits,
  chunked,
  known_targets,
  only_finite,
  pick,
  prepare,
  target_gradients,
  vary_like,
)
from rest_jax.explain.taps import Tap
from rest_jax.ops.platform import jit

STEPS, STEP_ROUNDS = 32, 6  # gradients of the first sum; 32, 64, ..., 1024 until one is complete
SAMPLES, SAMPLE_ROUNDS = 64, 5  # of the first mean; 64, 128, ..., 1024 until one is complete
_SMALL = 0.01  # of the scores: a smaller difference is measured by this share of them


@method(
  title='Integrated gradients',
  source='Sundararajan et al. 2017, arXiv 1703.01365',
  queries=lambda shape, options: 2 + 2 * (options.get('steps') or STEPS),
  by_gradient=True,
)
def integrated_gradients(
  point: Tap,
  images: jax.Array,
  targets: jax.Array | None,
  query_batch: int,
  *,
  baseline: str | jax.Array | np.ndarray = 'black',
  steps: int | None = None,
  reduction: str = 'sum',
) -> Detail:
  """The sizes of `integrated_gradient_attributions`, as maps.

  Sundararajan et al. 2017, arXiv 1703.01365, section 3. `explain.explain(...).values` are the
  attributions themselves, summed over the channels, and `.delta` is how far they are from complete;
  over 5 % there is a warning.

  Args:
    baseline: where the path starts: a name or an array as for `metrics.fill_images`; black as in
      the paper.
    steps: gradients along the path; by default 32 and twice as many each time, up to 1024, until
      the attributions are complete within 5 %, for each image by itself.
    reduction: 'sum' or 'max' of the channels' absolute values.
    query_batch: points of an image's path a pass; changes memory and speed only.
  """
  check_reduction(reduction)
  found = _integrate(point, images, targets, query_batch, baseline, steps)
  return _detail(found, reduction)


def integrated_gradient_attributions(
  model: Any,
  images: jax.Array | np.ndarray,
  targets: Any = None,
  **options: Any,
) -> jax.Array:
  """What each value of the image adds to the logit on the way from the baseline.

  Equation 1 of the paper by Gauss-Legendre quadrature, which is exact for polynomials of degree
  2 steps - 1; more than 32 steps by default are panels of 32 each, since a network of ReLUs has
  kinks on the way. Completeness: an image's attributions sum to logit(image) - logit(baseline).

  Args:
    model: a `Classifier`, any function of images to logits (B, K), a pair
      `(features_fn, head_fn)`, or a tap.
    images: floats (B, H, W, C) in [0, 1].
    targets: class indices, (B,) or one for all; by default the predicted classes.
    **options: `baseline`, `steps`, `output`, `score` and `query_batch` of `integrated_gradients`.

  Returns:
    float32 (B, H, W, C), with their sign.

  Raises:
    UserError: bad images, targets or options.
  """
  return _attributions(model, images, targets, **options).attributions


def _attributions(
  model: Any,
  images: Any,
  targets: Any,
  *,
  baseline: Any = 'black',
  steps: int | None = None,
  output: str | None = None,
  score: Callable[[Any], jax.Array] | None = None,
  query_batch: int = QUERY_BATCH,
) -> Integral:
  """Attributions of what a user gave, with their convergence."""
  point, images, targets = prepare(model, images, targets, output=output, score=score)
  return _integrate(point, images, targets, query_batch, baseline, steps)


def _integrate(
  point: Tap, images: jax.Array, targets: Any, query_batch: int, baseline: Any, steps: int | None
) -> Integral:
  """Attributions of what was checked; `steps` None until they are complete."""
  if steps is not None and steps < 1:
    raise UserError(f'steps are 1 or more, got {steps}')
  start = fill_images(point, images, baseline)
  targets = known_targets(point, images, targets, query_batch)
  nodes, rounds = (STEPS, STEP_ROUNDS) if steps is None else (steps, 1)
  return _integrals(point, images, start, targets, nodes, rounds, query_batch)


def _detail(found: Integral, reduction: str) -> Detail:
  """Maps of the attributions' sizes, their signed sum over the channels, delta and steps."""
  maps = min_max(channels(found.attributions, reduction))
  return Detail(maps, found.attributions.sum(-1), found.delta, found.steps)


@functools.partial(jit, static_argnames=('nodes', 'rounds', 'query_batch'))
def _integrals(point, images, start, targets, nodes: int, rounds: int, query_batch: int):
  ends = [all_logits(point, x, query_batch) for x in (images, start)]

  def one(item):
    image, from_, target, end, begin = jax.tree.map(lambda x: x[0], item)

    def integrate(panels, none):
      parts = way_gradients(point, image, from_, target, nodes, panels, query_batch)
      return none, parts, end[target], begin[target]

    made = refined(integrate, (), image, rounds)
    return jax.tree.map(lambda x: x[None], made)

  # An image at a time: each goes on until its own sum is complete.
  items = (images, start, targets, *ends)
  attributions, delta, gain, panels = chunked(one, items, 1)
  attributions = only_finite(only_finite(attributions, ends[0]), ends[1])
  return Integral(attributions, delta, gain, panels * nodes)


def way_gradients(point, image, start, target, nodes: int, panels, query_batch: int) -> jax.Array:
  """(image - start) times the mean gradient on the way, by `panels` panels of `nodes` points.

  Args:
    point: images to logits.
    image: (H, W, C).
    start: (H, W, C).
    target: int32 ().
    nodes: Gauss-Legendre points of a panel.
    panels: int32 (), how many.
    query_batch: points a pass.

  Returns:
    (H, W, C).
  """
  places, shares = path_points(nodes)
  block = min(nodes, max(1, query_batch))
  way, parts = image - start, panels.astype(jnp.float32)

  def add(i, total):
    sample = i * block + jnp.arange(block)
    panel, node = jnp.divmod(sample, nodes)
    weight = jnp.where(panel < panels, shares[node] / parts, 0)  # beyond: only fills the block up
    place = (panel.astype(jnp.float32) + places[node]) / parts
    on_path = start[None] + place[:, None, None, None] * way[None]
    gradients = target_gradients(point, on_path, jnp.broadcast_to(target, (block,)))
    gradients = jnp.where((weight > 0)[:, None, None, None], gradients, 0)
    return total + jnp.einsum('r,rijc->ijc', weight, gradients, precision='highest')

  count = -(-panels * nodes // block)
  zeros = vary_like(jnp.zeros_like(way), way)
  return way * jax.lax.fori_loop(0, count, add, zeros)


def path_points(steps: int) -> tuple[jax.Array, jax.Array]:
  """Gauss-Legendre points in (0, 1) and their weights, which sum to 1; float32 (steps,)."""
  points, weights = np.polynomial.legendre.leggauss(steps)
  return jnp.asarray((points + 1) / 2, jnp.float32), jnp.asarray(weights / 2, jnp.float32)


@method(
  title='Smooth integrated gradients',
  source='Smilkov et al. 2017, arXiv 1706.03825',
  queries=lambda shape, options: 2 + 3 * (options.get('steps') or options['samples'] or SAMPLES),
  by_gradient=True,
)
def smooth_integrated_gradients(
  point: Tap,
  images: jax.Array,
  targets: jax.Array | None,
  key: jax.Array,
  query_batch: int,
  *,
  baseline: str | jax.Array | np.ndarray = 'black',
  samples: int | None = None,
  noise: float = NOISE,
  reduction: str = 'sum',
) -> Detail:
  """Absolute integrated gradients, averaged over noisy images.

  Smilkov et al. 2017, arXiv 1706.03825, section 3.3: the mean over noisy images of their integrated
  gradients. Group-CAM's authors draw new noise at each point of the path and sum plain gradients;
  here too each point has noise of its own, which estimates the same mean with one gradient a
  sample, but the path ends at the noisy image and the gradient is multiplied by it, so that
  completeness holds in the mean.

  `explain.explain(...).values` are the attributions themselves, summed over the channels, and
  `.delta` is how far they are from the mean score of the noisy images less the baseline's; over
  5 % there is a warning.

  Args:
    key: of the noise, which is the same for every image up to its size; jax.random.key(0) by
      default.
    baseline: where the paths start: a name or an array as for `metrics.fill_images`.
    samples: points, spread evenly over the path, each with noise of its own; by default 64, and
      then as many more as there are, between them, up to 1024, until the attributions are complete
      within 5 %, for each image by itself.
    noise: deviation of the noise over the image's range.
    reduction: 'sum' or 'max' of the channels' absolute values.
    query_batch: samples of an image a pass; changes memory and speed only.
  """
  check_reduction(reduction)
  check_samples(SAMPLES if samples is None else samples, noise)
  start = fill_images(point, images, baseline)
  targets = known_targets(point, images, targets, query_batch)
  count, rounds = (SAMPLES, SAMPLE_ROUNDS) if samples is None else (samples, 1)
  found = _smooth_integrals(point, images, start, targets, key, noise, count, rounds, query_batch)
  return _detail(found, reduction)


@functools.partial(jit, static_argnames=('count', 'rounds', 'query_batch'))
def _smooth_integrals(
  point, images, start, targets, key, noise, count: int, rounds: int, query_batch
):
  begins = all_logits(point, start, query_batch)
  block = min(count, max(1, query_batch))

  def one(item):
    image, from_, target, begin = jax.tree.map(lambda x: x[0], item)

    def integrate(parts, sums):
      end = parts * count
      first = jnp.where(parts > 1, end // 2, 0)  # the ones before are in the sums
      sums = _add_noisy(point, image, from_, target, key, noise, sums, first, end, places, block)
      attributions, score = jax.tree.map(lambda x: x / end.astype(jnp.float32), sums)
      return sums, attributions, score, begin[target]

    sums = jax.tree.map(lambda x: vary_like(x, image), (jnp.zeros_like(image), jnp.float32(0)))
    return jax.tree.map(lambda x: x[None], refined(integrate, sums, image, rounds))

  def places(sample):
    return (
      nested_places(sample, count) if rounds > 1 else (sample.astype(jnp.float32) + 0.5) / count
    )

  attributions, delta, gain, parts = chunked(one, (images, start, targets, begins), 1)
  return Integral(only_finite(attributions, begins), delta, gain, parts * count)


def _add_noisy(point, image, start, target, key, noise, sums, first, end, places, block: int):
  """Adds samples first to end: way times gradient (H, W, C), and the noisy image's score ()."""
  labels = jnp.broadcast_to(target, (block,))

  def add(i, sums):
    sample = first + i * block + jnp.arange(block)
    counts = sample < end  # beyond: only fills the block up
    ways = image[None] - start[None] + noise * spread(image) * draws(key, sample, image.shape)
    on_path = start[None] + places(sample)[:, None, None, None] * ways
    parts = jnp.where(
      counts[:, None, None, None], ways * target_gradients(point, on_path, labels), 0
    )
    ends = jnp.where(counts, pick(point(start[None] + ways), labels), 0)
    return sums[0] + parts.sum(0), sums[1] + ends.sum()

  return jax.lax.fori_loop(0, -((first - end) // block), add, sums)


def nested_places(index: jax.Array, first: int) -> jax.Array:
  """Places in (0, 1): the first n of them, 2 n, 4 n, ... are spread evenly, each set by itself.

  Each of these sets is the composite open Newton-Cotes rule of two points, a third of a cell from
  its ends: exact for lines, with an error of second order, and the next set holds all of it.

  Args:
    index: int32 (N,), which ones, from 0.
    first: n, even.

  Returns:
    float32 (N,).
  """
  doublings = 31 - jax.lax.clz(jnp.maximum(index // first, 1))
  before = jnp.left_shift(first, doublings)
  begun = index < first
  # In the first set a cell has both of its points, later one: the other is of the set before.
  cells = jnp.where(begun, first // 2, before)
  cell = jnp.where(begun, index // 2, index - before)
  side = jnp.where(begun, index, cell) % 2
  return (cell.astype(jnp.float32) + (1 + side.astype(jnp.float32)) / 3) / cells.astype(jnp.float32)


class Integral(NamedTuple):
  """Attributions of images and how far they are from complete.

  Attributes:
    attributions: (B, H, W, C), with their sign.
    delta: (B,), |sum of the attributions - gain| over |gain|; where the gain is under 1 % of the
      scores it comes from, over 1 % of the larger one.
    gain: (B,), the score of the image less that of the baseline.
    steps: int32 (B,), gradients taken along the path.
  """

  attributions: jax.Array
  delta: jax.Array
  gain: jax.Array
  steps: jax.Array


def delta_of(attributions: jax.Array, end: jax.Array, start: jax.Array) -> jax.Array:
  """How far one image's attributions (H, W, C) are from end - start; scalars."""
  size = jnp.maximum(jnp.abs(end), jnp.abs(start))
  size = jnp.maximum(jnp.abs(end - start), _SMALL * size)
  missed = jnp.abs(jnp.sum(attributions) - (end - start))
  return jnp.where(missed == 0, 0, missed / jnp.where(size == 0, 1, size))


def refined(
  integrate: Callable[[jax.Array, Any], tuple[Any, jax.Array, jax.Array, jax.Array]],
  sums: Any,
  like: jax.Array,
  rounds: int,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """One image's sum with 1, 2, 4, ... times the samples, until it is complete.

  Args:
    integrate: number of parts, int32 (), and what it left of half as many -> (what it leaves,
      attributions (H, W, C), score at the end, score at the start).
    sums: what there is before the first; () where nothing is left.
    like: the image (H, W, C).
    rounds: how many sums at most; the last one is taken if none is complete.

  Returns:
    Attributions, delta, gain, and the number of parts.
  """

  def going_on(state):
    taken, _, _, delta, _ = state
    # Not a number is neither: then there is no use in going on.
    return (taken == 0) | ((delta > COMPLETE) & (taken < 2 ** (rounds - 1)))

  def step(state):
    parts = jnp.maximum(2 * state[0], 1)
    left, attributions, end, start = integrate(parts, state[1])
    return parts, left, attributions, delta_of(attributions, end, start), end - start

  nothing: Any = (jnp.zeros_like(like), jnp.float32(0), jnp.float32(0))
  nothing = jax.tree.map(lambda x: vary_like(x, like), nothing)
  none = vary_like(jnp.int32(0), like)
  parts, _, attributions, delta, gain = jax.lax.while_loop(going_on, step, (none, sums, *nothing))
  return attributions, delta, gain, parts
