"""Group-CAM: channels in groups, each weighted by what its mask does for the probability.

Paper: Zhang, Rao and Yang, "Group-CAM: Group Score-Weighted Visual Explanations for Deep
Convolutional Networks", arXiv 2103.13859, section 3 and algorithm 1.
Original code: github.com/wofmanaf/Group-CAM (PyTorch, Apache-2.0): variant 'paper' is that of 30
May 2021, 'latest' that of 18 August 2021.

Deviation: a constant group is skipped in both variants; the latest code divides 0 by 0 there.
Images are blurred before the normalisation instead of after it, which is the same.
"""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rest_jax import ops
from rest_jax.errors import UserError
from rest_jax.explain.maps import gained, min_max, peak, rescale, span, upsample
from rest_jax.explain.methods import Detail, method
from rest_jax.explain.outputs import distance_from_probabilities
from rest_jax.explain.queries import chunked, layer_gradient, probability
from rest_jax.explain.taps import Tap
from rest_jax.ops.platform import jit

VARIANTS = ('paper', 'latest')
GROUPINGS = ('order', 'kmeans', 'agglomerative')


class Settings(NamedTuple):
  """The static options; as `group_cam`'s."""

  groups: int
  variant: str
  percentile: float
  blur_size: int
  blur_sigma: float
  query_batch: int


@method(
  title='Group-CAM',
  source='Zhang et al. 2021',
  queries=lambda shape, options: made_groups(**options) + 3,
  layer=True,
  by_gradient=True,
  variants=VARIANTS,
)
def group_cam(
  point: Tap,
  images: jax.Array,
  targets: jax.Array | None,
  query_batch: int,
  *,
  groups: int = 32,
  variant: str = 'paper',
  grouping: str = 'order',
  percentile: float | None = None,
  blur_size: int = 51,
  blur_sigma: float = 50.0,
) -> Detail:
  """Sum of the groups' masks, weighted by what each raises the target's probability by.

  A group's mask is the ReLU of the sum of its weighted channels w_k A_k (weights as Grad-CAM's),
  brought to the image's size; its weight alpha is the probability of the image seen through the
  mask, blurred elsewhere, less that of the blurred image. 'paper': the mask is first cleaned below
  its percentile, and L = ReLU(sum of alpha M'), M' being the masks in [0, 1]. 'latest': no
  cleaning, alpha is ReLU(alpha), and the masks summed are not normalised.

  Args:
    groups: G; with K channels, runs of ceil(K / G) make a group.
    variant: 'paper' or 'latest'.
    grouping: 'order', or 'kmeans' and 'agglomerative' by scikit-learn on the weighted channels of
      each image, which runs on the host and therefore not inside jit.
    percentile: theta of variant 'paper', 0 to 100, 70 by default; values not above it become 0.
    blur_size: taps of the Gaussian, odd.
    blur_sigma: its standard deviation in pixels.
    query_batch: images a forward pass. It bounds the memory, whatever B and G are, and changes
      nothing else.
  """
  if variant == 'latest' and percentile is not None:
    raise UserError("variant 'latest' cleans no mask; leave percentile out, or take 'paper'")
  theta = 70.0 if percentile is None else percentile
  settings = Settings(groups, variant, theta, blur_size, blur_sigma, query_batch)
  _check(settings, grouping)
  if grouping == 'order':
    maps, distances = by_order(point, images, targets, settings)
    return Detail(maps, distances=distances)
  weighted, targets, distances = _weighted(point, images, targets, query_batch)
  labels = by_clustering(weighted, groups, grouping)
  settings = settings._replace(groups=int(labels.max()) + 1)
  maps = _clustered(point, images, targets, weighted, jnp.asarray(labels), settings)
  return Detail(maps, distances=distances)


@functools.partial(jit, static_argnames='settings')
def by_order(point: Tap, images, targets, settings: Settings) -> tuple[jax.Array, jax.Array]:
  """Maps and `Detail.distances`, a block of `query_batch` images at a time from their gradient."""

  def block(item):
    chunk, classes = item
    weighted, classes, distances = _weigh(point, chunk, classes)
    labels = in_order(weighted.shape[-1], settings.groups)
    made = settings._replace(groups=made_groups(channels=len(labels), groups=settings.groups))
    labels = jnp.broadcast_to(jnp.asarray(labels), (len(chunk), len(labels)))
    return _explain(point, chunk, classes, weighted, labels, made), distances

  return chunked(block, (images, targets), settings.query_batch)


@functools.partial(jit, static_argnames='query_batch')
def _weighted(point: Tap, images, targets, query_batch: int):
  return chunked(lambda item: _weigh(point, item[0], item[1]), (images, targets), query_batch)


@functools.partial(jit, static_argnames='settings')
def _clustered(point: Tap, images, targets, weighted, labels, settings: Settings) -> jax.Array:
  items = (images, targets, weighted, labels)
  return chunked(
    lambda item: _explain(point, *item, settings=settings), items, settings.query_batch
  )


def _weigh(point: Tap, images, targets) -> tuple[jax.Array, ...]:
  """The channels times their weights, (B, h, w, K), the targets and `Detail.distances`."""
  seen = layer_gradient(point, images, targets)
  gradients = seen.gradients / peak(seen.gradients)  # masks do not depend on the scale
  weighted = jnp.mean(gradients, axis=(1, 2), keepdims=True) * seen.features
  return weighted, seen.targets, distance_from_probabilities(seen.logits)


