"""Grad-CAM++.

Paper: Chattopadhay et al., "Grad-CAM++: Generalized Gradient-based Visual Explanations for Deep
Convolutional Networks", WACV 2018, arXiv 1710.11063, equations 11 to 19.

"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rest_jax.explain.gradient_cams import gradient_cam
from rest_jax.explain.registry import register


@register('grad_cam_pp', source='Chattopadhay et al. 2018', queries=2, needs_layer=True)
def grad_cam_pp(
  model: Any,
  images: Any,
  targets: Any = None,
  *,
  layer: str | None = None,
  grid: tuple[int, int] | None = None,
  query_batch: int = 32,
) -> jax.Array:
  """ReLU(sum over k of w_k A_k), w_k the sum of alpha ReLU(gradient) over the plane.

  The explained score is Y = exp(S), S being the logit, whose second and third derivatives follow
  from the first for a layer that is linear from there on: with g = dS/dA,
  alpha = g^2 / (2 g^2 + sum over the plane of A g^3). The factor exp(S) of dY/dA cancels in the
  normalisation of the map, so it is left out and cannot overflow.

  Args:
    model: as `explain.tap` takes it.
    images: floats (B, H, W, C) in [0, 1].
    targets: class indices, (B,) or one for all; by default the predicted classes.
    layer: path of the layer whose map A is used; a default by `explain.tap`.
    grid: (rows, columns) of a layer that gives tokens.
    query_batch: images at a time.

  Returns:
    float32 (B, H, W) in [0, 1]; a constant map is all zero.

  Raises:
    UserError: bad images, targets or layer.
  """
  return gradient_cam(_combine, model, images, targets, layer, grid, query_batch)


def _combine(features: jax.Array, gradients: jax.Array) -> jax.Array:
  weights = plus_plus_weights(features, gradients, gradients**2, gradients**3)
  return jax.nn.relu(jnp.sum(weights * features, axis=-1))


def plus_plus_weights(
  features: jax.Array, first: jax.Array, second: jax.Array, third: jax.Array
) -> jax.Array:
  """Weights of the channels from the score's derivatives: (B, h, w, K) four times -> (B, 1, 1, K).

  Where the denominator is 0 alpha is the numerator, as in the authors' code, and 1e-7 is added.
  """
  below = 2 * second + jnp.sum(features * third, axis=(1, 2), keepdims=True)
  alpha = second / (jnp.where(below == 0, 1, below) + 1e-7)
  return jnp.sum(alpha * jax.nn.relu(first), axis=(1, 2), keepdims=True)
