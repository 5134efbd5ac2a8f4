"""Bootstrap intervals over images."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from jax.core import Tracer

from rest_jax.errors import UserError

_DRAWS_AT_ONCE = 4_000_000  # resampled indices held at once, 32 MB


class Interval(NamedTuple):
  """A mean and the interval around it; floats, or arrays where there were several columns."""

  mean: np.ndarray
  low: np.ndarray
  high: np.ndarray


def bootstrap(
  values: jax.Array | np.ndarray,
  *,
  seed: int = 0,
  level: float = 0.95,
  resamples: int = 2000,
) -> Interval:
  """Percentile interval of the mean (Efron, 1979): images are drawn again with replacement.

  Args:
    values: (N,) or (N, columns), numbers or booleans, one row an image. Columns are resampled
      together, so that their intervals come from the same images.
    seed: of the resampling; the same seed gives the same interval.
    level: share of the resampled means within the interval, in (0, 1).
    resamples: how many means are drawn.

  Returns:
    `Interval(mean, low, high)`, float64, each () or (columns,).

  Raises:
    UserError: no values, values that are not finite, a level outside (0, 1), no resamples.
  """
  if isinstance(values, Tracer):
    raise UserError('a bootstrap runs on the host, so not inside jit; give it arrays')
  table = np.asarray(values, np.float64)
  if table.ndim not in (1, 2) or not len(table):
    raise UserError(f'a bootstrap needs values (N,) or (N, columns), N > 0, got {table.shape}')
  if not np.isfinite(table).all():
    raise UserError('a bootstrap needs finite values; leave out the images without one')
  if not 0 < level < 1 or resamples < 1:
    raise UserError(f'level is within (0, 1), resamples 1 or more, got {level} and {resamples}')
  means = _resampled_means(table, np.random.default_rng(seed), resamples)
  tail = (1 - level) / 2
  low, high = np.quantile(means, [tail, 1 - tail], axis=0)
  return Interval(table.mean(0), low, high)


def _resampled_means(table: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
  rows = max(1, _DRAWS_AT_ONCE // len(table))
  means = []
  for start in range(0, resamples, rows):
    draws = rng.integers(0, len(table), (min(rows, resamples - start), len(table)))
    means.append(table[draws].mean(1))
  return np.concatenate(means)
