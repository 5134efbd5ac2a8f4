"""Ablation-CAM.

Paper: Desai and Ramaswamy, "Ablation-CAM: Visual Explanations for Deep Convolutional Network via
Gradient-free Localization", WACV 2020, equations 4 and 5.

Deviation: a weight is the drop y - y_k and not (y - y_k) / y. The common factor cancels in the
normalisation of the map, unless the logit y is negative: there it would turn the map round.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rest_jax.explain.method import register
from rest_jax.explain.queries import (
  chunked,
  finish,
  gained,
  only_finite,
  peak,
  pick,
  prepare,
  resolve_targets,
)
from rest_jax.explain.taps import Tap


@register(
  'ablation_cam',
  source='Desai and Ramaswamy 2020',
  queries=lambda shape, options: options['channels'] + 1,
  needs_layer=True,
  by_gradient=True,
)
def ablation_cam(
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
  """ReLU(sum over k of w_k A_k), w_k what the target's logit loses when channel k is set to 0.

  A loss within the logits' rounding is none.

  The part of the model before the layer is run once for `query_batch` channels of an image.

  Args:
    model: as `explain.tap` takes it.
    images: floats (B, H, W, C) in [0, 1].
    targets: class indices, (B,) or one for all; by default the predicted classes.
    layer: path of the layer whose map A is used; a default by `explain.tap`.
    grid: (rows, columns) of a layer that gives tokens.
    output: 'softmax' or 'sigmoid', what makes probabilities of logits; as `explain.tap` takes it.
    score: what is explained instead of a class; as `explain.tap` takes it.
    query_batch: channels, of one image, at a time.

  Returns:
    float32 (B, H, W) in [0, 1]; a constant map is all zero.

  Raises:
    UserError: bad images, targets or layer.
  """
  point, images, targets = prepare(model, images, targets, layer, grid, output=output, score=score)
  return _run(point, images, targets, query_batch)


@functools.partial(jax.jit, static_argnames='query_batch')
def _run(point: Tap, images, targets, query_batch: int) -> jax.Array:
  def one(item):
    image, target = item  # an image at a time, with a leading axis of 1
    logits, features = point.perturbed(image)
    target = resolve_targets(logits, target)

    def ablated(channel):
      gone = -features * jax.nn.one_hot(channel, features.shape[-1])[None, None, None]
      return pick(point.perturbed(image, gone)[0], target)

    # Mapped over the perturbation alone: what comes before the layer stays one image.
    channels = jnp.arange(features.shape[-1])
    left = chunked(jax.vmap(ablated), channels, query_batch)
    size = jnp.max(jnp.abs(logits))  # what the logit's rounding is measured by
    weights = gained(pick(logits, target), left[:, 0], jnp.maximum(size, jnp.abs(left[:, 0])))
    weights = weights / peak(weights[None])[0]
    total = jnp.einsum('bhwk,k->bhw', features, weights, precision='highest')
    return finish(only_finite(jax.nn.relu(total), logits), images.shape[1:3])

  return chunked(one, (images, targets), 1)
