"""Integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365, section 3)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rest_jax.errors import UserError
from rest_jax.explain.convergence import Integral, refined
from rest_jax.explain.fills import fill_images
from rest_jax.explain.gradients import channels, check_reduction, target_gradients
from rest_jax.explain.method import Detail, register
from rest_jax.explain.queries import chunked, min_max, only_finite, prepare, vary_like
from rest_jax.explain.sampling import QUERY_BATCH, all_logits, known_targets

STEPS, ROUNDS = 32, 6  # gradients of the first sum; 32, 64, ..., 1024 until one is complete


@register(
  'integrated_gradients',
  queries=lambda image_shape, options: 2 + 2 * (options.get('steps') or STEPS),
  source='Sundararajan et al. 2017, arXiv 1703.01365',
  by_gradient=True,
)
def integrated_gradients(
  model: Any,
  images: jax.Array | np.ndarray,
  targets: Any = None,
  *,
  baseline: str | jax.Array | np.ndarray = 'black',
  steps: int | None = None,
  reduction: str = 'sum',
  output: str | None = None,
  score: Callable[[Any], jax.Array] | None = None,
  query_batch: int = QUERY_BATCH,
) -> Detail:
  """The sizes of `integrated_gradient_attributions`, as maps.

  `explain.explain(...).values` are the attributions themselves, summed over the channels, and
  `.delta` is how far they are from complete; over 5 % there is a warning.

  Args:
    model: as `tap` takes it: a `Classifier`, or any function of images to logits (B, K).
    images: float32 (B, H, W, C).
    targets: class indices, (B,) or one for all; None for the predicted classes.
    baseline: where the path starts: a name or an array as for `metrics.fill_images`; black as in
      the paper.
    steps: gradients along the path; by default 32 and twice as many each time, up to 1024, until
      the attributions are complete within 5 %, for each image by itself.
    reduction: 'sum' or 'max' of the channels' absolute values.
    output: 'softmax' or 'sigmoid', what makes probabilities of logits; as `explain.tap` takes it.
    score: what is explained instead of a class; as `explain.tap` takes it.
    query_batch: points of an image's path a pass; changes memory and speed only.

  Returns:
    float32 (B, H, W) in [0, 1].

  Raises:
    UserError: bad images, targets or options.
  """
  check_reduction(reduction)
  found = integrate(
    model,
    images,
    targets,
    baseline=baseline,
    steps=steps,
    output=output,
    score=score,
    query_batch=query_batch,
  )
  maps = min_max(channels(found.attributions, reduction))
  return Detail(maps, found.attributions.sum(-1), found.delta, found.steps)


def integrated_gradient_attributions(
  model: Any,
  images: jax.Array | np.ndarray,
  targets: Any = None,
  **options: Any,
) -> jax.Array:
  """What each value of the image adds to the logit on the way from the baseline.

  Args, options and errors: as `integrate`.

  Returns:
    float32 (B, H, W, C), with their sign.
  """
  return integrate(model, images, targets, **options).attributions


def integrate(
  model: Any,
  images: jax.Array | np.ndarray,
  targets: Any = None,
  *,
  baseline: str | jax.Array | np.ndarray = 'black',
  steps: int | None = None,
  output: str | None = None,
  score: Callable[[Any], jax.Array] | None = None,
  query_batch: int = QUERY_BATCH,
) -> Integral:
  """Attributions with their convergence.

  Equation 1 of the paper by Gauss-Legendre quadrature, which is exact for polynomials of degree
  2 steps - 1; more than 32 steps by default are panels of 32 each, since a network of ReLUs has
  kinks on the way. Completeness: an image's attributions sum to logit(image) - logit(baseline).

  Args and errors: as `integrated_gradients`.

  Returns:
    `Integral`.
  """
  point, images, targets = prepare(model, images, targets, output=output, score=score)
  if steps is not None and steps < 1:
    raise UserError(f'steps are 1 or more, got {steps}')
  start = fill_images(point, images, baseline)
  targets = known_targets(point, images, targets, query_batch)
  nodes, rounds = (STEPS, ROUNDS) if steps is None else (steps, 1)
  return _integrals(point, images, start, targets, nodes, rounds, query_batch)


@functools.partial(jax.jit, static_argnames=('nodes', 'rounds', 'query_batch'))
def _integrals(point, images, start, targets, nodes: int, rounds: int, query_batch: int):
  ends = [all_logits(point, x, query_batch) for x in (images, start)]

  def one(item):
    image, from_, target, end, begin = jax.tree.map(lambda x: x[0], item)

    def integrate(panels):
      parts = way_gradients(point, image, from_, target, nodes, panels, query_batch)
      return parts, end[target], begin[target]

    made = refined(integrate, image, rounds)
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
