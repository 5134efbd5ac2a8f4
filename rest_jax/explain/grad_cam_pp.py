"""Grad-CAM++.

Paper: Chattopadhay et al., "Grad-CAM++: Generalized Gradient-based Visual Explanations for Deep
Convolutional Networks", WACV 2018, arXiv 1710.11063, equations 10 and 19.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rest_jax.explain.grad_cams import gradient_cam
from rest_jax.explain.method import register
from rest_jax.explain.queries import peak


@register(
  'grad_cam_pp', source='Chattopadhay et al. 2018', queries=2, needs_layer=True, by_gradient=True
)
def grad_cam_pp(
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
  """ReLU(sum over k of w_k A_k), w_k the sum of alpha ReLU(gradient) over the plane.

  The explained score is Y = exp(S), S being the logit, whose second and third derivatives follow
  from the first for a layer that is linear from there on. With g = dS/dA equation 19 is
  alpha_ij = g_ij^2 / (2 g_ij^2 + (sum over ab of A_ab) g_ij^3) = 1 / (2 + (sum of A) g_ij), and 0
  where g is 0. The factor exp(S) of dY/dA cancels in the normalisation of the map, so it is left
  out and cannot overflow. The paper has layers after a ReLU in mind: where a channel's sum is
  negative, 2 + (sum of A) g may be 0, and is taken as no weight.

  Args:
    model: as `explain.tap` takes it.
    images: floats (B, H, W, C) in [0, 1].
    targets: class indices, (B,) or one for all; by default the predicted classes.
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
  return gradient_cam(_combine, model, images, targets, layer, grid, output, score, query_batch)


def _combine(features: jax.Array, gradients: jax.Array) -> jax.Array:
  weights = plus_plus_weights(features, gradients)
  return jax.nn.relu(jnp.sum(weights * features, axis=-1))


def plus_plus_weights(features: jax.Array, gradients: jax.Array) -> jax.Array:
  """Weights of the channels by equations 5 and 19: (B, h, w, K) twice -> (B, 1, 1, K).

  They are relative to the largest gradient of the image, a factor of the whole map.
  """
  below = 2 + jnp.sum(features, axis=(1, 2), keepdims=True) * gradients
  alpha = jnp.where(below == 0, 0, 1 / jnp.where(below == 0, 1, below))
  raised = jax.nn.relu(gradients / peak(gradients))  # 0 where the gradient is 0, so alpha need not
  return jnp.sum(alpha * raised, axis=(1, 2), keepdims=True)
