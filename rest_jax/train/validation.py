"""Measures a trained classifier on a whole split: accuracy, calibration, confusions, throughput."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rest_jax.data.device import to_unit
from rest_jax.errors import UserError
from rest_jax.train import parallel, totals
from rest_jax.train.losses import hits_at, predictions, smooth_one_hot, soft_cross_entropy
from rest_jax.train.metrics import IN_FLIGHT
from rest_jax.train.step import AXIS

BINS = 15  # of the calibration error, as in Guo et al.
_MEASURED = (
  'top1', 'top5', 'loss', 'class_top1', 'confusion', 'bin_count', 'bin_confidence', 'bin_top1'
)  # fmt: skip
Sums = dict[str, Any]


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
    images_per_second: reading and computing, without the first batch, which compiles; NaN where
      there was only one.
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
  progress: Callable[[Iterable], Iterable] = iter,
) -> Validation:
  """Judges every example of a split once, on all devices of all processes.

  Args:
    classifier: images (B, H, W, 3) in [0, 1] -> logits (B, K), a pytree of its weights.
    batches: from `data.eval_batches`; each with 'image' uint8, 'label' and 'mask'.
    mesh: from `parallel.make_mesh`.
    num_classes: K.
    progress: wraps the batches, for a progress bar.

  Returns:
    The measures, the same in every process.

  Raises:
    NotFiniteError: logits of the model are not finite; the line says how many, of which images.
    UserError: there is no image.
  """
  step = parallel.map_eval_step(_step, mesh)
  replicated = NamedSharding(mesh, PartitionSpec())
  classifier = jax.device_put(classifier, replicated)
  sums: Sums = {
    name: jax.make_array_from_process_local_data(replicated, zero)
    for name, zero in _zeros(num_classes).items()
  }
  under_way: collections.deque[Sums] = collections.deque()
  start, first = 0.0, 0
  for batch in progress(batches):
    sums = step(classifier, parallel.to_global(batch, mesh), sums)
    under_way.append(sums)
    if not start:
      first = int(jax.device_get(sums['count']))
      start = time.perf_counter()
    if len(under_way) > IN_FLIGHT:
      jax.block_until_ready(under_way.popleft())
  found = jax.device_get(sums)
  seconds, rest = time.perf_counter() - start, int(found['count']) - first
  if not int(found['count']):
    raise UserError('there is no image to judge the model by: the split is empty or unreadable')
  totals.check_finite(found, 'logits of the model')
  return _summary(found, rest / seconds if rest > 0 else float('nan'))


def _zeros(num_classes: int) -> Sums:
  return {
    **totals.zeros(['count', 'top1', 'top5'], ['loss']),
    'class_top1': np.zeros(num_classes, np.int32),
    'confusion': np.zeros((num_classes, num_classes), np.int32),
    'bin_count': np.zeros(BINS, np.int32),
    'bin_confidence': np.zeros((2, BINS), np.float32),
    'bin_top1': np.zeros(BINS, np.int32),
  }


def _step(classifier: Any, batch: dict[str, jax.Array], sums: Sums) -> Sums:
  """Adds one device's rows; runs inside the mapped axis."""
  logits = jnp.asarray(classifier(to_unit(batch['image'])), jnp.float32)
  labels, mask = batch['label'], batch['mask']
  real = mask.astype(jnp.int32)
  top1, top5 = (hits_at(logits, labels, k) & mask for k in (1, 5))
  confidence = jnp.max(jax.nn.softmax(logits), axis=-1)
  # Bin i holds the confidences in (i/15, (i+1)/15].
  bins = jnp.clip(jnp.ceil(confidence * BINS).astype(jnp.int32) - 1, 0, BINS - 1)
  losses = soft_cross_entropy(logits, smooth_one_hot(labels, logits.shape[-1]))
  classes, in_bins = jnp.zeros_like(sums['class_top1']), jnp.zeros_like(sums['bin_count'])
  added = {
    'count': jnp.sum(real),
    'top1': jnp.sum(top1.astype(jnp.int32)),
    'top5': jnp.sum(top5.astype(jnp.int32)),
    'loss': jnp.sum(jnp.where(mask, losses, 0.0)),
    'class_top1': classes.at[labels].add(top1.astype(jnp.int32)),
    'confusion': jnp.zeros_like(sums['confusion'])
    .at[labels, predictions(logits, labels)]
    .add(real),
    'bin_count': in_bins.at[bins].add(real),
    'bin_confidence': jnp.zeros(BINS).at[bins].add(jnp.where(mask, confidence, 0.0)),
    'bin_top1': in_bins.at[bins].add(top1.astype(jnp.int32)),
  }
  new = {n: totals.add(sums[n], value) for n, value in jax.lax.psum(added, AXIS).items()}
  return sums | new | totals.note_outputs(sums, [logits], mask, AXIS)


def _summary(sums: Sums, images_per_second: float) -> Validation:
  count, sums = int(sums['count']), {n: totals.value_of(sums[n]) for n in _MEASURED}
  in_bin = sums['bin_count'].astype(np.float64)
  in_class = sums['confusion'].sum(axis=1).astype(np.float64)
  with np.errstate(invalid='ignore'):  # empty bins and classes are NaN
    confidence, accuracy = sums['bin_confidence'] / in_bin, sums['bin_top1'] / in_bin
    class_top1 = sums['class_top1'] / in_class
  gaps = np.abs(sums['bin_confidence'] - sums['bin_top1'])
  return Validation(
    count=count,
    top1=float(sums['top1']) / count,
    top5=float(sums['top5']) / count,
    loss=float(sums['loss']) / count,
    ece=float(gaps.sum()) / count,
    confusion=sums['confusion'],
    class_top1=class_top1,
    bins=np.stack([in_bin, confidence, accuracy], axis=1),
    images_per_second=images_per_second,
  )
