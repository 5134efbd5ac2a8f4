"""Class probabilities of images that are made as they are asked for, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rest_jax.errors import UserError
from rest_jax.explain.queries import chunked
from rest_jax.explain.taps import Tap


def probabilities(
  point: Tap, make: Callable[[Any], jax.Array], items: Any, query_batch: int
) -> jax.Array:
  """Probabilities, or the score of one's own, of the images that `make(items)` gives.

  Never more than `query_batch` of them at once.

  Args:
    point: images (Q, H, W, C) to logits (Q, K).
    make: turns a chunk of items into images.
    items: pytree of arrays with a leading axis N.
    query_batch: images a forward pass.

  Returns:
    float32 (N, K).
  """

  def run(chunk):
    return point.probabilities(point(make(chunk)))

  return chunked(run, items, query_batch)


def check_finite_scores(*scores: jax.Array) -> None:
  """Raises `UserError` unless all scores (B, ...) of images are finite; not inside jit."""
  if any(isinstance(values, Tracer) for values in scores):
    return
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
