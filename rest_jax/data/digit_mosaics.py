"""`digit_mosaics`, the embedded data set of dense tasks: several digits on one picture.

A mosaic is a window of 128x128 pixels of nine `digit_scenes` set beside each other, so that it
holds about four digits, some of them cut. Nothing new is stored: mosaic i of a split is drawn by a
seed of its own from the scenes of that split, which are prepared on first use. Each has boxes and
masks of its digits (see `rest_jax.data.objects`) and a class for every pixel: 0 for the background,
digit + 1. Digits of which less than 60 % is visible are marked `ignore`; their pixels keep their
class.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np

from rest_jax.data.geometry import crop, tight_boxes
from rest_jax.data.objects import ObjectSources
from rest_jax.data.source import ImageSource
from rest_jax.data.sources import load
from rest_jax.errors import UserError

SIDE = 128  # px
GRID = 3  # scenes a side
LEAST_VISIBLE = 0.6
COUNTS = {'train': 20_000, 'test': 500}
CLASS_NAMES = tuple(str(digit) for digit in range(10))
PIXEL_CLASSES = ('background', *CLASS_NAMES)
_SEED = 2022
_KEPT = 8000  # decoded scenes in memory, 16 kB each: decoding nine anew would be most of a mosaic


@dataclasses.dataclass(frozen=True)
class MosaicSource:
  """Mosaics of one split, made when asked for.

  Attributes:
    scenes: labelled scenes with masks, all of one size.
    split: 'train' or 'test'; part of the seed.
    count: mosaics.
  """

  scenes: ImageSource
  split: str
  count: int
  _kept: dict[int, dict[str, Any]] = dataclasses.field(
    default_factory=dict, init=False, repr=False, compare=False
  )

  @property
  def class_names(self) -> tuple[str, ...]:
    """Of the digits; `PIXEL_CLASSES` those of pixels."""
    return CLASS_NAMES

  def __len__(self) -> int:
    return self.count

  def __getitem__(self, index: int) -> dict[str, Any]:
    index = range(self.count)[index]
    rng = np.random.default_rng([_SEED, sorted(COUNTS).index(self.split), index])
    chosen = rng.integers(len(self.scenes), size=GRID * GRID)
    whole = _mosaic([self._scene(int(i)) for i in chosen])
    free = whole['image'].shape[0] - SIDE
    top, left = (int(v) for v in rng.integers(free + 1, size=2))
    return crop(whole, (top, left, SIDE, SIDE), least_visible=LEAST_VISIBLE) | {'image_id': index}

  def _scene(self, index: int) -> dict[str, Any]:
    """A decoded scene, kept while there is room."""
    scene = self._kept.get(index) or self.scenes[index]
    if len(self._kept) < _KEPT:
      self._kept[index] = scene
    return scene


def _mosaic(scenes: list[dict[str, Any]]) -> dict[str, Any]:
  """All scenes beside each other, row by row."""
  side = scenes[0]['image'].shape[0]
  total = GRID * side
  image = np.zeros((total, total, 3), np.uint8)
  classes = np.zeros((total, total), np.uint8)
  masks = np.zeros((len(scenes), total, total), bool)
  for i, scene in enumerate(scenes):
    row, column = divmod(i, GRID)
    part = np.s_[row * side : (row + 1) * side, column * side : (column + 1) * side]
    image[part], masks[i][part] = scene['image'], scene['mask']
    classes[part][scene['mask']] = scene['label'] + 1
  return {
    'image': image,
    'segmentation': classes,
    'masks': masks,
    'boxes': tight_boxes(masks),
    'labels': np.array([scene['label'] for scene in scenes], np.int32),
    'ignore': np.zeros(len(scenes), bool),
    'areas': masks.sum((1, 2)).astype(np.float64),
  }


def load_digit_mosaics(
  data_dir: str | os.PathLike | None = None,
  *,
  train: int = COUNTS['train'],
  test: int = COUNTS['test'],
) -> ObjectSources:
  """Opens the mosaics; the scenes are prepared first where that has not been done.

  Args:
    data_dir: where the scenes stand; None for $TFDS_DATA_DIR or ~/tensorflow_datasets.
    train: mosaics to learn from. Every one is another draw, so there is no end to them.
    test: mosaics to be judged by.

  Returns:
    The sources.

  Raises:
    UserError: a count under 1, or a directory that cannot be written.
  """
  if min(train, test) < 1:
    raise UserError(f'digit_mosaics takes 1 mosaic or more of each split, got {train} and {test}')
  scenes = load('digit_scenes', data_dir, extras=('mask',))
  return ObjectSources(
    'digit_mosaics',
    MosaicSource(scenes.train, 'train', train),
    MosaicSource(scenes.test, 'test', test),
    CLASS_NAMES,
  )
