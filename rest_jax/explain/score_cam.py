"""Score-CAM.

Paper: Wang et al., "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural
Networks", CVPR Workshops 2020, arXiv 1910.01279, definitions 3 and 4.
As in the code beside Group-CAM (github.com/wofmanaf/Group-CAM): a channel's weight is the target's
probability behind its mask, without a baseline and without a softmax over channels.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from rest_jax.explain.common import (
  chunked,
  min_max,
  prepare,
  probability,
  resolve_targets,
  span,
  upsample,
)
from rest_jax.explain.registry import register
from rest_jax.explain.taps import Tap


@register(
  'score_cam',
  source='Wang et al. 2020',
  queries=lambda shape, options: options['channels'] + 1,
  needs_layer=True,
)
def score_cam(
  model: Any,
  images: Any,
  targets: Any = None,
  *,
  layer: str | None = None,
  grid: tuple[int, int] | None = None,
  query_batch: int = 32,
) -> jax.Array:
  """ReLU(sum over k of p_k A_k), p_k the probability of the image seen through channel k.

  What a mask hides is 0 for the network: a classifier's mean colour, and the value 0 for any other
  function. Constant channels are skipped. One forward pass a channel.

  Args:
    model: as `explain.tap` takes it.
    images: floats (B, H, W, C) in [0, 1].
    targets: class indices, (B,) or one for all; by default the predicted classes.
    layer: path of the layer whose map A is used; a default by `explain.tap`.
    grid: (rows, columns) of a layer that gives tokens.
    query_batch: images a forward pass. It bounds the memory, whatever K and B are.

  Returns:
    float32 (B, H, W) in [0, 1]; a constant map is all zero.

  Raises:
    UserError: bad images, targets or layer.
  """
  point, images, targets = prepare(model, images, targets, layer, grid)
  return _run(point, images, targets, query_batch)


@functools.partial(jax.jit, static_argnames='query_batch')
def _run(point: Tap, images, targets, query_batch: int) -> jax.Array:
  size = images.shape[1:3]

  def look(item):
    chunk, classes = item
    logits, features = point.perturbed(chunk)
    return jnp.moveaxis(features, -1, 1), resolve_targets(logits, classes)

  maps, targets = chunked(look, (images, targets), query_batch)
  hidden = jnp.asarray(point.mean or 0.0, jnp.float32) + jnp.zeros(images.shape[-1:])

  def query(pairs):
    image, channel = pairs
    up = upsample(maps[image, channel], size)
    mask = min_max(up)[..., None]
    seen = images[image] * mask + hidden[None, None, None] * (1 - mask)
    return jnp.where(span(up).varied[:, 0, 0], probability(point(seen), targets[image]), 0)

  pairs = jnp.meshgrid(jnp.arange(len(images)), jnp.arange(maps.shape[1]), indexing='ij')
  weights = chunked(query, tuple(axis.ravel() for axis in pairs), query_batch)
  weights = weights.reshape(maps.shape[:2])
  # Bringing to size is linear, so the sum comes first.
  total = jnp.einsum('bk,bkhw->bhw', weights, maps, precision='highest')
  return min_max(jax.nn.relu(upsample(total, size)))
