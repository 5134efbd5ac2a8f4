"""EigenCAM.

Paper: Muhammad and Yeasin, "Eigen-CAM: Class Activation Map using Principal Components", IJCNN
2020, arXiv 2008.00299, section III.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from rest_jax.explain.common import chunked, finish, prepare
from rest_jax.explain.registry import register
from rest_jax.explain.taps import Tap


@register('eigen_cam', source='Muhammad and Yeasin 2020', queries=1, needs_layer=True)
def eigen_cam(
  model: Any,
  images: Any,
  targets: Any = None,
  *,
  layer: str | None = None,
  grid: tuple[int, int] | None = None,
  query_batch: int = 32,
) -> jax.Array:
  """The layer's map projected on its first right singular vector, whatever the class.

  A singular vector's sign is arbitrary; the one is taken for which the projection's sum is
  positive, as it is for any map after a ReLU.

  Args:
    model: as `explain.tap` takes it.
    images: floats (B, H, W, C) in [0, 1].
    targets: checked, and without effect.
    layer: path of the layer whose map A is used; a default by `explain.tap`.
    grid: (rows, columns) of a layer that gives tokens.
    query_batch: images at a time.

  Returns:
    float32 (B, H, W) in [0, 1]; a constant map is all zero.

  Raises:
    UserError: bad images, targets or layer.
  """
  point, images, _ = prepare(model, images, targets, layer, grid)
  return _run(point, images, query_batch)


@functools.partial(jax.jit, static_argnames='query_batch')
def _run(point: Tap, images: jax.Array, query_batch: int) -> jax.Array:
  def part(chunk):
    return finish(first_component(point.features(chunk)), images.shape[1:3])

  return chunked(part, images, query_batch)


def first_component(features: jax.Array) -> jax.Array:
  """s_1 u_1 of the map as a matrix (h w, K): (B, h, w, K) -> (B, h, w).

  The vector comes from the smaller of the two Gram matrices.
  """
  matrix = features.reshape(features.shape[0], -1, features.shape[-1])
  # Neither the direction nor the normalised result depends on the scale; squares may overflow.
  peak = jnp.max(jnp.abs(matrix), axis=(1, 2), keepdims=True)
  matrix = matrix / jnp.where(peak > 0, peak, 1)
  if matrix.shape[1] <= matrix.shape[2]:
    gram = jnp.einsum('bik,bjk->bij', matrix, matrix, precision='highest')
    values, vectors = jnp.linalg.eigh(gram)
    projection = vectors[..., -1] * jnp.sqrt(jnp.maximum(values[:, -1:], 0))
  else:
    gram = jnp.einsum('bik,bil->bkl', matrix, matrix, precision='highest')
    vectors = jnp.linalg.eigh(gram)[1]
    projection = jnp.einsum('bik,bk->bi', matrix, vectors[..., -1], precision='highest')
  total = jnp.sum(projection, axis=1, keepdims=True)
  return (projection * jnp.where(total < 0, -1, 1)).reshape(features.shape[:3])
