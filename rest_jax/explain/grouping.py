"""How Group-CAM's channels are put into groups."""

from __future__ import annotations

import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rest_jax.errors import UserError

GROUPINGS = ('order', 'kmeans', 'agglomerative')


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
