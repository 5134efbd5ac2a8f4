"""Pascal VOC's annotations: an XML file a picture.

Everingham et al., "The Pascal Visual Object Classes Challenge", IJCV 2010. Corners there count from
1 and belong to the box; here they count from 0 and the ends do not: only the starts move. They are
of the upright picture, its EXIF orientation applied.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rest_jax.data.box_files import EDGES, VOC_FIRST, fractions_error
from rest_jax.data.images import check_size, read_image
from rest_jax.data.objects import check_box, check_names, clipped, learnt
from rest_jax.data.picture_files import SUFFIXES
from rest_jax.data.split_lists import read_names
from rest_jax.errors import UserError, did_you_mean

SPLITS = 'ImageSets/Main'


@dataclasses.dataclass(frozen=True)
class VocSource:
  """Pictures with boxes; see `rest_jax.data.objects` for what an example holds.

  Attributes:
    root: of the data set.
    names: of the pictures, without ending.
    files: of the pictures.
    sizes: (H, W) of each picture, as its XML says.
    boxes: of each picture, (N, 4) corners in pixels.
    labels: of each picture.
    difficult: of each picture, (N,) bool.
    class_names: the name of each label.
    specks: boxes that are judged and not learnt, as a side is 1 px or less.
  """

  root: Path
  names: tuple[str, ...]
  files: tuple[Path, ...]
  sizes: tuple[tuple[int, int], ...]
  boxes: tuple[np.ndarray, ...]
  labels: tuple[np.ndarray, ...]
  difficult: tuple[np.ndarray, ...]
  class_names: tuple[str, ...]
  specks: int = 0

  def __len__(self) -> int:
    return len(self.names)

  def __getitem__(self, index: int) -> dict[str, Any]:
    image, boxes = read_image(self.files[index]), self.boxes[index]
    what = f'{_xml(self.root, self.names[index])} says'
    check_size(image.shape[:2], self.sizes[index], what, self.files[index])
    return {
      'image': image,
      'boxes': boxes,
      'labels': self.labels[index],
      'ignore': self.difficult[index],
      'areas': np.prod(boxes[:, 2:] - boxes[:, :2], axis=1),
      'image_id': self.names[index],
    }


def load_voc(
  root: str | os.PathLike, split: str, class_names: Sequence[str] | None = None
) -> VocSource:
  """Reads a data set in Pascal VOC's layout: Annotations, JPEGImages, ImageSets/Main/SPLIT.txt.

  Args:
    root: the folder of those.
    split: 'train', 'val', 'trainval', 'test' or whatever has a list.
    class_names: the classes, in the order of the labels; by default all that any of the XML files
      names, sorted, so that every split has the same.

  Returns:
    The source. Difficult objects are marked `ignore`; boxes with a side of 1 px or less are
    counted.

  Raises:
    UserError: no such split, a missing or damaged XML file or picture, a box outside of its image
      or of negative size, an unknown class, a picture that the split names twice. The message names
      the file and the object.
  """
  root = Path(root)
  names = _names(root, split)
  known = tuple(class_names) if class_names is not None else _all_classes(root)
  pictures = [_picture(root, name) for name in names]
  parsed = [_parse(root, name, known) for name in names]
  sizes, boxes, labels, difficult = zip(*parsed, strict=True)
  specks = sum(
    int(np.sum(~(learnt(b, s) | d))) for b, s, d in zip(boxes, sizes, difficult, strict=True)
  )
  return VocSource(root, names, tuple(pictures), sizes, boxes, labels, difficult, known, specks)


def _names(root: Path, split: str) -> tuple[str, ...]:
  """Names of the pictures of a split."""
  listing = root / SPLITS / f'{split}.txt'
  try:
    text = listing.read_text(encoding='utf-8-sig')
  except (OSError, UnicodeDecodeError) as error:
    known = sorted(path.stem for path in (root / SPLITS).glob('*.txt'))
    hint = did_you_mean(split, known) if known else f'there is no list in {root / SPLITS}'
    raise UserError(f'cannot read the split {listing}: {hint}') from error
  names = tuple(read_names(text, _known(root)))
  if not names:
    raise UserError(f'the split {listing} names no picture')
  if len(set(names)) < len(names):
    twice = next(name for name in names if names.count(name) > 1)
    raise UserError(f'the split {listing} names {twice} twice; remove one')
  return names


def _known(root: Path) -> frozenset[str]:
  """Names of which there is a picture or an XML file: one may be missing, which is said later."""
  folders = [f for f in (root / 'JPEGImages', root / 'Annotations') if f.is_dir()]
  files = (path for folder in folders for path in folder.iterdir())
  return frozenset(p.stem for p in files if p.suffix.lower() in SUFFIXES | {'.xml'})


def _xml(root: Path, name: str) -> Path:
  """The file of a picture's boxes."""
  return root / 'Annotations' / f'{name}.xml'


