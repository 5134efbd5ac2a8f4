"""Score-CAM.

Paper: Wang et al., "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural
Networks", CVPR Workshops 2020, arXiv 1910.01279, definitions 2 to 4.
Variant 'code' is what the code beside Group-CAM (github.com/wofmanaf/Group-CAM) has: a channel's
weight is the target's probability behind its mask, without that of the baseline.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rest_jax.errors import UserError
from rest_jax.explain.method import register
from rest_jax.explain.queries import (
  chunked,
  gained,
  min_max,
  only_finite,
  prepare,
  probability,
  resolve_targets,
  span,
  upsample,
)
from rest_jax.explain.taps import Tap


@register(
  'score_cam',
  source='Wang et al. 2020',
  queries=lambda shape, options: options['channels'] + 1 + (options['variant'] == 'paper'),
  needs_layer=True,
)
def score_cam(
  model: Any,
  images: Any,
  targets: Any = None,
  *,
  layer: str | None = None,
  grid: tuple[int, int] | None = None,
  variant: str = 'paper',
  output: str | None = None,
  score: Callable[[Any], jax.Array] | None = None,
  query_batch: int = 32,
) -> jax.Array:
  """ReLU(sum over k of w_k A_k), w_k by how much channel k raises the target's probability.

  That is the probability of the image seen through the channel less that of the baseline, of
  which nothing is seen. What a mask hides is 0 for the network: a classifier's mean colour, and
  the value 0 for any other function. Constant channels are skipped. One forward pass a channel.

  Args:
    model: as `explain.tap` takes it.
    images: floats (B, H, W, C) in [0, 1].
    targets: class indices, (B,) or one for all; by default the predicted classes.
    layer: path of the layer whose map A is used; a default by `explain.tap`.
    grid: (rows, columns) of a layer that gives tokens.
    output: 'softmax' or 'sigmoid', what makes probabilities of logits; as `explain.tap` takes it.
    score: what is explained instead of a class; as `explain.tap` takes it.
    variant: 'paper', or 'code', where w_k is the probability itself.
    query_batch: images a forward pass. It bounds the memory, whatever K and B are.

  Returns:
    float32 (B, H, W) in [0, 1]; a constant map is all zero.

  Raises:
    UserError: bad images, targets or layer.
  """
  point, images, targets = prepare(model, images, targets, layer, grid, output=output, score=score)
  if variant not in ('paper', 'code'):
    raise UserError(f"variant is 'paper' or 'code', not {variant!r}")
  return _run(point, images, targets, variant, query_batch)


@functools.partial(jax.jit, static_argnames=('variant', 'query_batch'))
def _run(point: Tap, images, targets, variant: str, query_batch: int) -> jax.Array:
  size = images.shape[1:3]

  def look(item):
    chunk, classes = item
    logits, features = point.perturbed(chunk)
    maps = only_finite(jnp.moveaxis(features, -1, 1), logits)
    return maps, resolve_targets(logits, classes)

  maps, targets = chunked(look, (images, targets), query_batch)
  hidden = jnp.asarray(point.mean or 0.0, jnp.float32) + jnp.zeros(images.shape[-1:])

  def query(pairs):
    image, channel = pairs
    up = upsample(maps[image, channel], size)
    mask = min_max(up)[..., None]
    seen = images[image] * mask + hidden[None, None, None] * (1 - mask)
    varied = span(up).varied[:, 0, 0]
    return probability(point, seen, targets[image]), varied

  pairs = jnp.meshgrid(jnp.arange(len(images)), jnp.arange(maps.shape[1]), indexing='ij')
  found = chunked(query, tuple(axis.ravel() for axis in pairs), query_batch)
  weights, varied = (x.reshape(maps.shape[:2]) for x in found)
  if variant == 'paper':
    baseline = jnp.broadcast_to(hidden[None, None, None], images.shape)
    ask = lambda item: probability(point, *item)  # noqa: E731
    weights = gained(weights, chunked(ask, (baseline, targets), query_batch)[:, None])
  weights = jnp.where(varied, weights, 0)
  # Bringing to size is linear, so the sum comes first.
  total = jnp.einsum('bk,bkhw->bhw', weights, maps, precision='highest')
  return min_max(jax.nn.relu(upsample(total, size)))
