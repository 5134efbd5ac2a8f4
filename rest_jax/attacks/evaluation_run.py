"""The work of an evaluation: which images are left, attack them, judge what came back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import Partial
from tqdm import tqdm

from rest_jax.attacks.devices import shared
from rest_jax.attacks.evaluation_sample import SampleRows, Shown
from rest_jax.attacks.fingerprint import fingerprint
from rest_jax.attacks.health import Sample
from rest_jax.attacks.judge import Verdict, check_defined, judge, measure, reached
from rest_jax.attacks.record import Record, ResultStore, RunName
from rest_jax.attacks.registry import Attack
from rest_jax.attacks.result_images import ImageFiles
from rest_jax.attacks.threat import Norm, check_inputs
from rest_jax.errors import UserError
from rest_jax.evaluation.batches import Chunk, keys_of
from rest_jax.programs import release_programs


@dataclasses.dataclass(frozen=True)
class Settings:
  """What `evaluate` was asked for; see there.

  Attributes:
    radii: of each norm, rising.
    targeted: whether the chunks' targets are to be reached.
  """

  attacks: Sequence[Attack]
  radii: dict[Norm, tuple[float, ...]]
  targeted: bool
  key: jax.Array
  batch_size: int
  output_dir: Path | None
  class_names: Sequence[str] | None
  model_id: str | None
  save_images: bool
  pictures: int
  progress: bool

  @property
  def seed(self) -> str:
    """The key as hexadecimal words."""
    return ''.join(f'{word:08x}' for word in np.asarray(jax.random.key_data(self.key)).ravel())

  def runs(self) -> Iterator[tuple[Attack, RunName]]:
    """Attacks and radii in the order of work: a smaller radius before a larger one."""
    for attack in self.attacks:
      for norm, grid in self.radii.items():
        for eps in (None,) if attack.minimum_norm else grid:
          yield attack, RunName(attack.label, norm, eps)


class _Batch(NamedTuple):
  """A padded batch: filler has a label that the model does not give it, nothing to attack."""

  images: np.ndarray
  labels: np.ndarray
  targets: np.ndarray | None
  keys: jax.Array


class Runner:
  """Carries an evaluation from chunk to chunk."""

  def __init__(self, model: Partial, settings: Settings, chunk: Chunk):
    """Opens the results; looks at the model with the first chunk's shape.

    Raises:
      UserError: bad input, or results of something else in output_dir.
    """
    self.model = model
    self._shared = shared(model)
    self._settings = settings
    self._chosen = SampleRows(settings.batch_size)
    self._shown = Shown(settings.pictures)
    self._seen: set[int] = set()
    # Before anything is asked of the model, its input has to be right.
    self._check(chunk)
    directory = settings.output_dir
    self._store = ResultStore(directory, self._header(chunk.images.shape[1:]))
    self._files = ImageFiles(directory) if directory and settings.save_images else None

  def attack(self, chunk: Chunk) -> None:
    """Attacks what has no record yet.

    Raises:
      UserError: bad input, or an image that differs from the one that was attacked before.
    """
    self._check(chunk)
    self._seen |= set(chunk.indices.tolist())
    clean = self._judge_all(chunk)
    self._chosen.add(chunk, clean.predicted == chunk.labels)
    for attack, run in self._settings.runs():
      release_programs()
      self._attack_run(chunk, clean, attack, run)

  def finish(self) -> None:
    """Draws the pictures and puts the adversarial images together."""
    directory = self._settings.output_dir
    if directory is not None:
      self._shown.draw(directory / 'pictures', self._settings.class_names)
    if self._files is not None:
      for _, run in self._settings.runs():
        self._files.merge(run, self._store.done(run))

  def records(self) -> dict[RunName, dict[int, Record]]:
    """The records of this evaluation's attacks and images."""
    return {
      run: {i: r for i, r in self._store.done(run).items() if i in self._seen}
      for _, run in self._settings.runs()
    }

  def sample(self) -> Sample:
    """Images for the health checks: the first that are classified correctly."""
    return self._chosen.sample(self._settings.key)

  def _attack_run(self, chunk: Chunk, clean: Verdict, attack: Attack, run: RunName) -> None:
    done = self._store.done(run)
    self._check_same_images(chunk, clean, done)
    known, left = [], []
    for row, index in enumerate(chunk.indices.tolist()):
      if index in done:
        known += self._lent(run, done[index])
      elif clean.predicted[row] != chunk.labels[row]:
        known.append(self._not_attacked(chunk, clean, run, row))
      elif (smaller := self._fooled_before(run, index)) is not None:
        known.append(_taken_over(smaller, run))
      else:
        left.append(row)
    self._store.add(known)
    size = self._settings.batch_size
    batches = [np.asarray(left[first : first + size]) for first in range(0, len(left), size)]
    for rows in tqdm(batches, desc=run.stem, disable=not self._settings.progress):
      self._attack_batch(chunk, clean, attack, run, rows)

  def _attack_batch(
    self, chunk: Chunk, clean: Verdict, attack: Attack, run: RunName, rows: np.ndarray
  ) -> None:
    batch = self._padded(chunk, rows, clean.predicted)
    adv, queries = attack.run(
      self._shared,
      batch.images,
      batch.labels,
      key=batch.keys,
      norm=run.norm,
      eps=run.eps,
      targets=batch.targets,
    )
    records = self._judged(chunk, clean, run, rows, batch, adv, queries)
    if self._files is not None:
      self._files.add(run, chunk.indices[rows], chunk.labels[rows], adv[: len(rows)])
    self._store.add(records)
    self._shown.add(batch.images, adv, records)

  def _judged(
    self,
    chunk: Chunk,
    clean: Verdict,
    run: RunName,
    rows: np.ndarray,
    batch: _Batch,
    adv: np.ndarray,
    queries: np.ndarray | None,
  ) -> list[Record]:
    """The records of a batch's images, filler left out."""
    images, labels, targets, keys = batch
    first = judge(self._shared, adv, labels, keys)
    second = judge(self._shared, adv, labels, keys, second=True)
    distance, inside = measure(adv, images, run.norm, run.eps)
    goal = [reached(v, labels, targets) & inside for v in (first, second)]
    return [
      dataclasses.replace(
        self._not_attacked(chunk, clean, run, int(row)),
        adversarial=int(first.predicted[i]),
        loss=float(first.loss[i]),
        distance=float(distance[i]),
        queries=None if queries is None else int(queries[i]),
        inside=bool(inside[i]),
        success=bool(goal[0][i]),
        confirmed=bool(goal[0][i] == goal[1][i]),
      )
      for i, row in enumerate(rows)
    ]

  def _not_attacked(self, chunk: Chunk, clean: Verdict, run: RunName, row: int) -> Record:
    return Record(
      index=int(chunk.indices[row]),
      label=int(chunk.labels[row]),
      target=None if chunk.targets is None else int(chunk.targets[row]),
      clean=int(clean.predicted[row]),
      adversarial=int(clean.predicted[row]),
      clean_loss=float(clean.loss[row]),
      loss=float(clean.loss[row]),
      distance=0.0,
      queries=0,
      attack=run.attack,
      norm=run.norm,
      eps=run.eps,
      seed=self._settings.seed,
      inside=True,
      success=False,
      confirmed=True,
      reused=None,
      pixels=chunk.pixels[row],
    )

  def _fooled_before(self, run: RunName, index: int) -> Record | None:
    """The success at the least of the smaller radii; its image is in this ball too."""
    found = []
    for name, records in self._store.records.items():
      same = (name.attack, name.norm) == (run.attack, run.norm)
      if same and name.eps is not None and run.eps is not None and name.eps < run.eps:
        record = records.get(index)
        found += [(name.eps, record)] if record is not None and record.success else []
    return min(found, key=lambda one: one[0])[1] if found else None

  def _lent(self, run: RunName, record: Record) -> list[Record]:
    """What takes a record's place where a smaller radius was added later and fooled the image.

    So the radii may come in any order: at once the larger one would not have been attacked.
    """
    smaller = self._fooled_before(run, record.index)
    if smaller is None or not record.correct:
      return []
    fresh = _taken_over(smaller, run)
    return [] if fresh == record else [fresh]

  def _padded(self, chunk: Chunk, rows: np.ndarray, predicted: np.ndarray) -> _Batch:
    """Fills up a batch with copies of its first image, as if it had been fooled already."""
    size = self._settings.batch_size
    filler = np.arange(size) >= len(rows)
    at = np.concatenate([rows, np.full(size - len(rows), rows[0], rows.dtype)])
    classes = self._num_classes
    labels = np.where(filler, (predicted[at] + 1) % classes, chunk.labels[at]).astype(np.int32)
    targets = None
    if self._settings.targeted and chunk.targets is not None:
      targets = np.where(filler, predicted[at], chunk.targets[at]).astype(np.int32)
    keys = keys_of(self._settings.key, chunk.indices[at])
    return _Batch(np.asarray(chunk.images[at], np.float32), labels, targets, keys)

  def _judge_all(self, chunk: Chunk) -> Verdict:
    size, count = self._settings.batch_size, len(chunk.images)
    parts = []
    for first in range(0, count, size):
      at = np.minimum(np.arange(first, first + size), count - 1)
      images = np.asarray(chunk.images[at], np.float32)
      keys = keys_of(self._settings.key, chunk.indices[at])
      parts.append(judge(self._shared, images, chunk.labels[at], keys))
    verdict = Verdict(*(np.concatenate(each)[:count] for each in zip(*parts, strict=True)))
    check_defined(verdict.undefined, self._num_classes, chunk.indices)
    return verdict

  def _check(self, chunk: Chunk) -> None:
    """Checks all images, in batches of the one shape that the model is asked with."""
    if self._settings.targeted and chunk.targets is None:
      raise UserError('a targeted threat needs targets, one class an image')
    size, count = self._settings.batch_size, len(chunk.images)
    for first in range(0, count, size):
      at = np.minimum(np.arange(first, first + size), count - 1)
      targets = None if chunk.targets is None else chunk.targets[at]
      inputs = check_inputs(self.model, chunk.images[at], chunk.labels[at], targets=targets)
      self._num_classes = inputs.num_classes

  def _check_same_images(self, chunk: Chunk, clean: Verdict, done: dict[int, Record]) -> None:
    for row, index in enumerate(chunk.indices.tolist()):
      record = done.get(index)
      if record is None:
        continue
      fresh = self._not_attacked(chunk, clean, record.run, row)
      if any(getattr(record, n) != getattr(fresh, n) for n in ('pixels', 'label', 'target')):
        raise UserError(
          f'{self._settings.output_dir} has results of another image {index}, or with another '
          'label or target; give another output_dir'
        )

  def _header(self, shape: tuple[int, ...]) -> dict[str, Any]:
    settings = self._settings
    return {
      'model': fingerprint(self.model, shape, settings.batch_size, settings.model_id),
      'image_shape': shape,
      'attacks': {attack.label: attack.describe() for attack in settings.attacks},
      'targeted': settings.targeted,
      'seed': settings.seed,
      'save_images': settings.save_images,
    }


def _taken_over(smaller: Record, run: RunName) -> Record:
  """A success at a smaller radius as one of a run at a larger radius."""
  found_at = smaller.eps if smaller.reused is None else smaller.reused
  return dataclasses.replace(smaller, eps=run.eps, reused=found_at)
