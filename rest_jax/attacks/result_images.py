"""Adversarial images on disk: parts while an evaluation runs, one `.npz` a run at its end."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rest_jax.attacks.record import Record, RunName
from rest_jax.errors import UserError
from rest_jax.evaluation.files import write_npz, writing

FOLDER = 'adversarial'


class ImageFiles:
  """Keeps the adversarial images of each run.

  `adversarial/<run>.npz` holds images float32 (N, H, W, C), index int64 (N,) and label int64 (N,)
  of the images that were attacked, whether or not that succeeded.
  """

  def __init__(self, directory: Path):
    """Takes the evaluation's directory; writes nothing yet."""
    self._folder = directory / FOLDER

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
    # What begins with a dot was being written when a kill came.
    found = self._read([final, *sorted((self._folder / run.stem).glob('[!.]*.npz'))])
    for eps in {record.reused for record in records.values() if record.reused is not None}:
      lent = self._read([self._final(run._replace(eps=eps))])
      found |= {i: lent[i] for i in lent if i in records and records[i].reused == eps}
    needed = sorted(i for i, record in records.items() if record.correct)
    if missing := [i for i in needed if i not in found]:
      raise UserError(
        f'{final} lacks image {missing[0]} and {len(missing) - 1} more; '
        f'remove {final.parent.parent} to attack them again'
      )
    if not needed:
      return None
    label = np.asarray([records[i].label for i in needed])
    write_npz(
      final, images=np.stack([found[i] for i in needed]), index=np.asarray(needed), label=label
    )
    self._remove_parts(run)
    return final

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
          raise UserError(f'{path} is damaged ({error}); remove {self._folder.parent}') from error
    return found

  def _remove_parts(self, run: RunName) -> None:
    parts = self._folder / run.stem
    with writing(self._folder):
      for path in parts.glob('*.npz'):
        path.unlink()
      if parts.exists():
        parts.rmdir()
