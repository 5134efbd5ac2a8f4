"""Boxes of objects in XML files, one a picture: Pascal VOC's and ImageNet's form.

ROOT/Annotations/**/NAME.xml for the picture ROOT/**/NAME.jpg, or NAME.xml beside it
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from rest_jax.data.objects import check_box
from rest_jax.errors import UserError

Box = tuple[float, float, float, float]  # (xmin, ymin, xmax, ymax) in pixels, edges
FOLDERS = ('annotations', 'annotation')
VOC_FIRST = 1  # corners count from 1 there, and the last ones belong to the box (IJCV 2010)
_SAME = 0.02  # in the logarithm of width over height: sizes are rounded
EDGES = ('xmin', 'ymin', 'xmax', 'ymax')


class Boxes(NamedTuple):
  """The objects of a picture.

  Attributes:
    edges: a box each; none where nobody has drawn one.
    size: (width, height) of the picture that they were drawn on; None for the picture as it is.
    path: of the file that they come from (and which picture there), for errors.
  """

  edges: tuple[Box, ...] = ()
  size: tuple[int, int] | None = None
  path: str = ''

  def fractions(self, width: int, height: int) -> list[Box]:
    """The boxes over the sides of a picture of that size, as (xmin, ymin, xmax, ymax) in [0, 1].

    Raises:
      UserError: a box reaches over the border by more than a pixel; or they were drawn on the
        picture as it lies on its side: pictures are turned upright here, and which way the boxes
        have to follow is not in their file.
    """
    across, down = self.size or (width, height)
    wide, drawn_wide = math.log(width / height), math.log(across / down)
    if self.edges and abs(wide + drawn_wide) < _SAME < abs(wide):
      raise UserError(
        f'{self.path or "boxes"}: drawn on a picture of {across}x{down} px, and upright it has '
        f'{width}x{height}; turn the boxes as its EXIF orientation says, or save it without one'
      )
    for box in self.edges:
      check_box(box, (down, across), self.path or 'boxes')
    return [(l / across, t / down, r / across, b / down) for l, t, r, b in self.edges]  # noqa: E741


class XmlBoxes(Sequence[Boxes]):
  """The boxes of each picture of a list, read when they are asked for."""

  def __init__(self, paths: list[str]):
    """Takes the path of each picture's XML file, '' where there is none."""
    self._paths = paths

  def __len__(self) -> int:
    return len(self._paths)

  def __getitem__(self, index):
    if isinstance(index, slice):
      return [self[i] for i in range(*index.indices(len(self)))]
    path: str = self._paths[index]
    return read_boxes(path) if path else Boxes()

  def contents(self) -> Iterator[bytes]:
    """What each picture's file holds; nothing where there is none.

    Raises:
      UserError: one cannot be read.
    """
    for path in self._paths:
      try:
        yield Path(path).read_bytes() if path else b''
      except OSError as error:
        raise _unreadable(path, error) from error


def boxes_digest(boxes: Sequence[Boxes]) -> str:
  """Says whether the boxes of pictures are still the same, wherever their files stand.

  Args:
    boxes: of each picture, in the order of the pictures. Of XML files what they hold counts, byte
      by byte: an image that nobody measures may have a damaged one.

  Returns:
    A digest of all of them.

  Raises:
    UserError: a file cannot be read.
  """
  digest = hashlib.sha256()
  drawn = (repr((one.edges, one.size)).encode() for one in boxes)
  for part in boxes.contents() if isinstance(boxes, XmlBoxes) else drawn:
    digest.update(hashlib.sha256(part).digest())
  return digest.hexdigest()


def find_boxes(root: str, files: Sequence[str]) -> XmlBoxes | None:
  """Looks for the XML files of pictures.

  Args:
    root: the folder of the data set.
    files: paths of the pictures.

  Returns:
    The boxes; None where no picture has an XML file.
  """
  drawn = _drawn(root)
  paths = []
  for file in files:
    name = os.path.splitext(file)[0]
    parts = os.path.relpath(name, root).split(os.sep)
    # Annotations/train/cat/1.xml, else Annotations/cat/1.xml, else the only 1.xml.
    tails = (os.sep.join(parts[first:]) for first in range(len(parts)))
    there = next((drawn[tail] for tail in tails if tail in drawn), '')
    paths.append(there or (f'{name}.xml' if os.path.isfile(f'{name}.xml') else ''))
  return XmlBoxes(paths) if any(paths) else None


