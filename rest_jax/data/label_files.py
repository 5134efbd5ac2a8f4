"""Lists of labels: a CSV beside a folder of pictures, and Tiny-ImageNet's annotations.

A CSV has a header with the columns `file` and `label`, and optionally `xmin`, `ymin`, `xmax` and
`ymax` (capitals and `x_min` too), a box in pixels; further columns are passed over, but none that
looks like a part of a box. `file` is a path from the CSV's folder,
from its `images` folder, or the name of a picture anywhere below it. `label` is a class name, or a
number from 0 in the order of the model's classes. Several boxes of an image are several rows.
"""

from __future__ import annotations

import csv
import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from rest_jax.data import picture_files
from rest_jax.data.box_files import EDGES, Box, Boxes, box_of, fractions_error
from rest_jax.errors import UserError
from rest_jax.text import legible

_LIMIT = 2**24  # bytes of a field
# What others call the edges of a box, its centre and its sides, without '_' and 'bbox'.
_ACROSS = {'x', 'x0', 'x1', 'x2', 'left', 'right', 'minx', 'maxx', 'xtl', 'xbr', 'cx', 'xc'}
_ACROSS |= {'xcenter', 'centerx', 'xcentre', 'centrex', 'xmin', 'xmax'}
_DOWN = {'y', 'y0', 'y1', 'y2', 'top', 'bottom', 'miny', 'maxy', 'ytl', 'ybr', 'cy', 'yc'}
_DOWN |= {'ycenter', 'centery', 'ycentre', 'centrey', 'ymin', 'ymax'}
_WIDE, _HIGH = {'w', 'width'}, {'h', 'height'}  # of a box or of the picture
_WHOLE = {'box', 'boxes', 'bbox', 'bboxes', 'bndbox', 'boundingbox', 'boundingboxes'}


@dataclasses.dataclass(frozen=True)
class Labelled:
  """A list of labelled pictures, each once, in the order of the list.

  Attributes:
    files: paths.
    names: class name of each, a number as its digits.
    boxes: of each; empty where the list has none.
    numbered: whether all labels are numbers.
  """

  files: list[str]
  names: list[str]
  boxes: list[Boxes]
  numbered: bool


def find_lists(folder: str) -> list[str]:
  """Paths of the CSVs with labels in a folder, sorted."""
  names = [n for n in sorted(os.listdir(folder)) if n.lower().endswith('.csv') and n[0] != '.']
  return [path for name in names if _has_columns(path := os.path.join(folder, name))]


def find_annotations(folder: str) -> str | None:
  """Path of a `..._annotations.txt` as Tiny-ImageNet's val/ has it, None where there is none."""
  names = [name for name in sorted(os.listdir(folder)) if name.endswith('_annotations.txt')]
  return os.path.join(folder, names[0]) if names else None


def read_list(path: str) -> Labelled:
  """Reads a CSV with labels.

  Args:
    path: of the CSV.

  Returns:
    Its pictures.

  Raises:
    UserError: it cannot be read, lacks a column or a label, names a picture that is not there, or
      has a box that is none, under a pixel or under other names; with the line.
  """
  rows = list(_rows(path))
  if not rows:
    raise UserError(f'{path} has no rows: a row is a picture with its label')
  finder = _Finder(os.path.dirname(path) or '.')
  found = _collected(path, [(at, finder.path(path, at, row['file']), row) for at, row in rows])
  edges = [edge for boxes in found.boxes for box in boxes.edges for edge in box]
  if edges and min(edges) >= 0 and max(edges) <= 1:
    raise fractions_error(f'{path}: all edges are within 0 and 1')
  return found


def read_annotations(path: str) -> Labelled:
  """Reads Tiny-ImageNet's annotations: file, class and box (x, y, x, y) with tabs between.

  The edges there are a box's first and last pixels, from 0: a whole picture is 0, 0, 63, 63, and
  some boxes are a single row.

  Args:
    path: of the file, beside the folder `images`.

  Returns:
    Its pictures.

  Raises:
    UserError: a line that is none, or a picture that is not there.
  """
  finder, found = _Finder(os.path.dirname(path) or '.'), []
  with open(path, encoding='utf-8-sig', errors='surrogateescape') as lines:
    for line, text in enumerate(lines, 1):
      parts = text.rstrip('\n').split('\t')
      if parts == ['']:
        continue
      if len(parts) not in (2, 6):
        raise UserError(f'{path}, line {line}: a line has a file, a class and four edges of a box')
      row = dict(zip(('label', *EDGES), parts[1:], strict=False))
      found.append((line, finder.path(path, line, parts[0]), row))
  return _collected(path, found, last=1)


def _collected(
  path: str, rows: Sequence[tuple[int, str, dict[str, str]]], last: int = 0
) -> Labelled:
  """Puts the rows of each picture together; `last` is what a box's far edges lack."""
  names: dict[str, str] = {}
  boxes: dict[str, tuple[Box, ...]] = {}
  one_file = _OneFile()
  for line, file, row in rows:
    file = one_file(file)
    label = (row.get('label') or '').strip()
    if not label:
      raise UserError(f'{path}, line {line}: {row.get("file") or file} has no label')
    if names.setdefault(file, label) != label:
      raise UserError(f'{path}, line {line}: {file} is {label} here and {names[file]} above')
    boxes[file] = boxes.get(file, ()) + _box(path, line, row, last)
  numbered = all(label.isascii() and label.isdigit() for label in names.values())
  labels = [str(int(label)) if numbered else label for label in names.values()]
  drawn = [Boxes(edges, path=f'{path}, {file}') for file, edges in boxes.items()]
  drawn = drawn if any(boxes.values()) else []
  return Labelled(list(names), labels, drawn, numbered)


