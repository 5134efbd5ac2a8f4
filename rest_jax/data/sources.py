"""Where images come from: TFDS data sets, folders, the embedded `digit_scenes`.

A source gives random access: `len(source)` and `source[i] -> {'image': (H, W, 3) uint8 RGB,
'label': int}`, and can be pickled for a worker process. Sources of image files have a method `open`
beside it, which gives the image as an `EncodedImage`, not decoded yet.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any, Protocol

import numpy as np

from rest_jax.data.folder import load_folder
from rest_jax.data.images import ImageError
from rest_jax.data.tfds_source import default_data_dir, load_tfds
from rest_jax.errors import UserError
from rest_jax.paths import expanded, local

CACHE_LIMIT = 4 * 2**30  # bytes of pixels that one cached split may take


class ImageSource(Protocol):
  """Random access to labelled images."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int, /) -> dict: ...


def open_example(source: ImageSource, index: int) -> dict[str, Any]:
  """Reads an example without decoding it where the source can.

  Args:
    source: the images.
    index: of the example.

  Returns:
    {'image': `EncodedImage` or (H, W, 3) uint8, 'label': int}.

  Raises:
    ImageError: the image cannot be read.
  """
  return getattr(source, 'open', source.__getitem__)(index)


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
    problems: what is wrong with an image that could not be read, by its number.
  """

  images: np.ndarray
  labels: np.ndarray
  problems: dict[int, str] = dataclasses.field(default_factory=dict)

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> dict:
    if index in self.problems:
      raise ImageError(self.problems[index])
    return {'image': self.images[index], 'label': int(self.labels[index])}


def load(
  name: str | os.PathLike,
  data_dir: str | os.PathLike | None = None,
  train_split: str = 'train',
  test_split: str = 'test',
  cache: bool = False,
  extras: tuple[str, ...] = (),
  on_error: str = 'fatal',
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
    on_error: what an image that cannot be read does to `cache`: 'fatal' ends it, with 'skip' the
      image is in error when it is asked for, as without a cache.

  Returns:
    The sources.

  Raises:
    UserError: unknown or unprepared data set, unusable folder, images that cannot be cached.
  """
  name = expanded(os.fspath(name), 'the data set')
  if cache and extras:
    raise UserError(f'cache=True holds images and labels only, without {", ".join(extras)}')
  if name != 'digit_scenes' and os.path.isdir(name):
    if extras:
      raise UserError(f'the folder {name} has images and labels only, no {", ".join(extras)}')
    train, test, class_names = load_folder(name)
  else:
    root = local(default_data_dir() if data_dir is None else data_dir, 'the data directory')
    if name == 'digit_scenes':
      from rest_jax.data.digit_scenes import prepare

      prepare(root)
    train, test, class_names = load_tfds(name, root, train_split, test_split, extras)
  if cache:
    train = cached(train, f'{name} train', on_error)
    test = cached(test, f'{name} test', on_error)
  return DataSources(name, train, test, class_names)


def cached(source: ImageSource, name: str = 'images', on_error: str = 'fatal') -> CachedSource:
  """Decodes a whole source into memory.

  Args:
    source: its images must have one size.
    name: for the progress bar and messages.
    on_error: 'fatal', or 'skip' to keep the place of an image that cannot be read.

  Returns:
    The same examples in the same order.

  Raises:
    UserError: images of several sizes, more than CACHE_LIMIT bytes, or one that cannot be read.
  """
  from tqdm import tqdm

  count = len(source)
  images, shape = np.empty(0, np.uint8), None
  labels = np.zeros(count, np.int32)
  problems: dict[int, str] = {}
  for index in tqdm(range(count), desc=f'decode {name}', unit='img', leave=False, delay=1):
    try:
      example = source[index]
    except ImageError as error:
      if on_error != 'skip':
        raise
      problems[index] = str(error)
      continue
    if shape is None:
      shape = example['image'].shape
      images = _room(count, shape, name)
    if example['image'].shape != shape:
      raise UserError(
        f'{name}: image {index} has shape {example["image"].shape}, others {shape}; '
        'use cache=False for images of several sizes'
      )
    images[index], labels[index] = example['image'], example['label']
  return CachedSource(images, labels, problems)


def _room(count: int, shape: tuple[int, ...], name: str) -> np.ndarray:
  if count * int(np.prod(shape)) > CACHE_LIMIT:
    raise UserError(
      f'{name}: {count} images of {shape[0]}x{shape[1]} do not fit {CACHE_LIMIT >> 30} GiB of '
      'memory; use cache=False'
    )
  return np.zeros((count, *shape), np.uint8)
