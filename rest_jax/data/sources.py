"""Where images come from: TFDS data sets, folders, the embedded `digit_scenes`.

A source gives random access: `len(source)` and `source[i] -> {'image': (H, W, 3) uint8 RGB,
'label': int}`, and can be pickled for a worker process.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Protocol

import numpy as np

from rest_jax.data.folder import load_folder
from rest_jax.data.tfds_source import default_data_dir, load_tfds
from rest_jax.errors import UserError

CACHE_LIMIT = 4 * 2**30  # bytes of pixels that one cached split may take


class ImageSource(Protocol):
  """Random access to labelled images."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int, /) -> dict: ...


@dataclasses.dataclass(frozen=True)
class DataSources:
  """A data set for classification.

  Attributes:
    name: as it was asked for.
    train: images to learn from.
    test: images to be judged by.
    class_names: the name of each label.
  """

  name: str
  train: ImageSource
  test: ImageSource
  class_names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class CachedSource:
  """Images of one size, decoded once and held in memory.

  Attributes:
    images: (N, H, W, 3) uint8.
    labels: (N,) int32.
  """

  images: np.ndarray
  labels: np.ndarray

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> dict:
    return {'image': self.images[index], 'label': int(self.labels[index])}


def load(
  name: str | os.PathLike,
  data_dir: str | os.PathLike | None = None,
  train_split: str = 'train',
  test_split: str = 'test',
  cache: bool = False,
  extras: tuple[str, ...] = (),
) -> DataSources:
  """Opens a data set; `digit_scenes` is prepared first where that has not been done.

  Args:
    name: 'digit_scenes', the name of a TFDS data set, or a directory with one sub-folder a class.
    data_dir: where TFDS data sets stand; None for $TFDS_DATA_DIR or ~/tensorflow_datasets.
    train_split: TFDS's name of the train split; a directory has its own.
    test_split: of the test split; where a data set has no 'test', its 'validation' is taken.
    cache: decodes all images once into memory, for small data sets of one image size.
    extras: further features of a TFDS data set, for digit_scenes 'bbox' ((4,) float32, TFDS's
      order) and 'mask' ((H, W) bool).

  Returns:
    The sources.

  Raises:
    UserError: unknown or unprepared data set, unusable folder, images that cannot be cached.
  """
  name = os.fspath(name)
  if cache and extras:
    raise UserError(f'cache=True holds images and labels only, without {", ".join(extras)}')
  if name != 'digit_scenes' and os.path.isdir(name):
    if extras:
      raise UserError(f'the folder {name} has images and labels only, no {", ".join(extras)}')
    train, test, class_names = load_folder(name)
  else:
    root = data_dir or default_data_dir()
    if name == 'digit_scenes':
      from rest_jax.data.digit_scenes import prepare

      prepare(root)
    train, test, class_names = load_tfds(name, root, train_split, test_split, extras)
  if cache:
    train, test = cached(train, f'{name} train'), cached(test, f'{name} test')
  return DataSources(name, train, test, class_names)


def cached(source: ImageSource, name: str = 'images') -> CachedSource:
  """Decodes a whole source into memory.

  Args:
    source: its images must have one size.
    name: for the progress bar and messages.

  Returns:
    The same examples in the same order.

  Raises:
    UserError: images of several sizes, or more than CACHE_LIMIT bytes.
  """
  from tqdm import tqdm

  count = len(source)
  shape = source[0]['image'].shape
  if count * int(np.prod(shape)) > CACHE_LIMIT:
    raise UserError(
      f'{name}: {count} images of {shape[0]}x{shape[1]} do not fit {CACHE_LIMIT >> 30} GiB of '
      'memory; use cache=False'
    )
  images = np.empty((count, *shape), np.uint8)
  labels = np.empty(count, np.int32)
  for index in tqdm(range(count), desc=f'decode {name}', unit='img', leave=False, delay=1):
    example = source[index]
    if example['image'].shape != shape:
      raise UserError(
        f'{name}: image {index} has shape {example["image"].shape}, the first {shape}; '
        'use cache=False for images of several sizes'
      )
    images[index], labels[index] = example['image'], example['label']
  return CachedSource(images, labels)