def has_drawn(root: str) -> bool:
  """Whether there are XML files below an annotations folder of a data set."""
  return bool(_drawn(root))


def _drawn(root: str) -> dict[str, str]:
  """XML files below an annotations folder: by path in there, and by name where one has it."""
  by_path: dict[str, str] = {}
  by_name: dict[str, list[str]] = {}
  for name in sorted(os.listdir(root)):
    if name.lower() not in FOLDERS:
      continue
    top = os.path.join(root, name)
    for place, _, names in sorted(os.walk(top)):
      for stem in (n[:-4] for n in names if n.lower().endswith('.xml')):
        path = os.path.join(place, f'{stem}.xml')
        by_path[os.path.relpath(os.path.join(place, stem), top)] = path
        by_name.setdefault(stem, []).append(path)
  return {stem: paths[0] for stem, paths in by_name.items() if len(paths) == 1} | by_path


def box_of(corners: Sequence[str | None], first: float = 0, last: float = 0) -> Box | None:
  """A box, as a file says it.

  Args:
    corners: the texts of xmin, ymin, xmax and ymax.
    first: where the file counts from: `VOC_FIRST`, or 0.
    last: what the ends lack: 1 where xmax and ymax are the last pixel and counted from 0.

  Returns:
    Its edges in pixels from 0, the ends exclusive; None where the texts are not four finite numbers
    or where nothing lies between the edges.
  """
  try:
    left, top, right, bottom = (float(text or '') for text in corners)
  except ValueError:
    return None
  box = (left - first, top - first, right + last, bottom + last)
  return box if all(map(math.isfinite, box)) and box[0] < box[2] and box[1] < box[3] else None


def read_boxes(path: str) -> Boxes:
  """Reads an XML file with boxes.

  Args:
    path: of the file: `annotation/object/bndbox` with xmin, ymin, xmax and ymax, the first and the
      last pixel counted from 1 (a first of 0 is that of a tool which counts from 0), and perhaps
      `annotation/size` with width and height.

  Returns:
    The boxes.

  Raises:
    UserError: it cannot be read, or has a box that is none.
  """
  try:
    root = ElementTree.parse(path).getroot()
  except (OSError, ElementTree.ParseError) as error:
    raise _unreadable(path, error) from error
  edges = []
  for box in _box_nodes(root, path):
    texts = [(box.findtext(edge) or '').strip() for edge in EDGES]
    if (found := box_of(texts, first=VOC_FIRST)) is None:
      raise UserError(f'{path}: {", ".join(texts)} is no box; it is xmin, ymin, xmax, ymax')
    left, top, right, bottom = found
    # The last pixel is 1 or more here, or 0 of a tool that counts from there.
    if 0 < right < 1 or 0 < bottom < 1:
      raise fractions_error(f'{path}: {", ".join(texts)} ends within the first pixel')
    edges.append((max(left, 0.0), max(top, 0.0), right, bottom))
  width, height = (_whole(root.findtext(f'size/{side}')) for side in ('width', 'height'))
  return Boxes(tuple(edges), (width, height) if width and height else None, path)


def _box_nodes(root: ElementTree.Element, path: str) -> Iterator[ElementTree.Element]:
  """The box of each object: one that is left out would be outside of every box."""
  for number, found in enumerate(root.iterfind('object'), 1):
    boxes = found.findall('bndbox')
    if not boxes:
      raise UserError(f'{path}: object {number} has no bndbox; give it one or remove it')
    yield from boxes


def fractions_error(found: str) -> UserError:
  """That boxes are no pixels, after what was found of them."""
  return UserError(f'{found}: boxes look like fractions; give pixels')


def _unreadable(path: str, error: Exception) -> UserError:
  return UserError(f'cannot read the boxes {path}: {error}')


def _whole(text: str | None) -> int:
  text = (text or '').strip()
  return int(text) if text.isdigit() else 0
