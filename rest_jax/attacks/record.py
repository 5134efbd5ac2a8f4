"""What attacks did to images: records, the table and the curve made of them, the images on disk.

On disk a record is a line of `results.jsonl` (`evaluation.records`), whose 'image' is the index.
"""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rest_jax import text
from rest_jax.errors import UserError
from rest_jax.evaluation.document import markdown_table
from rest_jax.evaluation.files import write_npz, writing
from rest_jax.evaluation.intervals import Interval, accuracy_interval
from rest_jax.inputs import Norm


class RunName(NamedTuple):
  """What an image's record is filed under: an attack, a norm, a radius.

  Attributes:
    attack: label of the attack.
    norm: 'linf', 'l2' or 'l1'.
    eps: radius; None for a minimum-norm attack, which has none.
  """

  attack: str
  norm: Norm
  eps: float | None

  @property
  def stem(self) -> str:
    """The name as part of a file's."""
    return f'{self.attack}_{self.norm}' + ('' if self.eps is None else f'_{self.eps:.9g}')


@dataclasses.dataclass(frozen=True)
class Record:
  """What an attack did to one image.

  Attributes:
    index: of the image in the source.
    label: true class.
    target: class to be reached; None where any wrong one will do.
    clean: predicted class of the image; where it is not `label`, nothing was attacked.
    adversarial: predicted class of the adversarial image, -1 for logits that are not numbers.
    clean_loss: cross-entropy of the image, nats; None where not finite.
    loss: cross-entropy of the adversarial image, nats.
    distance: of the adversarial image from the image, in the threat's norm.
    queries: evaluations of the model that the attack's steps spent on the image; None where an
      attack does not count them.
    attack: label of the attack.
    norm: 'linf', 'l2' or 'l1'.
    eps: radius; None for a minimum-norm attack.
    seed: the evaluation's key as hexadecimal words.
    inside: the adversarial image is in the ball, up to rounding, and in [0, 1].
    success: it is inside, and an evaluation after the attack found the attack's goal reached, or
      logits that are not numbers.
    confirmed: a second evaluation said the same about `success`.
    reused: smaller radius whose adversarial image was taken over; None where it was searched for.
    pixels: checksum of the image.
  """

  index: int
  label: int
  target: int | None
  clean: int
  adversarial: int
  clean_loss: float | None
  loss: float | None
  distance: float
  queries: int | None
  attack: str
  norm: Norm
  eps: float | None
  seed: str
  inside: bool
  success: bool
  confirmed: bool
  reused: float | None
  pixels: str

  @property
  def run(self) -> RunName:
    """What the record is filed under."""
    return RunName(self.attack, self.norm, self.eps)

  @property
  def correct(self) -> bool:
    """Whether the image itself is classified correctly."""
    return self.clean == self.label

  @property
  def robust(self) -> bool:
    """Whether the image is classified correctly and withstood the attack."""
    return self.correct and not self.success


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
  interval = f'{100 * confidence:g}% interval'
  names = ['norm', 'radius', 'attack', 'images', 'clean', 'robust', interval]
  names += ['median distance', 'queries']
  return markdown_table(names, [_cells(row, row.robust_accuracy) for row in rows]) + '\n'


def _cells(row: Row, robust: Interval) -> list[str]:
  return [
    row.norm,
    text.radius_text(row.eps),
    text.markdown(row.attack),
    str(row.images),
    text.percent(row.clean_accuracy.value, 2, '%'),
    text.percent(robust.value, 2, '%'),
    f'{text.percent(robust.low, 2)}% to {text.percent(robust.high, 2)}%',
    '-' if row.median_distance is None else f'{row.median_distance:.4g}',
    '-' if row.mean_queries is None else f'{row.mean_queries:.0f}',
  ]


FOLDER = 'adversarial'


class ImageFiles:
  """Keeps the adversarial images of each run.

  `<folder>/<run>.npz` holds images float32 (N, H, W, C), index int64 (N,) and label int64 (N,)
  of the images that were attacked, whether or not that succeeded.
  """

  def __init__(self, directory: Path, folder: str = FOLDER):
    """Takes the evaluation's directory and the folder in it; writes nothing yet."""
    self._directory, self._folder = directory, directory / folder

  def add(self, run: RunName, index: np.ndarray, label: np.ndarray, images: np.ndarray) -> None:
    """Writes images of a run, before the records that say they are there.

    Raises:
      UserError: they cannot be written.
    """
    # Named after its first image: attacked again after a kill, they take the same place.
    path = self._folder / run.stem / f'{int(index[0]):010d}.npz'
    write_npz(path, images=images, index=index.astype(np.int64), label=label.astype(np.int64))

  def merge(self, run: RunName, records: Mapping[int, Record]) -> Path | None:
    """Puts the parts of a run, and what a smaller radius lent it, into one file.

    To be called from the smallest radius to the largest.

    Args:
      run: which.
      records: all of the run's.

    Returns:
      The file; None where no image was attacked.

    Raises:
      UserError: a part is missing or damaged, or no place to write.
    """
    final = self._final(run)
    found = self._read([final]) | self.parts(run)
    for eps in {record.reused for record in records.values() if record.reused is not None}:
      lent = self._read([self._final(run._replace(eps=eps))])
      found |= {i: lent[i] for i in lent if i in records and records[i].reused == eps}
    needed = sorted(i for i, record in records.items() if record.correct)
    self.check_whole(run, found, needed)
    if not needed:
      return None
    label = np.asarray([records[i].label for i in needed])
    write_npz(
      final, images=np.stack([found[i] for i in needed]), index=np.asarray(needed), label=label
    )
    self._remove_parts(run)
    return final

  def parts(self, run: RunName) -> dict[int, np.ndarray]:
    """The images of a run by their index, as far as they have not been merged.

    Raises:
      UserError: a part is damaged.
    """
    # What begins with a dot was being written when a kill came.
    return self._read(sorted((self._folder / run.stem).glob('[!.]*.npz')))

  def check_whole(self, run: RunName, found: Container[int], needed: Iterable[int]) -> None:
    """Raises `UserError` where images that records tell of are missing."""
    if missing := [i for i in needed if i not in found]:
      raise UserError(
        f'{self._final(run)} lacks image {missing[0]} and {len(missing) - 1} more; '
        f'remove {self._directory} to attack them again'
      )

  def _final(self, run: RunName) -> Path:
    return self._folder / f'{run.stem}.npz'

  def _read(self, paths: list[Path]) -> dict[int, np.ndarray]:
    found = {}
    for path in paths:
      if path.exists():
        try:
          with np.load(path) as file:
            found |= dict(zip(file['index'].tolist(), file['images'], strict=True))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
          raise UserError(f'{path} is damaged ({error}); remove {self._directory}') from error
    return found

  def _remove_parts(self, run: RunName) -> None:
    parts = self._folder / run.stem
    with writing(self._folder):
      for path in parts.glob('*.npz'):
        path.unlink()
      if parts.exists():
        parts.rmdir()
