"""Smooth Grad-CAM++.

Paper: Omeiza et al., "Smooth Grad-CAM++: An Enhanced Inference Level Visualization Technique for
Deep Convolutional Neural Network Models", arXiv 1908.01224, equations 11 to 13.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rest_jax.explain.method import register
from rest_jax.explain.queries import (
  chunked,
  finish,
  layer_gradient,
  only_finite,
  pick,
  prepare,
  resolve_targets,
)
from rest_jax.explain.smooth_grad import NOISE, check_samples
from rest_jax.explain.taps import Tap


@register(
  'smooth_grad_cam_pp',
  source='Omeiza et al. 2019',
  queries=lambda shape, options: 2 * options['samples'] + 1,
  needs_layer=True,
  needs_key=True,
  by_gradient=True,
)
def smooth_grad_cam_pp(
  model: Any,
  images: Any,
  targets: Any = None,
  *,
  key: jax.Array | None = None,
  layer: str | None = None,
  grid: tuple[int, int] | None = None,
  samples: int = 16,
  noise: float = NOISE,
  output: str | None = None,
  score: Callable[[Any], jax.Array] | None = None,
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
    key: of the noise, which is the same for every image up to its size; jax.random.key(0) by
      default. Or (B,) keys, one an image.
    layer: path of the layer whose map A is used; a default by `explain.tap`.
    grid: (rows, columns) of a layer that gives tokens.
    samples: noisy copies of each image.
    noise: deviation of the noise over the image's range (its largest less its least value).
    output: 'softmax' or 'sigmoid', what makes probabilities of logits; as `explain.tap` takes it.
    score: what is explained instead of a class; as `explain.tap` takes it.
    query_batch: images a pass, at most.

  Returns:
    float32 (B, H, W) in [0, 1]; a constant map is all zero.

  Raises:
    UserError: bad images, targets, layer or options.
  """
  check_samples(samples, noise)
  point, images, targets = prepare(model, images, targets, layer, grid, output=output, score=score)
  key = jax.random.key(0) if key is None else key
  return _run(point, images, targets, key, jnp.float32(noise), samples, query_batch)


@functools.partial(jax.jit, static_argnames=('samples', 'query_batch'))
def _run(point: Tap, images, targets, key, noise, samples: int, query_batch: int) -> jax.Array:
  keys = jnp.broadcast_to(key, (len(images),))

  def part(item):
    chunk, classes, key = item
    logits, features = point.perturbed(chunk)
    classes = resolve_targets(logits, classes)
    deviation = noise * jnp.ptp(chunk, axis=(1, 2, 3), keepdims=True)

    def add(total, sample):
      draws = jax.vmap(_noise, (0, None, None))(key, sample, chunk.shape[1:])
      seen = layer_gradient(point, chunk + deviation * draws, classes)
      return _accumulate(total, seen.gradients, pick(seen.logits, classes)), None

    zeros = jnp.zeros_like(features)
    start = Sums(jnp.full_like(deviation, -jnp.inf), jnp.zeros_like(deviation), zeros, zeros, zeros)
    sums, _ = jax.lax.scan(add, start, jnp.arange(samples))
    maps = jax.nn.relu(jnp.sum(_weights(features, sums) * features, axis=-1))
    return finish(only_finite(maps, logits), images.shape[1:3])

  return chunked(part, (images, targets, keys), query_batch)


def _noise(key: jax.Array, sample: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  return jax.random.normal(jax.random.fold_in(key, sample), shape)


class Sums(NamedTuple):
  """Sums over the samples of exp(S - top) (g / peak)^n, n = 1, 2, 3, (B, h, w, K) each.

  `top` is the greatest S so far and `peak` the greatest |g|, (B, 1, 1, 1) each: neither exp(S) nor
  a power of g then leaves the range of float32, and both cancel in the end.
  """

  top: jax.Array
  peak: jax.Array
  first: jax.Array
  second: jax.Array
  third: jax.Array


def _accumulate(sums: Sums, gradients: jax.Array, scores: jax.Array) -> Sums:
  scores = scores[:, None, None, None]
  top = jnp.maximum(sums.top, scores)
  peak = jnp.maximum(sums.peak, jnp.max(jnp.abs(gradients), axis=(1, 2, 3), keepdims=True))
  unit = jnp.where(peak > 0, peak, 1)
  old, new = jnp.exp(sums.top - top), jnp.exp(scores - top)
  shrink, gradients = sums.peak / unit, gradients / unit
  powers = (sums.first, sums.second, sums.third)
  made = [old * s * shrink**n + new * gradients**n for n, s in enumerate(powers, 1)]
  return Sums(top, peak, *made)


def _weights(features: jax.Array, sums: Sums) -> jax.Array:
  """Equations 11 to 13 with equation 10 of Grad-CAM++: (B, h, w, K) -> (B, 1, 1, K).

  alpha = D2 / (2 D2 + (sum of A) D3), D2 and D3 the mean second and third derivatives at the same
  place; 0 where that is no number.
  """
  total = jnp.sum(features, axis=(1, 2), keepdims=True)
  below = 2 * sums.second + total * sums.peak * sums.third
  alpha = jnp.where(below == 0, 0, sums.second / jnp.where(below == 0, 1, below))
  return jnp.sum(alpha * jax.nn.relu(sums.first), axis=(1, 2), keepdims=True)
