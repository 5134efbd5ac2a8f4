"""SmoothGrad (Smilkov et al. 2017, arXiv 1706.03825, section 3)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rest_jax.errors import UserError
from rest_jax.explain.gradients import channels, check_reduction, target_gradients
from rest_jax.explain.method import register
from rest_jax.explain.queries import chunked, min_max, peak, prepare
from rest_jax.explain.sampling import QUERY_BATCH, cross, known_targets, sum_samples

SAMPLES, NOISE = 32, 0.15


@register(
  'smooth_grad',
  needs_layer=False,
  needs_key=True,
  queries=lambda image_shape, options: 1 + 2 * (options['samples'] + options['squared']),
  source='Smilkov et al. 2017, arXiv 1706.03825',
  by_gradient=True,
)
def smooth_grad(
  model: Any,
  images: jax.Array | np.ndarray,
  targets: Any = None,
  *,
  key: jax.Array | None = None,
  samples: int = SAMPLES,
  noise: float = NOISE,
  squared: bool = False,
  reduction: str = 'max',
  output: str | None = None,
  score: Callable[[Any], jax.Array] | None = None,
  query_batch: int = QUERY_BATCH,
) -> jax.Array:
  """The mean gradient of noisy copies of the image.

  Args:
    model: as `tap` takes it: a `Classifier`, or any function of images to logits (B, K).
    images: float32 (B, H, W, C).
    targets: class indices, (B,) or one for all; None for the predicted classes.
    key: of the noise, which is the same for every image up to its size; jax.random.key(0) by
      default.
    samples: noisy copies an image.
    noise: deviation of the noise over the image's range (its largest less its least value).
    squared: the mean of squared gradients instead (SmoothGrad Squared, Hooker et al. 2019).
    reduction: 'max' or 'sum' of the channels' absolute values.
    output: 'softmax' or 'sigmoid', what makes probabilities of logits; as `explain.tap` takes it.
    score: what is explained instead of a class; as `explain.tap` takes it.
    query_batch: noisy copies a pass; changes memory and speed only.

  Returns:
    float32 (B, H, W) in [0, 1].

  Raises:
    UserError: bad images, targets or options.
  """
  point, images, targets = prepare(model, images, targets, output=output, score=score)
  check_reduction(reduction)
  check_samples(samples, noise)
  key = jax.random.key(0) if key is None else key
  targets = known_targets(point, images, targets, query_batch)
  return _maps(point, images, targets, key, noise, samples, squared, reduction, query_batch)


@functools.partial(jax.jit, static_argnames=('samples', 'squared', 'reduction', 'query_batch'))
def _maps(point, images, targets, key, noise, samples, squared, reduction, query_batch):
  # Squares would leave the range of float32; the scale cancels in the end.
  ask = lambda item: peak(target_gradients(point, *item))  # noqa: E731
  unit = chunked(ask, (images, targets), query_batch) if squared else jnp.ones(len(images))

  def contribution(items, sample, weights):
    x, labels, unit = items
    copies = cross(draws(key, sample, x.shape[1:]), x, lambda z, x: x + noise * spread(x) * z)
    gradients = target_gradients(point, copies, jnp.tile(labels, len(sample)))
    gradients = gradients.reshape(len(sample), *x.shape)
    gradients = (gradients / unit[None]) ** 2 if squared else gradients
    return jnp.einsum('r,rpijc->pijc', weights, gradients, precision='highest')

  total = sum_samples(contribution, (images, targets, unit), samples, query_batch)
  return min_max(channels(total / samples, reduction))


def draws(key: jax.Array, samples: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Standard normal noise of each sample's own key: (r,) to (r, *shape)."""
  return jax.vmap(lambda n: jax.random.normal(jax.random.fold_in(key, n), shape))(samples)


def spread(image: jax.Array) -> jax.Array:
  """The range of an image's values, what noise is measured by."""
  return jnp.max(image) - jnp.min(image)


def check_samples(samples: int, noise: float) -> None:
  """Raises UserError unless there are samples, and noise of a finite size."""
  if samples < 1 or not 0 <= noise < float('inf'):
    raise UserError(f'samples are 1 or more and noise is 0 or more, got {samples} and {noise}')
