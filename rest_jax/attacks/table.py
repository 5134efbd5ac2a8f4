"""Robust accuracies with confidence intervals, and the curve over the radius."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from rest_jax import text
from rest_jax.attacks.record import Record, RunName
from rest_jax.attacks.threat import Norm
from rest_jax.errors import UserError
from rest_jax.evaluation.intervals import Interval, accuracy_interval

WORST_CASE = 'all attacks'


@dataclasses.dataclass(frozen=True)
class Row:
  """One attack at one radius.

  Attributes:
    attack: label, or `WORST_CASE`: an image counts as robust if it withstood every attack.
    norm: 'linf', 'l2' or 'l1'.
    eps: radius.
    images: number of images.
    clean_accuracy: share classified correctly before the attack.
    robust_accuracy: share classified correctly before and not fooled by the attack.
    median_distance: of the successful perturbations, in the norm; None where there are none.
    mean_queries: model evaluations per attacked image; None where unknown.
  """

  attack: str
  norm: Norm
  eps: float
  images: int
  clean_accuracy: Interval
  robust_accuracy: Interval
  median_distance: float | None
  mean_queries: float | None


def summarise(
  records: Mapping[RunName, Mapping[int, Record]],
  radii: Mapping[Norm, Sequence[float]],
  confidence: float = 0.95,
) -> list[Row]:
  """Makes the table of an evaluation.

  Args:
    records: by run and image index.
    radii: radii of each norm. A minimum-norm attack has fooled an image at a radius if its
      adversarial image is no farther away than that.
    confidence: of the intervals.

  Returns:
    Rows by norm, radius and attack; after each radius, where there was more than one attack, the
    worst case over those, of the images that all of them have seen.
  """
  rows = []
  for norm, grid in radii.items():
    runs = {name: dict(found) for name, found in records.items() if name.norm == norm and found}
    for eps in sorted(grid):
      at = {n.attack: at_radius(found, n, eps) for n, found in runs.items() if n.eps in (None, eps)}
      rows += [_row(attack, norm, eps, found, confidence) for attack, found in at.items()]
      if len(at) > 1:
        rows.append(_row(WORST_CASE, norm, eps, _worst_case(at.values()), confidence))
  return rows


def at_radius(found: Mapping[int, Record], name: RunName, eps: float) -> dict[int, Record]:
  """A run's records as those of an attack with this radius.

  Args:
    found: records by image index.
    name: of the run; those of another than a minimum-norm attack are given back as they are.
    eps: the radius.

  Returns:
    Records by image index.
  """
  if name.eps is not None:
    return dict(found)
  return {
    index: dataclasses.replace(record, success=record.success and record.distance <= eps)
    for index, record in found.items()
  }


def _worst_case(several: Iterable[Mapping[int, Record]]) -> dict[int, Record]:
  """Of each image that all attacks have seen, the successful record of least distance."""
  several = list(several)
  common = set.intersection(*(set(found) for found in several))
  worst = {}
  for index in common:
    fooled = [found[index] for found in several if found[index].success]
    best = min(fooled, key=lambda r: r.distance) if fooled else several[0][index]
    spent = [found[index].queries for found in several]
    known = [queries for queries in spent if queries is not None]
    queries = sum(known) if len(known) == len(spent) else None
    worst[index] = dataclasses.replace(best, queries=queries)
  return worst


def _row(
  attack: str, norm: Norm, eps: float, found: Mapping[int, Record], confidence: float
) -> Row:
  records = list(found.values())
  correct = [record for record in records if record.correct]
  robust = sum(record.robust for record in records)
  distances = [record.distance for record in correct if record.success]
  queries = [record.queries for record in correct if record.queries is not None]
  return Row(
    attack=attack,
    norm=norm,
    eps=eps,
    images=len(records),
    clean_accuracy=accuracy_interval(len(correct), len(records), confidence),
    robust_accuracy=accuracy_interval(robust, len(records), confidence),
    median_distance=float(np.median(distances)) if distances else None,
    mean_queries=float(np.mean(queries)) if queries else None,
  )


def robust_accuracy_curve(
  distances: np.ndarray, correct: np.ndarray, radii: Sequence[float] | np.ndarray
) -> np.ndarray:
  """Robust accuracy at any radius, from the distances that a minimum-norm attack found.

  Args:
    distances: (N,) norm of each image's adversarial perturbation, infinite where none was found.
    correct: (N,) bool, the image itself is classified correctly.
    radii: (R,) not negative.

  Returns:
    (R,) share of images that are classified correctly and whose distance is over the radius.

  Raises:
    UserError: shapes that do not fit, or no images.
  """
  distances, correct = np.asarray(distances), np.asarray(correct, bool)
  if distances.ndim != 1 or distances.shape != correct.shape or not distances.size:
    raise UserError(
      f'distances and correct must be one value an image, got shapes {distances.shape} '
      f'and {correct.shape}'
    )
  if np.isnan(distances).any():
    raise UserError('distances must not be NaN; give infinity where nothing was found')
  held = np.sort(np.where(correct, distances, -1.0))
  over = held.size - np.searchsorted(held, np.asarray(radii, float), side='right')
  return over / held.size


def markdown(rows: Sequence[Row], confidence: float = 0.95) -> str:
  """The table as Markdown."""
  interval = f'{confidence:.0%} interval'
  names = ['norm', 'radius', 'attack', 'images', 'clean', 'robust', interval]
  names += ['median distance', 'queries']
  lines = ['| ' + ' | '.join(names) + ' |', '|---' * len(names) + '|']
  for row in rows:
    robust = row.robust_accuracy
    cells = [
      row.norm,
      text.radius_text(row.eps),
      text.markdown(row.attack),
      str(row.images),
      f'{row.clean_accuracy.value:.2%}',
      f'{robust.value:.2%}',
      f'{robust.low:.2%} to {robust.high:.2%}',
      '-' if row.median_distance is None else f'{row.median_distance:.4g}',
      '-' if row.mean_queries is None else f'{row.mean_queries:.0f}',
    ]
    lines.append('| ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines) + '\n'
