"""Vanilla gradient (Simonyan et al. 2013, arXiv 1312.6034, section 3)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rest_jax.errors import UserError
from rest_jax.explain.method import register
from rest_jax.explain.queries import chunked, min_max, only_finite, pick, prepare, resolve_targets
from rest_jax.explain.sampling import QUERY_BATCH


@register(
  'gradient',
  queries=2,
  source='Simonyan et al. 2013, arXiv 1312.6034',
  by_gradient=True,
)
def gradient(
  model: Any,
  images: jax.Array | np.ndarray,
  targets: Any = None,
  *,
  reduction: str = 'max',
  output: str | None = None,
  score: Callable[[Any], jax.Array] | None = None,
  query_batch: int = QUERY_BATCH,
) -> jax.Array:
  """|d logit / d pixel|, the largest of the channels.

  Args:
    model: as `tap` takes it: a `Classifier`, or any function of images to logits (B, K).
    images: float32 (B, H, W, C).
    targets: class indices, (B,) or one for all; None for the predicted classes.
    reduction: 'max' of the channels as in the paper, or their 'sum'.
    output: 'softmax' or 'sigmoid', what makes probabilities of logits; as `explain.tap` takes it.
    score: what is explained instead of a class; as `explain.tap` takes it.
    query_batch: images a pass.

  Returns:
    float32 (B, H, W) in [0, 1]; zeros where the gradient has one size everywhere.

  Raises:
    UserError: bad images, targets or reduction.
  """
  point, images, targets = prepare(model, images, targets, output=output, score=score)
  check_reduction(reduction)
  return _maps(point, images, targets, reduction, query_batch)


@functools.partial(jax.jit, static_argnames=('reduction', 'query_batch'))
def _maps(point, images, targets, reduction: str, query_batch: int) -> jax.Array:
  def part(item):
    return min_max(channels(target_gradients(point, *item), reduction))

  return chunked(part, (images, targets), query_batch)


def target_gradients(
  model: Callable[..., jax.Array], images: jax.Array, targets: jax.Array | None
) -> jax.Array:
  """d logit_target / d image, in one pass over all the images.

  Args:
    model: images to logits (B, K).
    images: (B, H, W, C).
    targets: int (B,), or None for the predicted classes.

  Returns:
    (B, H, W, C), not a number for an image with a logit that is not finite.
  """

  def score(x):
    logits = model(x)
    return jnp.sum(pick(logits, resolve_targets(logits, targets))), logits

  gradients, logits = jax.grad(score, has_aux=True)(images)
  return only_finite(gradients, logits)


def channels(attributions: jax.Array, reduction: str) -> jax.Array:
  """(B, H, W, C) to (B, H, W): the 'max' or the 'sum' of absolute values over the channels."""
  sizes = jnp.abs(attributions)
  return jnp.max(sizes, -1) if reduction == 'max' else jnp.sum(sizes, -1)


def check_reduction(reduction: str) -> None:
  """Raises UserError unless 'max' or 'sum'."""
  if reduction not in ('max', 'sum'):
    raise UserError(f"reduction is 'max' or 'sum' over the channels, got {reduction!r}")
