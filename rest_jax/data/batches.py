"""Batches as pure functions of their number, to be computed by any thread, worker or process.

The order of an epoch comes from (seed, epoch), the augmentation of an image from (seed, epoch,
example, copy).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import numpy as np

from rest_jax.data.augmentation import AugmentConfig, Interpolation, Resize, augment, eval_view
from rest_jax.data.images import EncodedImage, ImageError
from rest_jax.data.source import ImageSource, open_example
from rest_jax.errors import UserError

ENDLESS = 2**40  # batches; more than anybody trains on
ERROR = 'error'  # key of a batch that could not be made: what is wrong
SKIPPED = 'skipped'  # key of messages about images that could not be read, where there are any
OnError = Literal['fatal', 'skip']
_NEIGHBOURS = 100  # unreadable images in a row that are passed over


@functools.lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
  return np.random.default_rng([seed, epoch]).permutation(count)


def example_rng(seed: int, epoch: int, example: int, copy: int = 0) -> np.random.Generator:
  """Chance for one view of one example.

  Args:
    seed: of the run.
    epoch: from 0.
    example: its number in the source.
    copy: which of its repetitions in the epoch, from 0.

  Returns:
    A generator whose stream overlaps with no other one: copy, example and epoch stand in the high
    words of Philox's counter.
  """
  counter = np.array([0, copy, example, epoch], np.uint64)
  key = np.array([seed, 0], np.uint64)  # as key=seed, which takes twice as long
  return np.random.Generator(np.random.Philox(key=key, counter=counter))


class _Views:
  """Random views of examples; keeps the last image, whose copies share one decoding."""

  def __init__(self, source: ImageSource, size: int, config: AugmentConfig, repeats: int):
    self._source, self._size, self._config, self._repeats = source, size, config, repeats
    self._last: tuple[int, dict[str, Any]] = (-1, {})

  def __call__(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    if self._last[0] != index:
      self._last = (index, open_example(self._source, index))
      image = self._last[1]['image']
      if isinstance(image, EncodedImage):
        image.reused = self._repeats > 1
    example = self._last[1]
    return augment(example['image'], self._size, self._config, rng), example['label']


@dataclasses.dataclass(frozen=True)
class TrainBatches:
  """Batch number -> this process's rows of it, as a random-access source for Grain."""

  source: ImageSource
  batch_size: int
  image_size: int
  config: AugmentConfig
  seed: int
  process_index: int
  process_count: int
  start: int = 0
  repeats: int = 1
  on_error: OnError = 'fatal'

  def __len__(self) -> int:
    return ENDLESS

  def __getitem__(self, number: int) -> dict[str, Any]:
    try:
      return self._batch(self.start + number)
    except UserError as error:
      # Carried as data: from a worker an exception would come back as another one.
      return {ERROR: str(error)}

  def _batch(self, number: int) -> dict[str, Any]:
    rows = self.batch_size // self.process_count
    places = number * self.batch_size + np.arange(self.batch_size)
    # First copies first, so that the copies of an image go to different devices.
    order = np.argsort(places % len(self.source) % self.repeats, kind='stable')
    own = order[self.process_index * rows : (self.process_index + 1) * rows]
    images = np.empty((rows, self.image_size, self.image_size, 3), np.uint8)
    labels = np.empty(rows, np.int32)
    views = _Views(self.source, self.image_size, self.config, self.repeats)
    skipped: dict[str, None] = {}
    for row in np.argsort(own, kind='stable').tolist():  # copies one after the other
      images[row], labels[row] = self._example(int(places[own[row]]), views, skipped)
    batch: dict[str, Any] = {'image': images, 'label': labels}
    return {**batch, SKIPPED: tuple(skipped)} if skipped else batch

  def _example(self, place: int, views: _Views, skipped: dict[str, None]) -> tuple[np.ndarray, int]:
    """The view at a place of the endless stream, or of the next image that can be read."""
    count = len(self.source)
    epoch, place = divmod(place, count)
    index = int(_epoch_order(self.seed, epoch, count)[place // self.repeats])
    for step in range(_NEIGHBOURS):
      rng = example_rng(self.seed, epoch, index, place % self.repeats)
      try:
        return views((index + step) % count, rng)
      except ImageError as error:
        if self.on_error == 'fatal':
          raise ImageError(f'{error}; or leave such images out: data.on_error=skip') from error
        skipped[str(error)] = None
    last = next(reversed(skipped))
    raise UserError(f'{_NEIGHBOURS} images in a row cannot be read; {last}')


@dataclasses.dataclass(frozen=True)
class EvalBatches:
  """Batch number -> this process's rows of it, padded with zeros and masked at the end."""

  source: ImageSource
  batch_size: int
  image_size: int
  resize: Resize
  crop_pct: float
  interpolation: Interpolation
  process_index: int
  process_count: int
  on_error: OnError = 'fatal'

  def __len__(self) -> int:
    return -(-len(self.source) // self.batch_size)

  def __getitem__(self, number: int) -> dict[str, Any]:
    rows = self.batch_size // self.process_count
    first = number * self.batch_size + self.process_index * rows
    images = np.zeros((rows, self.image_size, self.image_size, 3), np.uint8)
    labels = np.zeros(rows, np.int32)
    mask = np.arange(rows) < len(self.source) - first
    skipped = []
    for row in np.flatnonzero(mask).tolist():
      try:
        example = self.source[first + row]
        images[row] = eval_view(
          example['image'], self.image_size, self.resize, self.crop_pct, self.interpolation
        )
        labels[row] = example['label']
      except ImageError as error:
        if self.on_error == 'fatal':
          return {ERROR: str(error)}
        mask[row] = False
        skipped.append(str(error))
      except UserError as error:
        return {ERROR: str(error)}
    batch: dict[str, Any] = {'image': images, 'label': labels, 'mask': mask}
    return {**batch, SKIPPED: tuple(skipped)} if skipped else batch
