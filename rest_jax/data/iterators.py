"""Batches for training and testing: order, augmentation, sharing between processes, resuming.

A batch is a pure function of its number (see `batches`): threads and workers only decide who
computes it, a process only which rows, and the whole state of an iterator is the next number.
Grain reads ahead in threads or in spawned workers; with workers a script needs a main guard.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

from rest_jax.data.augmentation import AugmentConfig, Interpolation, Resize, check_eval_options
from rest_jax.data.batches import ERROR, SKIPPED, EvalBatches, OnError, TrainBatches
from rest_jax.data.source import ImageSource
from rest_jax.errors import UserError


def _read_ahead(batches: Any, workers: int) -> Any:
  """Lets Grain compute batches ahead of their use; returns its iterator."""
  import grain

  # Two threads here: decoding and resizing release the GIL, the rest would only contend for it. A
  # worker takes one core, and is quicker by the contention with one thread.
  options = grain.ReadOptions(num_threads=1 if workers else 2, prefetch_buffer_size=4)
  dataset = grain.MapDataset.source(batches).to_iter_dataset(options)
  if workers:
    _quiet_tracker()
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()  # Grain's workers read flags, also outside of `absl.app.run`
    options = grain.multiprocessing.MultiprocessingOptions(
      num_workers=workers, per_worker_buffer_size=2
    )
    dataset = dataset.mp_prefetch(options)
  return iter(dataset)


def _quiet_tracker() -> None:
  """Starts the process that frees what is left in shared memory when a run ends.

  Grain leaves the batches there that nobody took; Python's tracker frees them, which is what it is
  for, and would warn of it at the end of every run.
  """
  sys.warnoptions.append('ignore:resource_tracker:UserWarning')
  try:
    resource_tracker.ensure_running()
  finally:
    sys.warnoptions.remove('ignore:resource_tracker:UserWarning')


_reported: set[str] = set()  # by this process, in training and every evaluation


def _checked(batch: dict[str, Any], consequence: str) -> dict[str, Any]:
  """Raises what went wrong; reports once each image that was passed over, on stderr."""
  if ERROR in batch:
    raise UserError(batch[ERROR])
  for message in batch.pop(SKIPPED, ()):
    if message not in _reported:
      _reported.add(message)
      tqdm.write(f'Warning: {message}; {consequence}', file=sys.stderr)
  return batch


class TrainIterator(Iterator[dict[str, np.ndarray]]):
  """Endless training batches; see `train_iterator`."""

  def __init__(self, batches: TrainBatches, workers: int):
    self._batches = batches
    self._workers = workers
    self._next = 0
    self._reader = None

  def __next__(self) -> dict[str, np.ndarray]:
    if self._reader is None:
      start = dataclasses.replace(self._batches, start=self._next)
      self._reader = _read_ahead(start, self._workers)
    batch = _checked(next(self._reader), 'the next image takes its place')
    self._next += 1
    return batch

  def get_state(self) -> dict[str, int]:
    """The place in the stream.

    Returns:
      A dict for `set_state` that JSON can hold: the number of the next batch, and what the stream
      depends on.
    """
    return {
      'next_batch': self._next,
      'seed': self._batches.seed,
      'batch_size': self._batches.batch_size,
      'examples': len(self._batches.source),
      'repeats': self._batches.repeats,
    }

  def set_state(self, state: dict[str, int]) -> None:
    """Goes to a place in the stream; what follows is bitwise what followed there.

    Args:
      state: from `get_state`, of any process and with any number of workers.

    Raises:
      UserError: the state is of a stream with another seed, batch size, number of examples or of
        repeats.
    """
    own, state = self.get_state(), {'repeats': 1, **state}  # older states have no repeats
    for name in ('seed', 'batch_size', 'examples', 'repeats'):
      if state.get(name) != own[name]:
        raise UserError(
          f'cannot resume the data: {name} was {state.get(name)} and is {own[name]}; '
          'restore the old value or start a new work directory'
        )
    self.close()
    self._next = int(state['next_batch'])

  def close(self) -> None:
    """Stops reading ahead and ends the workers; the next batch starts them again."""
    if self._reader is not None:
      self._reader.close()
      self._reader = None


def train_iterator(
  source: ImageSource,
  batch_size: int,
  image_size: int,
  augment: AugmentConfig | None = None,
  seed: int = 0,
  workers: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  repeats: int = 1,
  on_error: OnError = 'fatal',
) -> TrainIterator:
  """Endless shuffled and augmented batches.

  Every epoch has an order of its own; batches run on over its end, so that none is short and every
  example comes once an epoch. Process p gets rows [p b, (p + 1) b) of the batch that one process
  would get, b = batch_size / process_count.

  With `repeats` r, an epoch has as many images, but they are r views each of the first 1/r of its
  order, together in one batch: repeated augmentation (Hoffer et al., arXiv 1901.09335) as DeiT's
  sampler and timm's do it, but for the up to 255 images that they drop at an epoch's end. In the
  batch all first views come before all second ones, so that devices get different images.

  Args:
    source: the images.
    batch_size: of all processes together.
    image_size: side of the images in pixels.
    augment: what happens to each image; None for `AugmentConfig()`.
    seed: of order and augmentation, 0 or more.
    workers: spawned processes that prepare batches; 0 prepares them in threads, which suits
      images in memory.
    process_index: this process among those that train together.
    process_count: how many train together.
    repeats: views of an image in a batch.
    on_error: 'fatal' ends on an image that cannot be read; 'skip' reports it once on stderr and
      takes the next image of the source, with that one's label, so that the stream stays the same
      whoever reads it. What Pillow decodes in spite of damage inside its data is not noticed.

  Returns:
    An iterator over {'image': (b, image_size, image_size, 3) uint8, 'label': (b,) int32} with
    `get_state`, `set_state` and `close`.

  Raises:
    UserError: an empty source, a negative seed or number of workers, repeats below 1, unknown
      on_error, a batch size that the processes cannot share evenly; while iterating, an image that
      cannot be read, or with 'skip' a hundred in a row.
  """
  _check_sharing(source, batch_size, image_size, process_index, process_count)
  _check_on_error(on_error)
  if repeats < 1:
    raise UserError(f'repeats must be 1 or more, got {repeats}')
  if seed < 0 or workers < 0:
    raise UserError(f'seed and workers must be 0 or more, got {seed} and {workers}')
  config = augment if augment is not None else AugmentConfig()
  batches = TrainBatches(
    source, batch_size, image_size, config, seed, process_index, process_count, 0, repeats, on_error
  )
  return TrainIterator(batches, workers)


@dataclasses.dataclass(frozen=True)
class EvalIterable:
  """Finite batches that can be gone through again and again; see `eval_batches`."""

  _batches: EvalBatches

  def __len__(self) -> int:
    return len(self._batches)

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    reader = _read_ahead(self._batches, workers=0)
    try:
      for batch in reader:
        yield _checked(batch, 'it is left out of the evaluation')
    finally:
      reader.close()


def eval_batches(
  source: ImageSource,
  batch_size: int,
  image_size: int,
  resize: Resize = 'squash',
  crop_pct: float = 0.875,
  interpolation: Interpolation = 'bicubic',
  process_index: int = 0,
  process_count: int = 1,
  on_error: OnError = 'fatal',
) -> EvalIterable:
  """Every example once, in order; the last batch is filled up and masked.

  Args:
    source: the images.
    batch_size: of all processes together.
    image_size: side of the images in pixels.
    resize: 'squash' or 'resize_crop', see `augment.eval_view`.
    crop_pct: for 'resize_crop'.
    interpolation: 'bilinear' or 'bicubic'.
    process_index: this process among those that test together.
    process_count: how many test together; all get the same number of batches.
    on_error: 'fatal' ends on an image that cannot be read; 'skip' reports it once on stderr and
      masks it.

  Returns:
    An iterable with a length over {'image': (b, image_size, image_size, 3) uint8,
    'label': (b,) int32, 'mask': (b,) bool}, False where a row is filler (zeros) or was skipped.

  Raises:
    UserError: an empty source, unknown options, a batch size that the processes cannot share
      evenly; while iterating, an image that cannot be read.
  """
  _check_sharing(source, batch_size, image_size, process_index, process_count)
  check_eval_options(resize, crop_pct, interpolation)
  _check_on_error(on_error)
  options = (resize, crop_pct, interpolation, process_index, process_count, on_error)
  return EvalIterable(EvalBatches(source, batch_size, image_size, *options))


def _check_on_error(on_error: str) -> None:
  if on_error not in ('fatal', 'skip'):
    raise UserError(f'on_error must be fatal or skip, got {on_error!r}')


def _check_sharing(
  source: ImageSource, batch_size: int, image_size: int, process_index: int, process_count: int
) -> None:
  if not len(source):
    raise UserError('the data source is empty')
  if batch_size < 1 or image_size < 1:
    raise UserError(f'batch_size and image_size must be positive, got {batch_size}, {image_size}')
  if not 0 <= process_index < process_count:
    raise UserError(f'process_index must be in 0..{process_count - 1}, got {process_index}')
  if batch_size % process_count:
    raise UserError(f'batch_size {batch_size} does not divide among {process_count} processes')
