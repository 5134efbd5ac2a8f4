"""Batches as pure functions of their number, to be computed by any thread, worker or process.

The order of an epoch comes from (seed, epoch), the augmentation of an image from (seed, epoch,
example).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from rest_jax.data.augment import AugmentConfig, Interpolation, Resize, augment, eval_view
from rest_jax.data.sources import ImageSource
from rest_jax.errors import UserError

ENDLESS = 2**40  # batches; more than anybody trains on
ERROR = 'error'  # key of a batch that could not be made: what is wrong


@functools.lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
  return np.random.default_rng([seed, epoch]).permutation(count)


def example_rng(seed: int, epoch: int, example: int) -> np.random.Generator:
  """Chance for one view of one example.

  Args:
    seed: of the run.
    epoch: from 0.
    example: its number in the source.

  Returns:
    A generator whose stream overlaps with that of no other triple: the example and the epoch
    stand in the high words of Philox's counter.
  """
  counter = np.array([0, 0, example, epoch], np.uint64)
  return np.random.Generator(np.random.Philox(key=seed, counter=counter))


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
    first = number * self.batch_size + self.process_index * rows
    images = np.empty((rows, self.image_size, self.image_size, 3), np.uint8)
    labels = np.empty(rows, np.int32)
    for row in range(rows):
      epoch, place = divmod(first + row, len(self.source))
      index = int(_epoch_order(self.seed, epoch, len(self.source))[place])
      example = self.source[index]
      rng = example_rng(self.seed, epoch, index)
      images[row] = augment(example['image'], self.image_size, self.config, rng)
      labels[row] = example['label']
    return {'image': images, 'label': labels}


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

  def __len__(self) -> int:
    return -(-len(self.source) // self.batch_size)

  def __getitem__(self, number: int) -> dict[str, Any]:
    rows = self.batch_size // self.process_count
    first = number * self.batch_size + self.process_index * rows
    images = np.zeros((rows, self.image_size, self.image_size, 3), np.uint8)
    labels = np.zeros(rows, np.int32)
    there = max(0, min(rows, len(self.source) - first))
    try:
      for row in range(there):
        example = self.source[first + row]
        images[row] = eval_view(
          example['image'], self.image_size, self.resize, self.crop_pct, self.interpolation
        )
        labels[row] = example['label']
    except UserError as error:
      return {ERROR: str(error)}
    return {'image': images, 'label': labels, 'mask': np.arange(rows) < there}