def _picture(root: Path, name: str) -> Path:
  """The file of a picture; its ending may be any."""
  path = root / 'JPEGImages' / f'{name}.jpg'
  if path.is_file():
    return path
  others = sorted(path.parent.glob(f'{glob.escape(path.stem)}.*'))
  others = [p for p in others if p.stem == path.stem and p.suffix.lower() in SUFFIXES]
  if not others:
    raise UserError(
      f'{_xml(root, name)}: the picture is missing: {path}; add it or shorten the split'
    )
  return others[0]


def _tree(path: Path) -> ElementTree.Element:
  """The parsed file."""
  try:
    return ElementTree.parse(path).getroot()
  except OSError as error:
    raise UserError(f'cannot read the annotations {path}: {error.strerror or error}') from error
  except ElementTree.ParseError as error:
    raise UserError(f'{path} is no XML: {error}; mend it') from error


def _all_classes(root: Path) -> tuple[str, ...]:
  """Every class that any file of the data set names, sorted."""
  files = sorted((root / 'Annotations').glob('*.xml'))
  found = {(node.findtext('name') or '').strip() for f in files for node in _tree(f).iter('object')}
  names = tuple(sorted(found - {''}))
  check_names(names, str(root / 'Annotations'))
  return names


def _size(tree: ElementTree.Element, path: Path) -> tuple[int, int]:
  """(H, W) that the file says its picture has."""
  try:
    height, width = (int(float(tree.findtext(f'size/{side}', ''))) for side in ('height', 'width'))
  except (ValueError, OverflowError):
    height = width = 0
  if min(height, width) < 1:
    raise UserError(f'{path}: the size of the picture is missing; mend it')
  return height, width


def _parse(root: Path, name: str, known: tuple[str, ...]):
  """Size, boxes, labels and which are difficult."""
  path = _xml(root, name)
  tree = _tree(path)
  size = _size(tree, path)
  boxes, labels, difficult = [], [], []
  for number, node in enumerate(tree.iter('object'), 1):
    where = f'{path}: object {number}'
    label = (node.findtext('name') or '').strip()
    if label not in known:
      raise UserError(f'{where}: unknown class {label!r}; {did_you_mean(label, known)}')
    boxes.append(_box(node, size, where))
    labels.append(known.index(label))
    difficult.append(_mark(node, where))
  return (
    size,
    np.array(boxes, np.float64).reshape(-1, 4),
    np.array(labels, np.int32),
    np.array(difficult, bool),
  )


def _mark(node: ElementTree.Element, where: str) -> bool:
  """Whether an object is difficult; one without the mark is not."""
  text = (node.findtext('difficult') or '').strip()
  if text not in ('', '0', '1'):
    raise UserError(f'{where}: difficult is 0 or 1, not {text!r}; mend it')
  return text == '1'


def _box(node: ElementTree.Element, size: tuple[int, int], where: str) -> np.ndarray:
  """Corners from 0, the ends exclusive."""
  texts = [node.findtext(f'bndbox/{edge}') for edge in EDGES]
  try:
    left, top, right, bottom = (float(text or '') for text in texts)
  except ValueError as error:
    raise UserError(f'{where}: the box {texts} is not four numbers; mend or remove it') from error
  # A start of 0 is that of a tool which counts from 0.
  box = (left - VOC_FIRST, top - VOC_FIRST, right, bottom)
  if 0 < right < 1 or 0 < bottom < 1:
    raise fractions_error(f'{where}: the box {texts} ends within the first pixel')
  return clipped(check_box(box, size, where), size)
