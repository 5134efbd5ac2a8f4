"""Measures a trained classifier on a whole split: accuracy, calibration, confusions, throughput."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rest_jax.data.device import to_unit
from rest_jax.errors import UserError
from rest_jax.evaluation.batches import Batch, Images
from rest_jax.evaluation.records import Records
from rest_jax.evaluation.runner import Replicas, Tick, run
from rest_jax.ops.logits import probabilities
from rest_jax.ops.platform import jit
from rest_jax.train import totals
from rest_jax.train.losses import hits_at, predictions, smooth_one_hot, soft_cross_entropy

BINS = 15  # of the calibration error, as in Guo et al.
_CASE, _SPEED = 'model', 'speed'
_COLUMNS = {
  'label': np.int32,
  'predicted': np.int32,
  'top1': np.bool_,
  'top5': np.bool_,
  'loss': np.float32,
  'confidence': np.float32,
  'undefined': np.int32,
}


@dataclasses.dataclass(frozen=True)
class Validation:
  """What was measured on a split.

  Attributes:
    count: examples.
    top1: share whose class scores highest, alone (`losses.hits_at`).
    top5: share whose class is among the five highest; 1 of up to five classes.
    loss: mean cross entropy in nats.
    ece: expected calibration error, a share: the mean distance of confidence and accuracy over 15
      equally wide bins of the confidence, weighted by their examples.
    confusion: int (K, K), rows the true class, columns the predicted one (`losses.predictions`:
      its diagonal is what top1 counts).
    class_top1: float (K,), top-1 of each class; NaN where it has no example.
    bins: float (15, 3): examples, mean confidence and accuracy of each bin, NaN where empty.
    images_per_second: reading and computing of full batches, without the first one of a device,
      which compiles; NaN where there was no other.
  """

  count: int
  top1: float
  top5: float
  loss: float
  ece: float
  confusion: np.ndarray
  class_top1: np.ndarray
  bins: np.ndarray
  images_per_second: float


def validate(
  classifier: Any,
  batches: Iterable[dict[str, np.ndarray]],
  mesh: Mesh,
  *,
  num_classes: int,
  records: Records | None = None,
  images: Sequence[int] | None = None,
  progress: Tick | None = None,
) -> Validation:
  """Judges every example of a split once, on all devices of all processes.

  Args:
    classifier: images (B, H, W, 3) in [0, 1] -> logits (B, K), a pytree of its weights.
    batches: of this process; each with 'image' uint8, 'label' and 'mask'.
    mesh: from `parallel.make_mesh`; a batch is shared over its devices of this process.
    num_classes: K.
    records: where the results of an image go, and from which an evaluation that was stopped goes
      on; None keeps them in memory.
    images: numbers of this process's images in the split; `batches` holds those that are `missing`
      from the records, in order. By default what the batches hold, from 0.
    progress: as in `evaluation.runner.run`.

  Returns:
    The measures, the same in every process.

  Raises:
    NotFiniteError: logits of the model are not finite; the line says how many, of which images.
    UserError: there is no image.
  """
  records = Records(None, {}) if records is None else records
  numbers = itertools.count() if images is None else iter(missing(records, images))
  batches, judging = iter(batches), _Judging(classifier)
  speed, first = _Speed(judging, progress), next(batches, None)
  if first is not None:
    speed.first = int(np.sum(first['mask']))
    run(
      [_CASE],
      _pieces(itertools.chain([first], batches), numbers),
      records,
      judging,
      size=-(-len(first['mask']) // len(mesh.local_devices)),
      devices=list(mesh.local_devices),
      progress=speed,
    )
  speed.keep(records)
  own = sorted(records.rows(_CASE)) if images is None else images
  found, rate = _of_all_processes(records, own)
  return _summary(found, num_classes, rate)


def missing(records: Records, images: Sequence[int]) -> list[int]:
  """Those of the images that have not been judged yet, in their order."""
  there = records.rows(_CASE)
  return [image for image in images if image not in there]


def _pieces(batches: Iterable[dict[str, np.ndarray]], numbers: Iterator[int]) -> Iterator[Images]:
  """Batches without their filler, under the numbers of their images."""
  for batch in batches:
    rows = np.flatnonzero(batch['mask'])
    indices = list(itertools.islice(numbers, len(rows)))
    yield Images(indices, {name: batch[name][rows] for name in ('image', 'label')})


class _Judging:
  """The work: what a model says of the images of a batch."""

  def __init__(self, classifier: Any):
    self._classifiers = Replicas(classifier)
    self.warm: set[Any] = set()  # devices that have compiled

  def __call__(self, case: str, batch: Batch, device: Any) -> dict[str, np.ndarray]:
    labels = np.asarray(batch['label'], np.int32)
    found = jax.device_get(_judged(self._classifiers(device), batch['image'], labels))
    self.warm.add(device)
    return {'label': labels, **found}


@jit
def _judged(classifier: Any, images: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
  """Columns of the records, (B,) each."""
  logits = jnp.asarray(classifier(to_unit(images)), jnp.float32)
  return {
    'predicted': predictions(logits, labels),
    'top1': hits_at(logits, labels, 1),
    'top5': hits_at(logits, labels, 5),
    'loss': soft_cross_entropy(logits, smooth_one_hot(labels, logits.shape[-1])),
    'confidence': jnp.max(probabilities(logits), axis=-1),
    'undefined': jnp.sum(~jnp.isfinite(logits), axis=-1, dtype=jnp.int32),
  }


class _Speed:
  """Images a second once the devices have compiled, each of which does so with its first batch."""

  def __init__(self, judging: _Judging, progress: Tick | None):
    self._judging, self._progress = judging, progress
    self.first = 0  # images of the first batch
    self._done, self._last = 0, 0.0
    self._most, self._timed = 0, 0  # images of a full batch, and those up to the last full one
    self._moments: list[tuple[float, int]] = []  # a device was warm, and so many images were done

  def __call__(self, label: str, images: int) -> None:
    """So many more are through."""
    self._done, now = self._done + images, time.perf_counter()
    self._most = max(self._most, images)
    if images == self._most:  # one that is not full takes the time of one that is
      self._timed, self._last = self._done, now
    if len(self._judging.warm) > len(self._moments):
      self._moments.append((now, self._done))
    if self._progress is not None:
      self._progress(label, images)

  def keep(self, records: Records) -> None:
    """Puts the speed beside the records, where one was measured."""
    # Of a device that was warm when most was done already, compiling is not what counts.
    early = [moment for moment in self._moments if 2 * moment[1] <= self._done]
    began, before = [*self._moments[:1], *early][-1] if self._moments else (0.0, self._done)
    if self._timed > max(before, self.first):
      speed = (self._timed - before) / max(self._last - began, 1e-9)
      records.add(_SPEED, [0], {'images_per_second': [speed]})


def _of_all_processes(
  records: Records, images: Sequence[int]
) -> tuple[dict[str, np.ndarray], float]:
  """The columns of all images of all processes by their numbers, and images a second of all."""
  found = {'image': np.asarray(images, np.int32)}
  for name, kind in _COLUMNS.items():
    values = records.column(_CASE, name, images)
    found[name] = np.asarray([np.nan if v is None else v for v in values], kind)
  speeds = records.rows(_SPEED).values()
  rate = np.float32(next((row['images_per_second'] for row in speeds), np.nan))
  if jax.process_count() > 1:
    found, rate = _gathered(found, rate)
  order = np.argsort(found['image'], kind='stable')
  return {name: values[order] for name, values in found.items()}, float(rate)


def _gathered(
  found: dict[str, np.ndarray], rate: np.floating
) -> tuple[dict[str, np.ndarray], np.floating]:
  """The columns of all processes one behind the other, and the sum of their rates."""
  from jax.experimental.multihost_utils import process_allgather

  counts = np.asarray(process_allgather(np.int32(len(found['image'])))).ravel()
  most = int(counts.max())
  there = np.arange(most) < counts[:, None]
  padded = {name: np.resize(values, most) for name, values in found.items()}
  together = {n: np.asarray(process_allgather(v))[there] for n, v in padded.items()}
  return together, np.asarray(process_allgather(rate)).sum()


def _summary(found: dict[str, np.ndarray], num_classes: int, rate: float) -> Validation:
  """The measures of all images."""
  count = len(found['image'])
  if not count:
    raise UserError('there is no image to judge the model by: the split is empty or unreadable')
  _check_finite(found)
  confusion = np.zeros((num_classes, num_classes), np.int32)
  np.add.at(confusion, (found['label'], found['predicted']), 1)
  right = np.bincount(found['label'][found['top1']], minlength=num_classes)
  with np.errstate(invalid='ignore'):  # a class without images is NaN
    class_top1 = right / confusion.sum(axis=1)
  bins, ece = _calibration(found['confidence'], found['top1'])
  return Validation(
    count=count,
    top1=float(found['top1'].mean()),
    top5=float(found['top5'].mean()),
    loss=float(found['loss'].mean(dtype=np.float64)),
    ece=ece,
    confusion=confusion,
    class_top1=class_top1,
    bins=bins,
    images_per_second=rate,
  )


def _check_finite(found: dict[str, np.ndarray]) -> None:
  """Refuses a model whose logits are no numbers."""
  places = np.flatnonzero(found['undefined'])
  sums = {
    'count': len(found['image']),
    'bad': (found['undefined'].sum(), len(places)),
    'bad_at': found['image'][places[: totals.SHOWN]],
  }
  totals.check_finite(sums, 'logits of the model')


def _calibration(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, float]:
  """Examples, mean confidence and accuracy (BINS, 3), and the expected calibration error."""
  # Bin i holds the confidences in (i/15, (i+1)/15].
  place = np.clip(np.ceil(confidence * np.float32(BINS)).astype(int) - 1, 0, BINS - 1)
  count, hits, sums = (
    np.bincount(place, weights=weights, minlength=BINS)
    for weights in (None, right.astype(np.float64), confidence.astype(np.float64))
  )
  with np.errstate(invalid='ignore'):  # an empty bin is NaN
    bins = np.stack([count.astype(np.float64), sums / count, hits / count], axis=1)
  return bins, float(np.abs(sums - hits).sum()) / len(right)
