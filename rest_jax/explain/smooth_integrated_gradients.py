"""SmoothGrad of integrated gradients (Smilkov et al. 2017, arXiv 1706.03825, section 3.3).

The mean over noisy images of their integrated gradients. Group-CAM's authors draw new noise at
each point of the path and sum plain gradients; here too each point has noise of its own, which
estimates the same mean with one gradient a sample, but the path ends at the noisy image and the
gradient is multiplied by it, so that completeness holds in the mean.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rest_jax.explain.common import min_max, prepare
from rest_jax.explain.gradient import channels, check_reduction, target_gradients
from rest_jax.explain.metrics.fills import fill_images
from rest_jax.explain.registry import register
from rest_jax.explain.sampling import QUERY_BATCH, cross, known_targets, sum_samples
from rest_jax.explain.smooth_grad import NOISE, check_samples, draws, spread

SAMPLES = 64


@register(
  'smooth_integrated_gradients',
  needs_layer=False,
  needs_key=True,
  queries=lambda image_shape, options: 1 + 2 * options.get('samples', SAMPLES),
  source='Smilkov et al. 2017, arXiv 1706.03825',
)
def smooth_integrated_gradients(
  model: Any,
  images: jax.Array | np.ndarray,
  targets: Any = None,
  *,
  key: jax.Array | None = None,
  baseline: str | jax.Array | np.ndarray = 'black',
  samples: int = SAMPLES,
  noise: float = NOISE,
  reduction: str = 'sum',
  query_batch: int = QUERY_BATCH,
) -> jax.Array:
  """Absolute integrated gradients, averaged over noisy images.

  Args:
    model: as `tap` takes it: a `Classifier`, or any function of images to logits (B, K).
    images: float32 (B, H, W, C).
    targets: class indices, (B,) or one for all; None for the predicted classes.
    key: of the noise, which is the same for every image up to its size; jax.random.key(0) by
      default.
    baseline: where the paths start, as for `integrated_gradients`.
    samples: points, spread evenly over the path, each with noise of its own.
    noise: deviation of the noise over the image's range.
    reduction: 'sum' or 'max' of the channels' absolute values.
    query_batch: images a pass; changes memory and speed only.

  Returns:
    float32 (B, H, W) in [0, 1].

  Raises:
    UserError: bad images, targets or options.
  """
  point, images, targets = prepare(model, images, targets)
  check_reduction(reduction)
  check_samples(samples, noise)
  key = jax.random.key(0) if key is None else key
  start = fill_images(point, images, baseline)
  targets = known_targets(point, images, targets, query_batch)
  return _maps(point, images, start, targets, key, noise, samples, reduction, query_batch)


@functools.partial(jax.jit, static_argnames=('samples', 'reduction', 'query_batch'))
def _maps(point, images, start, targets, key, noise, samples, reduction, query_batch):
  def contribution(items, sample, weights):
    pairs, labels = items

    def way_of(z, pair):
      return pair[0] + noise * spread(pair[0]) * z - pair[1]

    shape = pairs.shape[:1] + pairs.shape[2:]
    ways = cross(draws(key, sample, shape[1:]), pairs, way_of)
    share = jnp.repeat((sample.astype(jnp.float32) + 0.5) / samples, shape[0])[:, None, None, None]
    on_path = jnp.tile(pairs[:, 1], (len(sample), 1, 1, 1)) + share * ways
    parts = ways * target_gradients(point, on_path, jnp.tile(labels, len(sample)))
    return jnp.einsum('r,rpijc->pijc', weights, parts.reshape(-1, *shape), precision='highest')

  pairs = jnp.stack([images, start], 1)
  total = sum_samples(contribution, (pairs, targets), samples, query_batch)
  return min_max(channels(total / samples, reduction))
