"""HiResCAM.

Paper: Draelos and Carin, "Use HiResCAM instead of Grad-CAM for faithful explanations of
convolutional neural networks", arXiv 2011.08891, equation 3.

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
  'hires_cam', source='Draelos and Carin 2020', queries=2, needs_layer=True, by_gradient=True
)
def hires_cam(
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
  """ReLU(sum over k of dS/dA_k A_k), element by element.

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
  return jax.nn.relu(jnp.sum(gradients / peak(gradients) * features, axis=-1))
