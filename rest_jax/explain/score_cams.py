"""Class activation maps whose channels weigh what taking them away, or showing them, does."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from rest_jax.errors import UserError
from rest_jax.explain.maps import finish, gained, min_max, peak, span, upsample
from rest_jax.explain.methods import Detail, method
from rest_jax.explain.outputs import distance_from_probabilities
from rest_jax.explain.queries import (
  chunked,
  chunked_where,
  only_finite,
  pick,
  probability,
  resolve_targets,
)
from rest_jax.explain.taps import Tap
from rest_jax.ops.platform import jit

VARIANTS = ('paper', 'code')


def _asked(options: dict[str, Any]) -> int:
  """Channels of an image that are asked about: all of them, where it is not known yet."""
  return options.get('steps', options['channels'])


@method(
  title='Score-CAM',
  source='Wang et al. 2020',
  queries=lambda shape, options: _asked(options) + 1 + (options['variant'] == 'paper'),
  layer=True,
  variants=VARIANTS,
)
def score_cam(
  point: Tap,
  images: jax.Array,
  targets: jax.Array | None,
  query_batch: int,
  *,
  variant: str = 'paper',
) -> Detail:
  """ReLU(sum over k of w_k A_k), w_k by how much channel k raises the target's probability.

  Wang et al., "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks",
  CVPR Workshops 2020, arXiv 1910.01279, definitions 2 to 4. Variant 'code' is what the code beside
  Group-CAM (github.com/wofmanaf/Group-CAM) has.

  That is the probability of the image seen through the channel less that of the baseline, of
  which nothing is seen. What a mask hides is 0 for the network: a classifier's mean colour, and
  the value 0 for any other function. One forward pass a channel, and none for one that is constant
  over the image, which has no mask.

  Args:
    variant: 'paper', or 'code', where w_k is the probability itself.
    query_batch: images a forward pass. It bounds the memory, whatever K and B are.
  """
  if variant not in VARIANTS:
    raise UserError(f"variant is 'paper' or 'code', not {variant!r}")
  maps, asked, distances = _score(point, images, targets, variant, query_batch)
  return Detail(maps, steps=asked, distances=distances)


@functools.partial(jit, static_argnames=('variant', 'query_batch'))
def _score(point: Tap, images, targets, variant: str, query_batch: int):
  size = images.shape[1:3]

  def look(item):
    chunk, classes = item
    logits, features = point.perturbed(chunk)
    maps = only_finite(jnp.moveaxis(features, -1, 1), logits)
    return maps, resolve_targets(logits, classes), distance_from_probabilities(logits)

  maps, targets, distances = chunked(look, (images, targets), query_batch)
  varied = span(maps).varied[..., 0, 0]
  weights = _score_weights(point, images, targets, maps, varied, variant, query_batch)
  # Bringing to size is linear, so the sum comes first.
  total = jnp.einsum('bk,bkhw->bhw', weights, maps, precision='highest')
  return min_max(jax.nn.relu(upsample(total, size))), varied.sum(1), distances


def _score_weights(point: Tap, images, targets, maps, varied, variant: str, query_batch: int):
  """What each map (B, K, h, w) that varies does for the target's probability: (B, K)."""
  hidden = jnp.asarray(point.mean or 0.0, jnp.float32) + jnp.zeros(images.shape[-1:])

  def query(pairs):
    image, channel = pairs
    up = upsample(maps[image, channel], images.shape[1:3])
    mask = min_max(up)[..., None]
    seen = images[image] * mask + hidden[None, None, None] * (1 - mask)
    return probability(point, seen, targets[image])

  pairs = jnp.meshgrid(jnp.arange(len(images)), jnp.arange(maps.shape[1]), indexing='ij')
  pairs = tuple(axis.ravel() for axis in pairs)
  weights = chunked_where(query, pairs, varied.ravel(), query_batch).reshape(varied.shape)
  if variant == 'paper':
    baseline = jnp.broadcast_to(hidden[None, None, None], images.shape)
    ask = lambda item: probability(point, *item)  # noqa: E731
    weights = gained(weights, chunked(ask, (baseline, targets), query_batch)[:, None])
  return jnp.where(varied, weights, 0)


@method(
  title='Ablation-CAM',
  source='Desai and Ramaswamy 2020',
  queries=lambda shape, options: _asked(options) + 1,
  layer=True,
  by_gradient=True,
)
def ablation_cam(
  point: Tap, images: jax.Array, targets: jax.Array | None, query_batch: int
) -> Detail:
  """ReLU(sum over k of w_k A_k), w_k what the target's logit loses when channel k is set to 0.

  Desai and Ramaswamy, "Ablation-CAM: Visual Explanations for Deep Convolutional Network via
  Gradient-free Localization", WACV 2020, equations 4 and 5. Deviation: a weight is the drop y - y_k
  and not (y - y_k) / y. The common factor cancels in the normalisation of the map, unless the
  logit y is negative: there it would turn the map round.

  A loss within the logits' rounding is none. A channel that is 0 all over the image is 0 already
  and costs no pass. The part of the model before the layer is run once for `query_batch` channels
  of an image.

  Args:
    query_batch: channels, of one image, at a time.
  """
  maps, asked = _ablate(point, images, targets, query_batch)
  return Detail(maps, steps=asked)


@functools.partial(jit, static_argnames='query_batch')
def _ablate(point: Tap, images, targets, query_batch: int):
  def one(item):
    image, target = item  # an image at a time, with a leading axis of 1
    logits, features = point.perturbed(image)
    target = resolve_targets(logits, target)

    def ablated(channel):
      gone = -features * jax.nn.one_hot(channel, features.shape[-1])[None, None, None]
      return pick(point.perturbed(image, gone)[0], target)

    # Mapped over the perturbation alone: what comes before the layer stays one image.
    channels, there = jnp.arange(features.shape[-1]), jnp.any(features != 0, (0, 1, 2))
    left = chunked_where(jax.vmap(ablated), channels, there, query_batch)[:, 0]
    left = jnp.where(there, left, pick(logits, target))
    size = jnp.max(jnp.abs(logits))  # what the logit's rounding is measured by
    weights = gained(pick(logits, target), left, jnp.maximum(size, jnp.abs(left)))
    weights = weights / peak(weights[None])[0]
    total = jnp.einsum('bhwk,k->bhw', features, weights, precision='highest')
    found = finish(only_finite(jax.nn.relu(total), logits), images.shape[1:3])
    return found, there.sum()[None]

  return chunked(one, (images, targets), 1)
