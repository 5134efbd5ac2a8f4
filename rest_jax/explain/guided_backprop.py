"""Guided backpropagation (Springenberg et al. 2014, arXiv 1412.6806, section 3.4)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from rest_jax.explain.gradients import channels, check_reduction, target_gradients
from rest_jax.explain.guided_relu import guided
from rest_jax.explain.method import register
from rest_jax.explain.queries import chunked, min_max, prepare
from rest_jax.explain.sampling import QUERY_BATCH


@register(
  'guided_backprop', queries=2, source='Springenberg et al. 2014, arXiv 1412.6806', by_gradient=True
)
def guided_backprop(
  model: Any,
  images: jax.Array | np.ndarray,
  targets: Any = None,
  *,
  reduction: str = 'max',
  output: str | None = None,
  score: Callable[[Any], jax.Array] | None = None,
  query_batch: int = QUERY_BATCH,
) -> jax.Array:
  """The gradient, with negative gradients stopped at every ReLU; the largest of the channels.

  The rule is for ReLU alone: other activations keep their gradient, so on a model with few ReLUs
  (a ResT has them only in its stem) the map is close to the plain gradient's, and a model without
  any is refused.

  Args:
    model: as `tap` takes it: a `Classifier`, or any function of images to logits (B, K).
    images: float32 (B, H, W, C).
    targets: class indices, (B,) or one for all; None for the predicted classes.
    reduction: 'max' or 'sum' of the channels' absolute values.
    output: 'softmax' or 'sigmoid', what makes probabilities of logits; as `explain.tap` takes it.
    score: what is explained instead of a class; as `explain.tap` takes it.
    query_batch: images a pass.

  Returns:
    float32 (B, H, W) in [0, 1].

  Raises:
    UserError: bad images, targets or reduction, or a model without ReLU (`guided_relu.guided`).
  """
  point, images, targets = prepare(model, images, targets, output=output, score=score)
  check_reduction(reduction)
  return _maps(point, images, targets, reduction, query_batch)


@functools.partial(jax.jit, static_argnames=('reduction', 'query_batch'))
def _maps(point, images, targets, reduction: str, query_batch: int) -> jax.Array:
  def part(item):
    return min_max(channels(target_gradients(guided(point), *item), reduction))

  return chunked(part, (images, targets), query_batch)
