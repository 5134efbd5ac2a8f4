"""EigenCAM.

Paper: Muhammad and Yeasin, "Eigen-CAM: Class Activation Map using Principal Components", IJCNN
2020, arXiv 2008.00299, section III.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rest_jax.explain.method import register
from rest_jax.explain.queries import ROUNDING, chunked, finish, only_finite, peak, prepare
from rest_jax.explain.taps import Tap


@register('eigen_cam', source='Muhammad and Yeasin 2020', queries=1, needs_layer=True)
def eigen_cam(
  model: Any,
  images: Any,
  targets: Any = None,
  *,
  layer: str | None = None,
  grid: tuple[int, int] | None = None,
  output: str | None = None,
  score: Callable[[Any], jax.Array] | None = None,
  query_batch: int = 32,
) -> jax.Array:
  """The layer's map, centred, projected on its first right singular vector, whatever the class.

  Principal components are those of centred data: without it the first one is mostly the mean over
  the plane. A singular vector's sign is arbitrary; the one is taken for which the projection is
  positive where its size is largest: what stands out is lit, whether or not maps are 0 or more.

  Args:
    model: as `explain.tap` takes it.
    images: floats (B, H, W, C) in [0, 1].
    targets: checked, and without effect.
    layer: path of the layer whose map A is used; a default by `explain.tap`.
    grid: (rows, columns) of a layer that gives tokens.
    output: 'softmax' or 'sigmoid', what makes probabilities of logits; as `explain.tap` takes it.
    score: what is explained instead of a class; as `explain.tap` takes it.
    query_batch: images at a time.

  Returns:
    float32 (B, H, W) in [0, 1]; a constant map is all zero.

  Raises:
    UserError: bad images, targets or layer.
  """
  point, images, _ = prepare(model, images, targets, layer, grid, output=output, score=score)
  return _run(point, images, query_batch)


@functools.partial(jax.jit, static_argnames='query_batch')
def _run(point: Tap, images: jax.Array, query_batch: int) -> jax.Array:
  def part(chunk):
    logits, features = point.perturbed(chunk)
    return finish(only_finite(first_component(features), logits), images.shape[1:3])

  return chunked(part, images, query_batch)


def first_component(features: jax.Array) -> jax.Array:
  """s_1 u_1 of the centred map as a matrix (h w, K), up to a positive factor.

  The vector comes from the smaller of the two Gram matrices. A map that is the same everywhere, to
  rounding, has no component: 0.

  Args:
    features: float32 (B, h, w, K).

  Returns:
    float32 (B, h, w), the value of the largest size positive.
  """
  matrix = features.reshape(features.shape[0], -1, features.shape[-1])
  # Neither the direction nor the normalised result depends on the scale; squares may overflow.
  matrix = matrix / peak(matrix)
  matrix = matrix - jnp.mean(matrix, axis=1, keepdims=True)
  flat = jnp.max(jnp.abs(matrix), axis=(1, 2), keepdims=True) <= ROUNDING  # of the peak, now 1
  matrix = jnp.where(flat, 0, matrix)
  matrix = matrix / peak(matrix)
  if matrix.shape[1] <= matrix.shape[2]:
    gram = jnp.einsum('bik,bjk->bij', matrix, matrix, precision='highest')
    values, vectors = jnp.linalg.eigh(gram)
    projection = vectors[..., -1] * jnp.sqrt(jnp.maximum(values[:, -1:], 0))
  else:
    gram = jnp.einsum('bik,bil->bkl', matrix, matrix, precision='highest')
    vectors = jnp.linalg.eigh(gram)[1]
    projection = jnp.einsum('bik,bk->bi', matrix, vectors[..., -1], precision='highest')
  largest = jnp.argmax(jnp.abs(projection), axis=1, keepdims=True)
  turned = jnp.where(jnp.take_along_axis(projection, largest, axis=1) < 0, -1, 1)
  return (projection * turned).reshape(features.shape[:3])
