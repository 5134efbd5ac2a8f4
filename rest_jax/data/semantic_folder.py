"""Pictures with a class for every pixel: a PNG of class numbers beside each picture.

ADE20K, CamVid and Pascal VOC keep them so. A PNG with a palette is read as its indices, not as its
colours. The classes are of the upright picture, its EXIF orientation applied. An example is
{'image': (H, W, 3) uint8 RGB, 'segmentation': (H, W) uint8 with 255 where nobody judges,
'image_id': the picture's name}.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rest_jax.data.images import ImageError, check_size, read_image
from rest_jax.data.objects import absent_note, check_names
from rest_jax.data.picture_files import SUFFIXES, is_hidden
from rest_jax.data.split_lists import read_names
from rest_jax.errors import UserError, did_you_mean
from rest_jax.text import plural

IGNORE = 255
_MOST_MASKS = 50  # of a split that are looked at before any work: a second, of large ones a few
# Layouts that are known: pictures, annotations, and the list of a split where one is kept.
_LAYOUTS = (
  ('images/{split}', 'annotations/{split}', None),  # ADE20K
  ('{split}', '{split}annot', None),  # CamVid
  ('JPEGImages', 'SegmentationClass', 'ImageSets/Segmentation/{split}.txt'),  # Pascal VOC
)
_LONG_NAMES = {'train': 'training', 'val': 'validation'}


@dataclasses.dataclass(frozen=True)
class SemanticSource:
  """Pictures and their index PNGs.

  Attributes:
    images: files of the pictures.
    annotations: files of the PNGs.
    class_names: the name of each class.
    zero_is_ignored: class 0 of the files is 'other' and theirs count from 1 (ADE20K).
    ignore: number in the files of pixels that nobody judges.
  """

  images: tuple[Path, ...]
  annotations: tuple[Path, ...]
  class_names: tuple[str, ...]
  zero_is_ignored: bool = False
  ignore: int = IGNORE

  def __len__(self) -> int:
    return len(self.images)

  def __getitem__(self, index: int) -> dict[str, Any]:
    image, path = read_image(self.images[index]), self.annotations[index]
    labels = self.classes(read_indices(path), path)
    check_size(image.shape[:2], labels.shape, f'{path} has', self.images[index])
    return {'image': image, 'segmentation': labels, 'image_id': self.images[index].stem}

  def classes(self, numbers: np.ndarray, path: Path) -> np.ndarray:
    """Class numbers from 0 of the numbers in a file, 255 where nobody judges."""
    judged = numbers != self.ignore
    if self.zero_is_ignored:
      judged &= numbers != 0
      numbers = numbers - 1
    wrong = judged & ((numbers < 0) | (numbers >= len(self.class_names)))
    if wrong.any():
      value = int(numbers[wrong][0]) + self.zero_is_ignored
      count = len(self.class_names)
      raise UserError(
        f'{path} has pixels of class {value}, the data set {count} classes and {self.ignore} to '
        'ignore; mend it or name more classes'
      )
    return np.where(judged, numbers, IGNORE).astype(np.uint8)


def check_marks(source: SemanticSource) -> str:
  """Looks at some masks of a split before any work: are there pixels of the classes at all?

  Args:
    source: the split.

  Returns:
    Which classes have no pixel in the masks looked at; '' where all have.

  Raises:
    UserError: a mask that cannot be read or has numbers of no class; or whatever is marked is
      marked as ignored, so that no object would be learnt or judged.
  """
  chosen = np.random.default_rng(0).permutation(len(source))[:_MOST_MASKS]
  seen, marked = set(), set()
  for index in sorted(chosen.tolist()):
    numbers = read_indices(source.annotations[index])
    seen |= set(np.unique(source.classes(numbers, source.annotations[index])).tolist())
    marked |= set(np.unique(numbers).tolist()) - {0}
  absent = [label for label in range(len(source.class_names)) if label not in seen]
  single = len(source.class_names) == 1 and not source.zero_is_ignored
  if marked == {source.ignore} and (absent or single):
    raise UserError(
      f'{source.annotations[0].parent}: masks mark objects with {source.ignore}, which means '
      f'ignored, and with nothing else ({plural(len(chosen), "mask")} looked at): '
      + _how_to_mark(source, absent)
    )
  some = '' if len(chosen) == len(source) else f' in {len(chosen)} of {len(source)} masks'
  note = absent_note('pixel', [source.class_names[label] for label in absent])
  return note and note + some


def _how_to_mark(source: SemanticSource, absent: Sequence[int]) -> str:
  """Which number stands for the first class that has no pixel."""
  if not absent:
    only = source.class_names[0]
    return f'write 1 for {only}, and name what is around it before {only} among the classes'
  label = next((label for label in absent if label), absent[0])
  return f'write {label + source.zero_is_ignored} for {source.class_names[label]}'


def read_indices(path: str | os.PathLike) -> np.ndarray:
  """The numbers in a PNG: grey values, or indices of a palette.

  Args:
    path: of the file.

  Returns:
    (H, W) int32.

  Raises:
    ImageError: the file cannot be read, has colours, or is stored so that numbers are not exact.
  """
  try:
    with Image.open(path) as image:
      _check_exact(image, path)
      image.load()
      if image.mode not in ('P', 'L', '1', 'I', 'I;16', 'I;16B'):
        raise ImageError(
          f'{path} has colours (mode {image.mode}) where class numbers are needed: a grey or a '
          'palette PNG; convert it'
        )
      return np.asarray(image).astype(np.int32)
  except (OSError, SyntaxError, ValueError) as error:
    if isinstance(error, UserError):
      raise
    raise ImageError(f'cannot read the annotation {path}: {error}; mend or remove it') from error


def _check_exact(image: Image.Image, path: str | os.PathLike) -> None:
  """Refuses what is decoded to other numbers than were written: an opened, not yet loaded file."""
  if image.format == 'JPEG':
    raise ImageError(f'{path} is a JPEG, whose numbers are not exact: save class numbers as PNG')
  tiles = getattr(image, 'tile', None) or ()
  packed = [tile[3] for tile in tiles if tile[3] in ('L;2', 'L;4')]
  if packed:
    raise ImageError(
      f'{path} has grey of {packed[0][2:]} bits, which may be class numbers or shades: save it '
      'with 8 bits or a palette'
    )


def load_semantic(
  root: str | os.PathLike,
  split: str,
  class_names: Sequence[str],
  *,
  zero_is_ignored: bool = False,
  ignore: int = IGNORE,
) -> SemanticSource:
  """Finds the pictures and PNGs of a split.

  Args:
    root: a folder in the layout of ADE20K (images/training, annotations/training), CamVid (train,
      trainannot) or Pascal VOC (JPEGImages, SegmentationClass, ImageSets/Segmentation/train.txt).
    split: 'train', 'val', 'test' or a folder's own name.
    class_names: the name of each class, at most 255.
    zero_is_ignored: see `SemanticSource`; True for ADE20K.
    ignore: number in the files of pixels that nobody judges; 11 for CamVid.

  Returns:
    The source, sorted by name.

  Raises:
    UserError: another layout, no pictures, a picture without its PNG, two of one name, or class
      names that are none.
  """
  root = Path(root)
  if not 1 <= len(class_names) <= IGNORE:
    raise UserError(f'a segmentation has 1 to {IGNORE} classes, got {len(class_names)}')
  check_names(tuple(class_names), f'{root}: the classes of pixels')
  images, annotations = _pairs(root, split)
  return SemanticSource(images, annotations, tuple(class_names), zero_is_ignored, ignore)


def _pairs(root: Path, split: str) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
  """Pictures and PNGs, in one order."""
  for name in (split, _LONG_NAMES.get(split, split)):
    for layout in _LAYOUTS:
      pictures, numbers, listing = (
        None if part is None else root / part.format(split=name) for part in layout
      )
      if pictures and numbers and pictures.is_dir() and numbers.is_dir():
        return _match(pictures, numbers, listing)
  wanted = ' or '.join(pictures.format(split=split) for pictures, _, _ in _LAYOUTS)
  raise UserError(f'{root} has no pictures of {split!r} with their annotations: {wanted} is needed')


def _listed(listing: Path, known: Collection[str]) -> list[str]:
  """The names of a split's list."""
  try:
    return read_names(listing.read_text(encoding='utf-8-sig'), known)
  except (OSError, UnicodeDecodeError) as error:
    lists = sorted(path.stem for path in listing.parent.glob('*.txt'))
    none = f'there is no list in {listing.parent}'
    hint = did_you_mean(listing.stem, lists) if lists else none
    raise UserError(f'cannot read the split {listing}: {hint}') from error


def _match(pictures: Path, numbers: Path, listing: Path | None):
  """Each picture with the PNG of its name."""
  files = [p for p in sorted(pictures.iterdir()) if p.suffix.lower() in SUFFIXES]
  files = [p for p in files if not is_hidden(p.name) and p.is_file()]
  found = {p.stem: p for p in files}
  known = {*found, *(p.stem for p in numbers.glob('*.png'))}
  names = sorted(found) if listing is None else _listed(listing, known)
  if not names:
    raise UserError(f'{pictures if listing is None else listing} has no pictures')
  stems = names if listing is not None else [p.stem for p in files]
  if len(set(stems)) < len(stems):
    twice = next(stem for stem in stems if stems.count(stem) > 1)
    raise UserError(f'{listing or pictures} has two pictures called {twice}: remove one')
  for name in names:
    if name not in found:
      raise UserError(
        f'{listing}: the picture {pictures / name} is missing; add it or remove the line'
      )
    if not (numbers / f'{name}.png').is_file():
      raise UserError(f'{found[name]} has no annotation {numbers / name}.png; add or remove it')
  return tuple(found[n] for n in names), tuple(numbers / f'{n}.png' for n in names)
