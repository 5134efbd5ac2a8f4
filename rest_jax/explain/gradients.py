"""Maps of the gradient at the pixels: plain, guided, and the mean over noisy copies."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from rest_jax.errors import UserError
from rest_jax.explain.maps import min_max, peak
from rest_jax.explain.methods import method
from rest_jax.explain.queries import (
  chunked,
  cross,
  known_targets,
  sum_samples,
  target_gradients,
)
from rest_jax.explain.relus import guided
from rest_jax.explain.taps import Tap
from rest_jax.ops.platform import jit

SAMPLES, NOISE = 32, 0.15


@method(
  title='Gradient', source='Simonyan et al. 2013, arXiv 1312.6034', queries=2, by_gradient=True
)
def gradient(
  point: Tap,
  images: jax.Array,
  targets: jax.Array | None,
  query_batch: int,
  *,
  reduction: str = 'max',
) -> jax.Array:
  """|d logit / d pixel|, the largest of the channels.

  Simonyan et al. 2013, arXiv 1312.6034, section 3.

  Args:
    reduction: 'max' of the channels as in the paper, or their 'sum'.

  Returns:
    float32 (B, H, W) in [0, 1]; zeros where the gradient has one size everywhere.
  """
  check_reduction(reduction)
  return _sizes(point, images, targets, reduction, query_batch, False)


@method(
  title='Guided backpropagation',
  source='Springenberg et al. 2014, arXiv 1412.6806',
  queries=2,
  by_gradient=True,
)
def guided_backprop(
  point: Tap,
  images: jax.Array,
  targets: jax.Array | None,
  query_batch: int,
  *,
  reduction: str = 'max',
) -> jax.Array:
  """The gradient, with negative gradients stopped at every ReLU; the largest of the channels.

  Springenberg et al. 2014, arXiv 1412.6806, section 3.4. The rule is for ReLU alone: other
  activations keep their gradient, so on a model with few ReLUs (a ResT has them only in its stem)
  the map is close to the plain gradient's, and a model without any is refused.

  Args:
    reduction: 'max' or 'sum' of the channels' absolute values.

  Raises:
    UserError: bad images, targets or reduction, or a model without ReLU (`relus.guided`).
  """
  check_reduction(reduction)
  return _sizes(point, images, targets, reduction, query_batch, True)


@functools.partial(jit, static_argnames=('reduction', 'query_batch', 'is_guided'))
def _sizes(point, images, targets, reduction: str, query_batch: int, is_guided: bool) -> jax.Array:
  model = guided(point) if is_guided else point

  def part(item):
    return min_max(channels(target_gradients(model, *item), reduction))

  return chunked(part, (images, targets), query_batch)


@method(
  title='SmoothGrad',
  source='Smilkov et al. 2017, arXiv 1706.03825',
  queries=lambda shape, options: 1 + 2 * (options['samples'] + options['squared']),
  by_gradient=True,
)
def smooth_grad(
  point: Tap,
  images: jax.Array,
  targets: jax.Array | None,
  key: jax.Array,
  query_batch: int,
  *,
  samples: int = SAMPLES,
  noise: float = NOISE,
  squared: bool = False,
  reduction: str = 'max',
) -> jax.Array:
  """The mean gradient of noisy copies of the image.

  Smilkov et al. 2017, arXiv 1706.03825, section 3.

  Args:
    key: of the noise, which is the same for every image up to its size; jax.random.key(0) by
      default.
    samples: noisy copies an image.
    noise: deviation of the noise over the image's range (its largest less its least value).
    squared: the mean of squared gradients instead (SmoothGrad Squared, Hooker et al. 2019).
    reduction: 'max' or 'sum' of the channels' absolute values.
    query_batch: noisy copies a pass; changes memory and speed only.
  """
  check_reduction(reduction)
  check_samples(samples, noise)
  targets = known_targets(point, images, targets, query_batch)
  return _smooth(point, images, targets, key, noise, samples, squared, reduction, query_batch)


@functools.partial(jit, static_argnames=('samples', 'squared', 'reduction', 'query_batch'))
def _smooth(point, images, targets, key, noise, samples, squared, reduction, query_batch):
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


def channels(attributions: jax.Array, reduction: str) -> jax.Array:
  """(B, H, W, C) to (B, H, W): the 'max' or the 'sum' of absolute values over the channels."""
  sizes = jnp.abs(attributions)
  return jnp.max(sizes, -1) if reduction == 'max' else jnp.sum(sizes, -1)


def check_reduction(reduction: str) -> None:
  """Raises UserError unless 'max' or 'sum'."""
  if reduction not in ('max', 'sum'):
    raise UserError(f"reduction is 'max' or 'sum' over the channels, got {reduction!r}")
