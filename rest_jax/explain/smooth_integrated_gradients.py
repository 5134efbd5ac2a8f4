"""SmoothGrad of integrated gradients (Smilkov et al. 2017, arXiv 1706.03825, section 3.3).

The mean over noisy images of their integrated gradients. Group-CAM's authors draw new noise at
each point of the path and sum plain gradients; here too each point has noise of its own, which
estimates the same mean with one gradient a sample, but the path ends at the noisy image and the
gradient is multiplied by it, so that completeness holds in the mean.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rest_jax.explain.convergence import Integral, refined
from rest_jax.explain.fills import fill_images
from rest_jax.explain.gradients import channels, check_reduction, target_gradients
from rest_jax.explain.method import Detail, register
from rest_jax.explain.queries import chunked, min_max, only_finite, pick, prepare, vary_like
from rest_jax.explain.sampling import QUERY_BATCH, all_logits, known_targets
from rest_jax.explain.smooth_grad import NOISE, check_samples, draws, spread

SAMPLES, ROUNDS = 64, 5  # of the first mean; 64, 128, ..., 1024 until one is complete


@register(
  'smooth_integrated_gradients',
  needs_key=True,
  queries=lambda image_shape, options: (
    2 + 3 * (options.get('steps') or options['samples'] or SAMPLES)
  ),
  source='Smilkov et al. 2017, arXiv 1706.03825',
  by_gradient=True,
)
def smooth_integrated_gradients(
  model: Any,
  images: jax.Array | np.ndarray,
  targets: Any = None,
  *,
  key: jax.Array | None = None,
  baseline: str | jax.Array | np.ndarray = 'black',
  samples: int | None = None,
  noise: float = NOISE,
  reduction: str = 'sum',
  output: str | None = None,
  score: Callable[[Any], jax.Array] | None = None,
  query_batch: int = QUERY_BATCH,
) -> Detail:
  """Absolute integrated gradients, averaged over noisy images.

  `explain.explain(...).values` are the attributions themselves, summed over the channels, and
  `.delta` is how far they are from the mean score of the noisy images less the baseline's; over
  5 % there is a warning.

  Args:
    model: as `tap` takes it: a `Classifier`, or any function of images to logits (B, K).
    images: float32 (B, H, W, C).
    targets: class indices, (B,) or one for all; None for the predicted classes.
    key: of the noise, which is the same for every image up to its size; jax.random.key(0) by
      default.
    baseline: where the paths start, as for `integrated_gradients`.
    samples: points, spread evenly over the path, each with noise of its own; by default 64 and
      twice as many each time, up to 1024, until the attributions are complete within 5 %, for
      each image by itself.
    noise: deviation of the noise over the image's range.
    reduction: 'sum' or 'max' of the channels' absolute values.
    output: 'softmax' or 'sigmoid', what makes probabilities of logits; as `explain.tap` takes it.
    score: what is explained instead of a class; as `explain.tap` takes it.
    query_batch: samples of an image a pass; changes memory and speed only.

  Returns:
    float32 (B, H, W) in [0, 1].

  Raises:
    UserError: bad images, targets or options.
  """
  point, images, targets = prepare(model, images, targets, output=output, score=score)
  check_reduction(reduction)
  check_samples(SAMPLES if samples is None else samples, noise)
  key = jax.random.key(0) if key is None else key
  start = fill_images(point, images, baseline)
  targets = known_targets(point, images, targets, query_batch)
  count, rounds = (SAMPLES, ROUNDS) if samples is None else (samples, 1)
  found = _integrals(point, images, start, targets, key, noise, count, rounds, query_batch)
  maps = min_max(channels(found.attributions, reduction))
  return Detail(maps, found.attributions.sum(-1), found.delta, found.steps)


@functools.partial(jax.jit, static_argnames=('count', 'rounds', 'query_batch'))
def _integrals(point, images, start, targets, key, noise, count: int, rounds: int, query_batch):
  begins = all_logits(point, start, query_batch)

  def one(item):
    image, from_, target, begin = jax.tree.map(lambda x: x[0], item)

    def integrate(parts):
      samples = parts * count
      attributions, end = _mean(
        point, image, from_, target, key, noise, samples, count, query_batch
      )
      return attributions, end, begin[target]

    return jax.tree.map(lambda x: x[None], refined(integrate, image, rounds))

  attributions, delta, gain, parts = chunked(one, (images, start, targets, begins), 1)
  return Integral(only_finite(attributions, begins), delta, gain, parts * count)


def _mean(point, image, start, target, key, noise, samples, count: int, query_batch: int):
  """Means over the samples: way times gradient (H, W, C), and the noisy image's score ()."""
  block = min(count, max(1, query_batch))
  labels, total = jnp.broadcast_to(target, (block,)), samples.astype(jnp.float32)

  def add(i, sums):
    sample = i * block + jnp.arange(block)
    weight = jnp.where(sample < samples, 1 / total, 0)  # beyond: only fills the block up
    ways = image[None] - start[None] + noise * spread(image) * draws(key, sample, image.shape)
    share = ((sample.astype(jnp.float32) + 0.5) / total)[:, None, None, None]
    parts = ways * target_gradients(point, start[None] + share * ways, labels)
    ends = pick(point(start[None] + ways), labels)
    mean = jnp.einsum('r,rijc->ijc', weight, parts, precision='highest')
    return sums[0] + mean, sums[1] + jnp.sum(weight * ends)

  zeros = (jnp.zeros_like(image), jnp.float32(0))
  zeros = jax.tree.map(lambda x: vary_like(x, image), zeros)
  return jax.lax.fori_loop(0, -(-samples // block), add, zeros)
