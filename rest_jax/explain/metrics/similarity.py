"""How alike two maps are: rank correlation and structural similarity."""

from __future__ import annotations

import jax
import numpy as np
from jax.core import Tracer

from rest_jax.errors import UserError
from rest_jax.explain.metrics.order import check_finite_maps

_WINDOW, _SIGMA = 11, 1.5  # Wang et al. 2004, section III-C
_K1, _K2 = 0.01, 0.03


def rank_correlation(
  first: jax.Array | np.ndarray, second: jax.Array | np.ndarray, absolute: bool = True
) -> np.ndarray:
  """Spearman's rank correlation of each pair of maps.

  Args:
    first: (B, H, W).
    second: the same shape.
    absolute: of the absolute values, as Adebayo et al. (2018, section 3.2) compare maps with a
      sign; nothing changes for maps in [0, 1].

  Returns:
    float64 (B,) in [-1, 1]; tied pixels share their mean rank. A constant map has no ranks: 0.

  Raises:
    UserError: maps of other or different shapes, or not finite; inside jit.
  """
  a, b = _pair(first, second)
  if absolute:
    a, b = np.abs(a), np.abs(b)
  x, y = (np.stack([_mean_ranks(m) for m in maps.reshape(len(maps), -1)]) for maps in (a, b))
  x, y = (r - r.mean(1, keepdims=True) for r in (x, y))
  norm = np.sqrt((x**2).sum(1) * (y**2).sum(1))
  return np.where(norm > 0, (x * y).sum(1) / np.where(norm > 0, norm, 1), 0.0)


def structural_similarity(
  first: jax.Array | np.ndarray, second: jax.Array | np.ndarray
) -> np.ndarray:
  """Mean SSIM of each pair of maps (Wang et al. 2004, equations 13-17).

  Gaussian windows of 11 px and sigma 1.5 that lie wholly within the map, constants 0.01 and 0.03,
  data range 1. A map with a side under 11 px gets the largest odd window that fits.

  Args:
    first: (B, H, W) in [0, 1].
    second: the same shape.

  Returns:
    float64 (B,), 1 for equal maps.

  Raises:
    UserError: maps of other or different shapes, not finite or beyond [0, 1], where the constants
      have no meaning; inside jit.
  """
  a, b = _pair(first, second)
  if min(a.min(), b.min()) < 0 or max(a.max(), b.max()) > 1:
    raise UserError('structural similarity is that of maps in [0, 1]; bring them there first')
  mean_a, mean_b = _smooth(a), _smooth(b)
  var_a, var_b = _smooth(a * a) - mean_a**2, _smooth(b * b) - mean_b**2
  covariance = _smooth(a * b) - mean_a * mean_b
  c1, c2 = _K1**2, _K2**2
  top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
  bottom = (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
  return (top / bottom).mean((1, 2))


def _mean_ranks(values: np.ndarray) -> np.ndarray:
  """Places from the smallest, float64 (n,); equal values share the mean of theirs."""
  _, of, counts = np.unique(values, return_inverse=True, return_counts=True)
  return (np.cumsum(counts) - (counts - 1) / 2)[of]


def _smooth(maps: np.ndarray) -> np.ndarray:
  for axis in (1, 2):
    side = maps.shape[axis]
    size = min(_WINDOW, side if side % 2 else side - 1)
    taps = np.exp(-0.5 * ((np.arange(size) - size // 2) / _SIGMA) ** 2)
    windows = np.lib.stride_tricks.sliding_window_view(maps, size, axis)
    maps = windows @ (taps / taps.sum())
  return maps


def _pair(first, second) -> tuple[np.ndarray, np.ndarray]:
  if isinstance(first, Tracer) or isinstance(second, Tracer):
    raise UserError('this measure runs on the host, so not inside jit; give it arrays')
  a, b = (np.asarray(jax.device_get(m), np.float64) for m in (first, second))
  if a.ndim != 3 or a.shape != b.shape or not a.size:
    raise UserError(f'two batches of maps (B, H, W) are compared, got {a.shape} and {b.shape}')
  for maps in (a, b):
    check_finite_maps(maps)
  return a, b
