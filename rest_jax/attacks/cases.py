"""Cases of an evaluation of attacks: an attack made on one model and judged by another.

White box: the same model twice. Through a defence: its differentiable stand-in, and the defended
model. Without knowledge of the defence, and transfer: the plain model, and the other one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

from rest_jax.attacks.figures import Shown
from rest_jax.attacks.health import Sample, SampleRows
from rest_jax.attacks.judge import Verdict, check_defined, fingerprint, judge, measure, reached
from rest_jax.attacks.record import ImageFiles, Record, RunName
from rest_jax.attacks.registry import Attack
from rest_jax.attacks.threat import Threat, check_inputs
from rest_jax.attacks.wrappers import shared
from rest_jax.errors import UserError
from rest_jax.evaluation import runner
from rest_jax.evaluation.batches import Batch, Chunk, Images, batch_rows, keys_of
from rest_jax.evaluation.fingerprint import weights_hash
from rest_jax.evaluation.records import RESULTS, Records
from rest_jax.inputs import Norm


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
  """An attack at a threat.

  Attributes:
    label: its records are filed under it.
    attack: how.
    threat: norm, radius (infinity for an attack of minimum norm) and goal.
    made_on: the model that is attacked, images to logits.
    judged_by: the model that what came back is tried on.
  """

  label: str
  attack: Attack
  threat: Threat
  made_on: Partial
  judged_by: Partial

  @property
  def run(self) -> RunName:
    """Attack, norm and radius."""
    eps = self.threat.eps if np.isfinite(self.threat.eps) else None
    return RunName(self.attack.label, self.threat.norm, eps)

  def make(self, batch: Batch, key: jax.Array) -> tuple[np.ndarray, np.ndarray | None]:
    """The adversarial images of a batch, (size, H, W, C), and the queries spent on each.

    Filler has a label that the judge does not give it: nothing for a white-box attack to do.

    Args:
      batch: of 'images', 'labels', 'targets' or None, and 'clean', the classes the judge gives.
      key: of the evaluation; image i gets `fold_in(key, i)`.
    """
    images, clean, filler = batch['images'], batch['clean'], batch.filler
    other = np.where(clean > 0, 0, 1)
    labels = np.where(filler, other, batch['labels']).astype(np.int32)
    targets = None
    if self.threat.targeted:
      targets = np.where(filler, clean, batch['targets']).astype(np.int32)
    return self.attack.run(
      self.made_on,
      images,
      labels,
      key=batch.keys(key),
      norm=self.threat.norm,
      eps=None if self.attack.minimum_norm else self.threat.eps,
      targets=targets,
    )

  def judge(
    self, batch: Batch, adv: np.ndarray, queries: np.ndarray | None, key: jax.Array
  ) -> dict[str, Any]:
    """What became of a batch, columns of `Record`: evaluated twice, measured in float64.

    Args:
      batch: as for `make`, with 'clean_loss' and 'pixels' too.
      adv: what the attack gave.
      queries: likewise.
      key: of the evaluation.
    """
    labels, keys = batch['labels'], batch.keys(key)
    first = judge(self.judged_by, adv, labels, keys)
    second = judge(self.judged_by, adv, labels, keys, second=True)
    distance, inside = measure(adv, batch['images'], self.threat.norm, self.run.eps)
    targets = batch['targets'] if self.threat.targeted else None
    goal = [reached(verdict, labels, targets) & inside for verdict in (first, second)]
    found = {
      'adversarial': first.predicted,
      'loss': first.loss,
      'distance': distance,
      'queries': [None] * batch.size if queries is None else queries,
      'inside': inside,
      'success': goal[0],
      'confirmed': goal[0] == goal[1],
    }
    return {**self.untouched({name: batch[name] for name in _ARRAYS}, key), **found}

  def untouched(self, arrays: Mapping[str, Any], key: jax.Array) -> dict[str, Any]:
    """Columns of `Record` for images that are not attacked; arrays as those of a batch."""
    count = len(arrays['labels'])
    targets = arrays['targets']
    alike = {'attack': self.run.attack, 'norm': self.run.norm, 'eps': self.run.eps}
    alike |= {'seed': seed_of(key), 'inside': True, 'success': False, 'confirmed': True}
    return {
      'label': arrays['labels'],
      'target': [None] * count if targets is None else targets,
      'clean': arrays['clean'],
      'adversarial': arrays['clean'],
      'clean_loss': arrays['clean_loss'],
      'loss': arrays['clean_loss'],
      'distance': [0.0] * count,
      'queries': [0] * count,
      **{name: [value] * count for name, value in alike.items()},
      'reused': [None] * count,
      'pixels': arrays['pixels'],
    }


Make = Callable[[Case, Batch], tuple[np.ndarray, np.ndarray | None]]
_ARRAYS = ('labels', 'targets', 'clean', 'clean_loss', 'pixels')


def seed_of(key: jax.Array) -> str:
  """A key as hexadecimal words."""
  return ''.join(f'{word:08x}' for word in np.asarray(jax.random.key_data(key)).ravel())


def pieces_of(
  model: Partial, chunks: Iterable[Chunk], key: jax.Array, size: int, classes: int
) -> Iterator[Images]:
  """The images with what a model says of them as they are, for `Case`.

  Raises:
    UserError: its logits of some are not numbers.
  """
  for chunk in chunks:
    verdict = _judge_all(model, chunk, key, size)
    check_defined(verdict.undefined, classes, chunk.indices)
    arrays = {'images': chunk.images, 'labels': chunk.labels, 'targets': chunk.targets}
    arrays |= {'clean': verdict.predicted, 'clean_loss': verdict.loss}
    yield Images(chunk.indices, {**arrays, 'pixels': np.asarray(chunk.pixels)})


def _judge_all(model: Partial, chunk: Chunk, key: jax.Array, size: int) -> Verdict:
  """Evaluates a chunk in batches of one size."""
  count, parts = len(chunk.images), []
  for at in batch_rows(count, size):
    images = np.asarray(chunk.images[at], np.float32)
    parts.append(judge(model, images, chunk.labels[at], keys_of(key, chunk.indices[at])))
  return Verdict(*(np.concatenate(each)[:count] for each in zip(*parts, strict=True)))


def check_chunk(model: Partial, chunk: Chunk, size: int, targeted: bool) -> int:
  """The number of classes; checks all images, in batches of the one shape the model is asked with.

  Raises:
    UserError: bad images, labels or targets.
  """
  if targeted and chunk.targets is None:
    raise UserError('a targeted threat needs targets, one class an image')
  classes = 0
  for at in batch_rows(len(chunk.images), size):
    targets = None if chunk.targets is None else chunk.targets[at]
    inputs = check_inputs(model, chunk.images[at], chunk.labels[at], targets=targets)
    classes = inputs.num_classes
  return classes


def check_same(directory: Path | None, piece: Images, done: Mapping[int, Mapping[str, Any]]):
  """Refuses images that are not those which records tell of.

  Args:
    directory: of the records.
    piece: of 'pixels', 'labels' and 'targets'.
    done: the records of a case by image.

  Raises:
    UserError: one differs.
  """
  arrays = piece.arrays
  for row, index in enumerate(piece.indices.tolist()):
    if index in done:
      target = None if arrays['targets'] is None else int(arrays['targets'][row])
      now = (str(arrays['pixels'][row]), int(arrays['labels'][row]), target)
      if now != tuple(done[index][name] for name in ('pixels', 'label', 'target')):
        raise UserError(
          f'{directory} has results of another image {index}, or with another '
          'label or target; give another output_dir'
        )


class Made:
  """Adversarial images of one attack on one model: made once, whoever judges them.

  Each image is attacked, one that the model errs on too, for another model may get it right. Those
  of a threat are kept as `<attack>_<norm>_<eps>/<first image>.npz`, a file a batch.
  """

  def __init__(
    self,
    model: Partial,
    attack: Attack,
    chunk: Chunk,
    *,
    key: jax.Array,
    size: int,
    directory: Path | None = None,
    model_id: str | None = None,
  ):
    """Opens what is there; makes nothing yet.

    Args:
      model: the one that is attacked.
      attack: how.
      chunk: all images.
      key: one PRNG key; image i uses `fold_in(key, i)`.
      size: images at a time.
      directory: where they are kept; None for in memory.
      model_id: the user's word for the model.

    Raises:
      UserError: bad input, or a directory of another model or other settings.
    """
    self._model, self._attack = shared(model), attack
    self._key, self._size, self._directory = key, size, directory
    classes = check_chunk(model, chunk, size, targeted=False)
    (self._piece,) = pieces_of(self._model, [chunk], key, size, classes)
    shape = chunk.images.shape[1:]
    self._records = Records(
      None if directory is None else directory / RESULTS,
      {'image_shape': shape, 'attack': attack.describe(), 'seed': seed_of(key)},
      model=None if directory is None else fingerprint(model, shape, size, model_id),
    )
    self._files = None if directory is None else ImageFiles(directory, '')
    self._kept: dict[str, np.ndarray] = {}

  def images(self, threat: Threat, progress: runner.Tick | None = None) -> np.ndarray:
    """The adversarial images within a threat, float32 (N, H, W, C); made where they are missing.

    Args:
      threat: norm, radius and goal; of an attack of minimum norm the radius does not count.
      progress: called with a label and how many more images are through.

    Raises:
      UserError: a file is damaged, missing or of other images, or cannot be written.
    """
    eps = np.inf if self._attack.minimum_norm else threat.eps
    threat = dataclasses.replace(threat, eps=eps)
    case = Case('', self._attack, threat, self._model, self._model)
    case = dataclasses.replace(case, label=case.run.stem)
    if case.label not in self._kept:
      # What lies on disk is held in memory one threat at a time.
      others = {} if self._files else self._kept
      self._kept = {**others, case.label: self._make(case, progress)}
    return self._kept[case.label]

  def hand_out(self, case: Case, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """The images of a batch that were made for a case, and no queries, for `Evaluating`."""
    return self.images(case.threat)[batch.padded], np.zeros(batch.size, np.int64)

  def _make(self, case: Case, progress: runner.Tick | None) -> np.ndarray:
    """Attacks what has no record; what has one is read."""
    piece, done = self._piece, self._records.rows(case.label)
    check_same(self._directory, piece, done)
    found = np.array(piece.arrays['images'], np.float32)
    if self._files is not None:
      parts = self._files.parts(case.run)
      self._files.check_whole(case.run, parts, set(done) & set(piece.indices.tolist()))
      for row, index in enumerate(piece.indices.tolist()):
        found[row] = parts.get(index, found[row])

    def work(case: Case, batch: Batch, device: Any) -> dict[str, Any]:
      del device
      adv, queries = case.make(batch, self._key)
      found[batch.rows] = adv[: batch.count]
      labels = np.asarray(batch['labels'])
      if self._files is not None:  # before the rows that say they are there
        self._files.add(case.run, batch.indices, labels[: batch.count], adv[: batch.count])
      nothing = [None] * batch.size
      columns = {'label': labels, 'target': batch['targets'], 'pixels': batch['pixels']}
      columns |= {'queries': queries}
      return {name: nothing if v is None else v for name, v in columns.items()}

    everything = [case], [piece], self._records, work
    runner.run(*everything, size=self._size, devices=(None,), progress=progress)
    return found


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

  def cases(self, made_on: Partial, judged_by: Partial) -> list[Case]:
    """The cases in the order of work: a smaller radius before a larger one."""
    found = []
    for attack in self.attacks:
      for norm, grid in self.radii.items():
        for eps in (np.inf,) if attack.minimum_norm else grid:
          threat = Threat(norm, eps, self.targeted)
          case = Case('', attack, threat, made_on, judged_by)
          found.append(dataclasses.replace(case, label=case.run.stem))
    return found


class Evaluating:
  """Carries an evaluation over its chunks: `evaluation.runner` with what attacks keep."""

  def __init__(
    self,
    model: Partial,
    settings: Settings,
    first: Chunk,
    made_on: Partial | None = None,
    make: Make | None = None,
  ):
    """Opens the results; looks at the model with the first chunk's shape.

    Args:
      model: the one that judges.
      settings: what is asked for.
      first: the first images.
      made_on: the one that is attacked; `model` itself by default.
      make: gives the adversarial images of a batch, and the queries, such as `Made.hand_out`; by
        default the attack does.

    Raises:
      UserError: bad input, or results of something else in output_dir.
    """
    self.model, self._settings = model, settings
    self._shared, self._made_on = shared(model), made_on
    self._make = make or (lambda case, batch: case.make(batch, settings.key))
    self._chosen, self._shown = SampleRows(settings.batch_size), Shown(settings.pictures)
    self._seen: set[int] = set()
    attacked = self._shared if made_on is None else shared(made_on)
    self._cases = settings.cases(attacked, self._shared)
    # Before anything is asked of the model, its input has to be right.
    self._classes = check_chunk(model, first, settings.batch_size, settings.targeted)
    directory = settings.output_dir
    self._records = Records(
      None if directory is None else directory / RESULTS,
      self._pinned(first.images.shape[1:]),
      model=fingerprint(model, first.images.shape[1:], settings.batch_size, settings.model_id),
    )
    self._files = ImageFiles(directory) if directory and settings.save_images else None

  def run(self, chunks: Iterable[Chunk], progress: runner.Tick | None = None) -> None:
    """Attacks what has no record yet.

    Args:
      chunks: the first one again, and all others.
      progress: called with a case's label and how many more of its images are through.

    Raises:
      UserError: bad input, or an image that differs from the one that was attacked before.
    """
    runner.run(
      self._cases,
      self._pieces(chunks),
      self._records,
      self._work,
      size=self._settings.batch_size,
      devices=(None,),  # a batch is laid out over all of them
      settle=self._settle,
      progress=progress,
    )

  def finish(self) -> None:
    """Draws the pictures and puts the adversarial images together."""
    directory = self._settings.output_dir
    if directory is not None:
      self._shown.draw(directory / 'pictures', self._settings.class_names)
    if self._files is not None:
      for case in self._cases:
        self._files.merge(case.run, self._of(case.label))

  def records(self) -> dict[RunName, dict[int, Record]]:
    """The records of this evaluation's attacks and images."""
    return {
      case.run: {i: r for i, r in self._of(case.label).items() if i in self._seen}
      for case in self._cases
    }

  def sample(self) -> Sample:
    """Images for the health checks: the first that are classified correctly."""
    return self._chosen.sample(self._settings.key)

  def _pieces(self, chunks: Iterable[Chunk]) -> Iterator[Images]:
    settings = self._settings
    for chunk in chunks:
      check_chunk(self.model, chunk, settings.batch_size, settings.targeted)
      self._seen |= set(chunk.indices.tolist())
      (piece,) = pieces_of(self._shared, [chunk], settings.key, settings.batch_size, self._classes)
      self._chosen.add(chunk, piece.arrays['clean'] == chunk.labels)
      yield piece

  def _work(self, case: Case, batch: Batch, device: Any) -> dict[str, Any]:
    del device
    key = self._settings.key
    adv, queries = self._make(case, batch)
    columns, count = case.judge(batch, adv, queries, key), batch.count
    if self._files is not None:
      labels = np.asarray(batch['labels'])[:count]
      self._files.add(case.run, batch.indices, labels, adv[:count])
    names = ('success', 'clean', 'adversarial')
    self._shown.add(case.run, batch['images'], adv, *(columns[n][:count] for n in names))
    return columns

  def _settle(self, case: Case, piece: Images) -> None:
    """Records of images that need no attack: they are wrong already, or a smaller radius did it."""
    done, arrays = self._records.rows(case.label), piece.arrays
    check_same(self._settings.output_dir, piece, done)
    smaller = self._fooled_before(case)
    wrong = [
      row
      for row, index in enumerate(piece.indices.tolist())
      if index not in done and arrays['clean'][row] != arrays['labels'][row]
    ]
    chosen = {n: None if arrays[n] is None else arrays[n][wrong] for n in _ARRAYS}
    self._records.add(case.label, piece.indices[wrong], case.untouched(chosen, self._settings.key))
    # Radii may come in any order: what was attacked before a smaller one did it is taken over too.
    right = piece.indices[arrays['clean'] == arrays['labels']].tolist()
    lent = {i: {**smaller[i], 'eps': case.run.eps} for i in right if i in smaller}
    lent = {i: row for i, row in lent.items() if done.get(i) != row}
    names = list(next(iter(lent.values()), {}))
    columns = {name: [row[name] for row in lent.values()] for name in names}
    self._records.add(case.label, list(lent), columns)

  def _fooled_before(self, case: Case) -> dict[int, dict[str, Any]]:
    """By image the success at the least of the smaller radii; its image is in this ball too."""
    found: dict[int, dict[str, Any]] = {}
    if case.run.eps is None:
      return found
    for label in self._records.cases:
      for index, row in self._records.rows(label).items():
        same = row['attack'] == case.run.attack and row['norm'] == case.run.norm
        if not same or row['eps'] is None or row['eps'] >= case.run.eps:
          break  # all rows of a case are of one run
        if row['success'] and (index not in found or row['eps'] < found[index]['eps']):
          found[index] = row
    return {
      index: {**row, 'reused': row['eps'] if row['reused'] is None else row['reused']}
      for index, row in found.items()
    }

  def _of(self, label: str) -> dict[int, Record]:
    """Records by image; a distance that is no number stands there as None."""
    rows = self._records.rows(label).items()
    far = {index: np.nan if row['distance'] is None else row['distance'] for index, row in rows}
    return {index: Record(index=index, **{**row, 'distance': far[index]}) for index, row in rows}

  def _pinned(self, shape: tuple[int, ...]) -> dict[str, Any]:
    settings, other = self._settings, {}
    if self._made_on is not None:
      other = {'made_on': settings.model_id or weights_hash(self._made_on)}
    return {
      'image_shape': shape,
      **other,
      'attacks': {attack.label: attack.describe() for attack in settings.attacks},
      'targeted': settings.targeted,
      'seed': seed_of(settings.key),
      'save_images': settings.save_images,
    }
