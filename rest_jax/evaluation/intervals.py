"""How sure a figure over images is: exact and bootstrap intervals, and the paired test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer

from rest_jax.errors import UserError

_DRAWS_AT_ONCE = 4_000_000  # resampled indices held at once, 32 MB


class Interval(NamedTuple):
  """A share or a mean over images and the interval around it.

  Attributes:
    value: the share or the mean; a float, or an array (columns,) of several.
    low: end of the interval; NaN where there is none.
    high: likewise.
  """

  value: Any
  low: Any = math.nan
  high: Any = math.nan

  @property
  def mean(self) -> Any:
    """The value, where it is a mean."""
    return self.value


def whiskers(intervals: Sequence[Interval]) -> tuple[np.ndarray, np.ndarray]:
  """What a figure draws of intervals: values (N,), and how far their ends are away (2, N)."""
  value, low, high = np.asarray(intervals, float).T
  return value, np.stack([value - low, high - value])


def accuracy_interval(successes: int, count: int, confidence: float = 0.95) -> Interval:
  """Exact (Clopper-Pearson) confidence interval of a share.

  Bounds are quantiles of beta distributions (Clopper and Pearson, Biometrika 26, 1934); the
  interval covers the true share with at least the given probability, whatever the count.

  Args:
    successes: number of images that count, 0 to `count`.
    count: number of images; with 0 nothing is known: value NaN, interval [0, 1].
    confidence: in (0, 1).

  Returns:
    The share and its bounds.

  Raises:
    UserError: a number outside its range.
  """
  if not 0 <= successes <= count:
    raise UserError(f'successes must be in 0..{count}, the number of images, got {successes}')
  if not 0 < confidence < 1:
    raise UserError(f'confidence must be between 0 and 1, got {confidence}')
  tail = (1 - confidence) / 2
  from scipy import special  # slow to import, and a table alone needs it

  low = special.betaincinv(successes, count - successes + 1, tail) if successes else 0.0
  high = 1.0
  if successes < count:
    high = special.betaincinv(successes + 1, count - successes, 1 - tail)
  return Interval(successes / count if count else math.nan, float(low), float(high))


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
    `Interval(value, low, high)`, float64, each () or (columns,).

  Raises:
    UserError: no values, values that are not finite, a level outside (0, 1), no resamples.
  """
  if isinstance(values, Tracer):
    raise UserError('a bootstrap runs on the host, so not inside jit; give it arrays')
  # What is masked is without a value; NumPy alone would count what stands under the mask.
  table = np.ma.masked_array(values, dtype=np.float64).filled(np.nan)
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
  """(resamples, ...): means of rows drawn with replacement, a bounded number at a time."""
  rows = max(1, _DRAWS_AT_ONCE // len(table))
  means = []
  for start in range(0, resamples, rows):
    draws = rng.integers(0, len(table), (min(rows, resamples - start), len(table)))
    means.append(table[draws].mean(1))
  return np.concatenate(means)


def mcnemar(only_first: int, only_second: int, *, two_sided: bool) -> float:
  """Exact McNemar test: how surprising so uneven a split of the discordant pairs is by chance.

  McNemar, Psychometrika 12, 1947, with the binomial distribution in place of the approximation.

  Args:
    only_first: images on which only the first one is right.
    only_second: images on which only the second one is right.
    two_sided: whether either may be the better; otherwise p is small where the first is.

  Returns:
    The p-value, in [0, 1].
  """
  total = only_first + only_second
  if not total:
    return 1.0
  kind = 'two-sided' if two_sided else 'greater'
  from scipy import stats  # half a second to import, which a table alone needs

  return float(stats.binomtest(only_first, total, 0.5, alternative=kind).pvalue)