def _has_columns(path: str) -> bool:
  try:
    with _opened(path) as file:
      return {'file', 'label'} <= set(_header(file))
  except (OSError, csv.Error, StopIteration):
    return False


def _opened(path: str) -> Any:
  # File names may be of bytes that are no UTF-8; a spreadsheet may have put a mark in front.
  return open(path, encoding='utf-8-sig', errors='surrogateescape', newline='')


def _header(file: Any) -> list[str]:
  csv.field_size_limit(_LIMIT)
  return [name.strip().lower() for name in next(csv.reader(file))]


def _rows(path: str) -> Iterator[tuple[int, dict[str, str]]]:
  try:
    with _opened(path) as file:
      header = _header(file)
      missing = [name for name in ('file', 'label') if name not in header]
      if missing:
        raise UserError(
          f'{path} has no column {" and no ".join(missing)}: it takes a header with file and label'
        )
      header = _with_edges(path, header)
      reader = csv.reader(file)
      for values in reader:
        if values:
          row = dict(zip(header, (value.strip() for value in values), strict=False))
          yield reader.line_num + 1, {'file': '', **row}
  except StopIteration:
    raise UserError(f'{path} is empty: it takes a header with file and label') from None
  except (OSError, csv.Error) as error:
    raise UserError(f'cannot read {path}: {getattr(error, "strerror", None) or error}') from error


def _with_edges(path: str, header: Sequence[str]) -> list[str]:
  """The header with the edges of a box under their own names.

  Raises:
    UserError: it has a box under names that leave open what they mean.
  """
  bare = [re.sub('[^a-z0-9]', '', name) for name in header]
  bare = [re.sub('^(bbox|bndbox|box)(?=[a-z])', '', name) for name in bare]
  if set(EDGES) <= set(header):
    return list(header)
  if all(bare.count(edge) == 1 for edge in EDGES):
    return [edge if edge in EDGES else name for name, edge in zip(header, bare, strict=True)]
  across, down, sides = _ACROSS & {*bare}, _DOWN & {*bare}, (_WIDE | _HIGH) & {*bare}
  corners = len(across) + bool(_WIDE & sides) > 1 and len(down) + bool(_HIGH & sides) > 1
  parts = (across | down | sides) if across and down and corners else {*EDGES} & {*bare}
  parts |= _WHOLE & {*bare, *header}
  named = [name for name, part in zip(header, bare, strict=True) if {name, part} & parts]
  if named:
    raise UserError(
      f'{path} has a box in {legible(", ".join(named))}, and boxes are read from the four columns '
      f'{", ".join(EDGES)}, edges in pixels: rename or compute them, or remove what is no box'
    )
  return list(header)


def _box(path: str, line: int, row: dict[str, str], last: int) -> tuple[Box, ...]:
  texts = [(row.get(edge) or '').strip() for edge in EDGES]
  if not any(texts):
    return ()
  if (box := box_of(texts, last=last)) is None:
    raise UserError(
      f'{path}, line {line}: {", ".join(texts)} is no box; it is xmin, ymin, xmax, ymax in pixels'
    )
  if box[2] - box[0] < 1 or box[3] - box[1] < 1:
    raise fractions_error(f'{path}, line {line}: {", ".join(texts)} is under a pixel')
  return (box,)


class _OneFile:
  """The first path of each picture, which a list may write in several ways: a.png and ./a.png."""

  def __init__(self):
    self._folders: dict[str, str] = {}
    self._first: dict[tuple[str, str], str] = {}

  def __call__(self, path: str) -> str:
    # Folders are resolved, once each, and files are not: a store may keep two pictures as one.
    folder, name = os.path.split(path)
    if folder not in self._folders:
      self._folders[folder] = os.path.realpath(folder)
    return self._first.setdefault((self._folders[folder], name), path)


class _Finder:
  """Finds the pictures that a list names."""

  def __init__(self, folder: str):
    self._folder = folder
    self._by_name: dict[str, str] | None = None

  def path(self, where: str, line: int, name: str) -> str:
    """The picture's path.

    Raises:
      UserError: there is none, or two of the name.
    """
    if not name:
      raise UserError(f'{where}, line {line}: no file')
    for folder in (self._folder, os.path.join(self._folder, 'images')):
      if os.path.isfile(path := os.path.join(folder, name)):
        return path
    found = None if os.path.dirname(name) else self._everywhere().get(name)
    if found is None:
      raise UserError(f'{where}, line {line}: there is no {name} in {self._folder}')
    if not found:
      raise UserError(f'{where}, line {line}: {self._folder} has several {name}: give its path')
    return found

  def _everywhere(self) -> dict[str, str]:
    if self._by_name is None:
      self._by_name = {}
      for path in picture_files.find(self._folder).files:
        name = os.path.basename(path)
        self._by_name[name] = '' if name in self._by_name else path
    return self._by_name
