"""Integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365, section 3)."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rest_jax.errors import UserError
from rest_jax.explain.common import min_max, prepare
from rest_jax.explain.gradient import channels, check_reduction, target_gradients
from rest_jax.explain.metrics.fills import fill_images
from rest_jax.explain.registry import register
from rest_jax.explain.sampling import QUERY_BATCH, cross, known_targets, sum_samples

STEPS = 32


@register(
  'integrated_gradients',
  needs_layer=False,
  needs_key=False,
  queries=lambda image_shape, options: 1 + 2 * options.get('steps', STEPS),
  source='Sundararajan et al. 2017, arXiv 1703.01365',
)
def integrated_gradients(
  model: Any,
  images: jax.Array | np.ndarray,
  targets: Any = None,
  *,
  baseline: str | jax.Array | np.ndarray = 'black',
  steps: int = STEPS,
  reduction: str = 'sum',
  query_batch: int = QUERY_BATCH,
) -> jax.Array:
  """The absolute attributions of `integrated_gradient_attributions`, as maps.

  Args:
    model: as `tap` takes it: a `Classifier`, or any function of images to logits (B, K).
    images: float32 (B, H, W, C).
    targets: class indices, (B,) or one for all; None for the predicted classes.
    baseline: where the path starts: a name or an array as for `metrics.fill_images`; black as in
      the paper.
    steps: gradients along the path.
    reduction: 'sum' or 'max' of the channels' absolute values.
    query_batch: images a pass; changes memory and speed only.

  Returns:
    float32 (B, H, W) in [0, 1].

  Raises:
    UserError: bad images, targets or options.
  """
  check_reduction(reduction)
  return _reduce(
    integrated_gradient_attributions(
      model, images, targets, baseline=baseline, steps=steps, query_batch=query_batch
    ),
    reduction,
  )


def integrated_gradient_attributions(
  model: Any,
  images: jax.Array | np.ndarray,
  targets: Any = None,
  *,
  baseline: str | jax.Array | np.ndarray = 'black',
  steps: int = STEPS,
  query_batch: int = QUERY_BATCH,
) -> jax.Array:
  """What each value of the image adds to the logit on the way from the baseline.

  Equation 1 of the paper by Gauss-Legendre quadrature, which is exact for polynomials of degree
  2 steps - 1. Completeness: an image's attributions sum to logit(image) - logit(baseline).

  Args and errors: as `integrated_gradients`.

  Returns:
    float32 (B, H, W, C), with their sign.
  """
  point, images, targets = prepare(model, images, targets)
  if steps < 1:
    raise UserError(f'steps are 1 or more, got {steps}')
  start = fill_images(point, images, baseline)
  targets = known_targets(point, images, targets, query_batch)
  return _attributions(point, images, start, targets, steps, query_batch)


@functools.partial(jax.jit, static_argnames='reduction')
def _reduce(attributions, reduction: str):
  return min_max(channels(attributions, reduction))


@functools.partial(jax.jit, static_argnames=('steps', 'query_batch'))
def _attributions(point, images, start, targets, steps: int, query_batch: int):
  points, shares = path_points(steps)

  def contribution(items, sample, weights):
    (start, way), labels = items
    on_path = cross(points[sample], jnp.stack([start, way], 1), lambda t, sw: sw[0] + t * sw[1])
    gradients = target_gradients(point, on_path, jnp.tile(labels, len(sample)))
    gradients = gradients.reshape(len(sample), *way.shape)
    return jnp.einsum('r,rpijc->pijc', weights * shares[sample], gradients, precision='highest')

  way = images - start
  return way * sum_samples(contribution, ((start, way), targets), steps, query_batch)


def path_points(steps: int) -> tuple[jax.Array, jax.Array]:
  """Gauss-Legendre points in (0, 1) and their weights, which sum to 1; float32 (steps,)."""
  points, weights = np.polynomial.legendre.leggauss(steps)
  return jnp.asarray((points + 1) / 2, jnp.float32), jnp.asarray(weights / 2, jnp.float32)