def _explain(point: Tap, images, targets, weighted, labels, settings: Settings) -> jax.Array:
  maps = jax.nn.relu(sum_groups(weighted, labels, settings.groups))
  if settings.variant == 'paper':
    maps = jnp.where(maps > percentile(maps, settings.percentile), maps, 0)
  scores = _scores(point, images, targets, maps, settings)
  alpha = gained(scores[:, :-1], scores[:, -1:])
  if settings.variant == 'latest':
    alpha = jax.nn.relu(alpha)
  size = images.shape[1:3]

  def add(total, group):
    weight, small = group
    mask = upsample(small, size)
    range_ = span(mask)
    if settings.variant == 'paper':
      mask = rescale(mask, range_)
    else:
      mask = jnp.where(range_.varied, mask, 0)
    return total + weight[:, None, None] * mask, None

  # Groups one by one at the image's size: all of them at once would be memory in G.
  by_group = (alpha.T, jnp.moveaxis(maps, 1, 0))
  total, _ = jax.lax.scan(add, jnp.zeros_like(images[..., 0]), by_group)
  return min_max(jax.nn.relu(total))


def _scores(point: Tap, images, targets, maps, settings: Settings) -> jax.Array:
  """The target's probability behind each group's mask and, last, of the blurred image: (B, G+1)."""
  blurred = ops.gaussian_blur(images, settings.blur_size, settings.blur_sigma)
  maps = jnp.pad(maps, ((0, 0), (0, 1), (0, 0), (0, 0)))  # a mask of zeros is the baseline
  count = maps.shape[1]

  def query(pairs):
    image, group = pairs
    mask = min_max(upsample(maps[image, group], images.shape[1:3]))[..., None]
    seen = images[image] * mask + blurred[image] * (1 - mask)
    return probability(point, seen, targets[image])

  pairs = jnp.meshgrid(jnp.arange(len(images)), jnp.arange(count), indexing='ij')
  pairs = tuple(axis.ravel() for axis in pairs)
  return chunked(query, pairs, settings.query_batch).reshape(-1, count)


def _check(settings: Settings, grouping: str) -> None:
  if settings.variant not in VARIANTS:
    raise UserError(f"variant is 'paper' or 'latest', not {settings.variant!r}")
  if grouping not in GROUPINGS:
    raise UserError(f'grouping is one of {", ".join(GROUPINGS)}, not {grouping!r}')
  if settings.groups < 1 or not 0 <= settings.percentile <= 100:
    raise UserError(
      f'groups is 1 or more and percentile 0 to 100, got {settings.groups}, {settings.percentile}'
    )


def made_groups(*, channels: int, groups: int, grouping: str = 'order', **_: Any) -> int:
  """How many groups so many channels are made into: in order they may be fewer than asked for."""
  return int(in_order(channels, groups)[-1]) + 1 if grouping == 'order' else min(groups, channels)


def in_order(channels: int, groups: int) -> np.ndarray:
  """Group of each channel, int (K,): runs of ceil(K / groups), as PyTorch's `chunk` splits.

  Where that does not divide there are fewer groups than asked for.
  """
  return np.arange(channels) // math.ceil(channels / groups)


def by_clustering(weighted: Any, groups: int, method: str) -> np.ndarray:
  """Groups of alike channels, by scikit-learn on the host, as the authors' code makes them.

  Args:
    weighted: the weighted channels w_k A_k, (B, h, w, K).
    groups: clusters, at most K of them are made.
    method: 'kmeans' (ten starts, seed 0) or 'agglomerative' (Ward).

  Returns:
    Group of each channel of each image, int32 (B, K).

  Raises:
    UserError: inside jit, where there are no values to cluster.
  """
  if isinstance(weighted, Tracer):
    raise UserError(
      f'grouping {method!r} runs on the host, so not inside jit; use grouping="order"'
    )
  points = np.moveaxis(np.asarray(weighted), -1, 1)
  points = points.reshape(*points.shape[:2], -1)
  return np.stack([_cluster(p, min(groups, len(p)), method) for p in points]).astype(np.int32)


def _cluster(points: np.ndarray, groups: int, method: str) -> np.ndarray:
  from sklearn.cluster import AgglomerativeClustering, KMeans
  from sklearn.exceptions import ConvergenceWarning

  if groups == 1:
    return np.zeros(len(points))
  if method == 'agglomerative':
    return AgglomerativeClustering(n_clusters=groups).fit_predict(points)
  with warnings.catch_warnings():
    # Channels without gradient are all alike: fewer clusters than asked for is right then.
    warnings.simplefilter('ignore', ConvergenceWarning)
    starts: Any = 10  # scikit-learn's default when the authors wrote their code
    return KMeans(n_clusters=groups, n_init=starts, random_state=0).fit_predict(points)


def sum_groups(weighted: jax.Array, labels: jax.Array, groups: int) -> jax.Array:
  """Sums of each group's channels: (B, h, w, K), (B, K) -> (B, groups, h, w)."""
  members = jax.nn.one_hot(labels, groups, dtype=weighted.dtype)
  return jnp.einsum('bhwk,bkg->bghw', weighted, members, precision='highest')


def percentile(maps: jax.Array, q: float) -> jax.Array:
  """`numpy.percentile` (linear) over the plane: (..., h, w) -> (..., 1, 1)."""
  values = jnp.sort(maps.reshape(*maps.shape[:-2], -1), axis=-1)
  last = values.shape[-1] - 1
  place = q / 100 * last  # in double precision, as NumPy's: float32 may end up beside a sample
  low = min(int(place), last)
  below, above = values[..., low], values[..., min(low + 1, last)]
  return (below + (place - low) * (above - below))[..., None, None]
