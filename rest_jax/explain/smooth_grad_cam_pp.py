"""Smooth Grad-CAM++.

Paper: Omeiza et al., "Smooth Grad-CAM++: An Enhanced Inference Level Visualization Technique for
Deep Convolutional Neural Network Models", arXiv 1908.01224, equations 11 to 13.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from rest_jax.errors import UserError
from rest_jax.explain.common import (
  chunked,
  finish,
  image_keys,
  layer_gradient,
  pick,
  prepare,
  resolve_targets,
)
from rest_jax.explain.grad_cam_pp import plus_plus_weights
from rest_jax.explain.registry import register
from rest_jax.explain.taps import Tap


@register(
  'smooth_grad_cam_pp',
  source='Omeiza et al. 2019',
  queries=lambda shape, options: 2 * options['samples'] + 1,
  needs_layer=True,
  needs_key=True,
)
def smooth_grad_cam_pp(
  model: Any,
  images: Any,
  targets: Any = None,
  *,
  key: jax.Array,
  layer: str | None = None,
  grid: tuple[int, int] | None = None,
  samples: int = 16,
  spread: float = 0.15,
  query_batch: int = 32,
) -> jax.Array:
  """Grad-CAM++ with the three derivatives averaged over noisy copies of the image.

  The derivatives of Y = exp(S) at the layer are exp(S) g, exp(S) g^2 and exp(S) g^3, g = dS/dA;
  exp(S) is taken relative to the greatest of the image's samples, a factor that cancels. A is the
  map of the image without noise.

  Args:
    model: as `explain.tap` takes it.
    images: floats (B, H, W, C) in [0, 1].
    targets: class indices, (B,) or one for all; by default the predicted classes.
    key: `jax.random.key`, of which image i uses `fold_in(key, i)`; or (B,) keys, one an image.
    layer: path of the layer whose map A is used; a default by `explain.tap`.
    grid: (rows, columns) of a layer that gives tokens.
    samples: noisy copies of each image.
    spread: deviation of the noise over the image's own range, max - min.
    query_batch: images a pass, at most.

  Returns:
    float32 (B, H, W) in [0, 1]; a constant map is all zero.

  Raises:
    UserError: bad images, targets, layer or options.
  """
  if samples < 1 or spread < 0:
    raise UserError(f'samples is 1 or more and spread 0 or more, got {samples} and {spread}')
  point, images, targets = prepare(model, images, targets, layer, grid)
  return _run(point, images, targets, key, jnp.float32(spread), samples, query_batch)


@functools.partial(jax.jit, static_argnames=('samples', 'query_batch'))
def _run(point: Tap, images, targets, key, spread, samples: int, query_batch: int) -> jax.Array:
  keys = image_keys(key, len(images))

  def part(item):
    chunk, classes, key = item
    logits, features = point.perturbed(chunk)
    classes = resolve_targets(logits, classes)
    deviation = spread * jnp.ptp(chunk, axis=(1, 2, 3), keepdims=True)

    def add(total, sample):
      noise = jax.vmap(_noise, (0, None, None))(key, sample, chunk.shape[1:])
      seen = layer_gradient(point, chunk + deviation * noise, classes)
      return _accumulate(total, seen.gradients, pick(seen.logits, classes)), None

    zeros = jnp.zeros_like(features)
    start = (jnp.full_like(deviation, -jnp.inf), zeros, zeros, zeros)
    (_, *means), _ = jax.lax.scan(add, start, jnp.arange(samples))
    weights = plus_plus_weights(features, *(mean / samples for mean in means))
    return finish(jax.nn.relu(jnp.sum(weights * features, axis=-1)), images.shape[1:3])

  return chunked(part, (images, targets, keys), query_batch)


def _noise(key: jax.Array, sample: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  return jax.random.normal(jax.random.fold_in(key, sample), shape)


def _accumulate(total, gradients: jax.Array, scores: jax.Array):
  """Adds exp(S) g, exp(S) g^2, exp(S) g^3 to sums that are relative to the greatest exp(S)."""
  top, *sums = total
  scores = scores[:, None, None, None]
  new_top = jnp.maximum(top, scores)
  old, new = jnp.exp(top - new_top), jnp.exp(scores - new_top)
  sums = [old * s + new * gradients**order for order, s in enumerate(sums, 1)]
  return new_top, *sums
