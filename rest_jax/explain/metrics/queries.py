"""Class probabilities of images that are made as they are asked for, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rest_jax.errors import UserError
from rest_jax.explain.common import chunked
from rest_jax.explain.taps import Tap


def probabilities(
  point: Tap, make: Callable[[Any], jax.Array], items: Any, query_batch: int
) -> jax.Array:
  """Softmax of the model's logits on `make(items)`; never more than `query_batch` images at once.

  Args:
    point: images (Q, H, W, C) to logits (Q, K).
    make: turns a chunk of items into images.
    items: pytree of arrays with a leading axis N.
    query_batch: images a forward pass.

  Returns:
    float32 (N, K).
  """

  def run(chunk):
    return jax.nn.softmax(point(make(chunk)), axis=-1)

  return chunked(run, items, query_batch)


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
