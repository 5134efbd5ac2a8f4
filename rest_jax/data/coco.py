"""COCO's instances JSON: boxes, polygons, run lengths, crowds.

Lin et al., "Microsoft COCO", ECCV 2014, arXiv 1405.0312; the format is that of cocodataset.org.
Category ids have gaps (80 classes, ids up to 90): labels here are contiguous, in the order of the
ids. Annotations are of the upright picture, its EXIF orientation applied, as Detectron2 takes them.
Everything is checked when the file is read, but for the pixels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rest_jax.data import rle
from rest_jax.data.box_files import fractions_error
from rest_jax.data.images import check_size, read_image
from rest_jax.data.objects import check_box, check_names, learnt
from rest_jax.errors import UserError, did_you_mean

_IMAGE_PARTS = ('id', 'file_name', 'height', 'width')
_MOST = 2.0**53  # no number of a file is as large


@dataclasses.dataclass(frozen=True)
class CocoObject:
  """One annotation.

  Attributes:
    id: its number in the file.
    label: contiguous.
    box: (4,) float64 corners in pixels, as they were drawn.
    area: of the mask, as the file says; None where it does not.
    crowd: whether it stands for many objects.
    segmentation: outlines or run lengths, None without.
  """

  id: int
  label: int
  box: np.ndarray
  area: float | None
  crowd: bool
  segmentation: Any


@dataclasses.dataclass(frozen=True)
class CocoSource:
  """Pictures of a COCO file; see `rest_jax.data.objects` for what an example holds.

  Attributes:
    file: the annotations.
    folder: of the pictures.
    images: (id, file name, height, width) of each picture.
    objects: annotations of each picture.
    class_names: the name of each label.
    category_ids: the file's number of each label.
    masks: whether examples have masks.
    specks: annotations that are judged and not learnt, as a side is 1 px or less.
  """

  file: Path
  folder: Path
  images: tuple[tuple[int, str, int, int], ...]
  objects: tuple[tuple[CocoObject, ...], ...]
  class_names: tuple[str, ...]
  category_ids: tuple[int, ...]
  masks: bool = True
  specks: int = 0

  def __len__(self) -> int:
    return len(self.images)

  def __getitem__(self, index: int) -> dict[str, Any]:
    image_id, name, height, width = self.images[index]
    image = read_image(self.folder / name)
    what = f'{self.file}: image {image_id} is'
    check_size(image.shape[:2], (height, width), what, self.folder / name)
    found = self.objects[index]
    example = {
      'image': image,
      'boxes': np.array([o.box for o in found], np.float64).reshape(-1, 4),
      'labels': np.array([o.label for o in found], np.int32),
      'ignore': np.array([o.crowd for o in found], bool),
      'image_id': image_id,
    }
    sizes = np.prod(example['boxes'][:, 2:] - example['boxes'][:, :2], axis=1)
    if self.masks:
      shapes = [self._mask(o, (height, width)) for o in found]
      example['masks'] = np.array(shapes, bool).reshape(-1, height, width)
      sizes = example['masks'].sum((1, 2))
    stated = [size if o.area is None else o.area for o, size in zip(found, sizes, strict=True)]
    return example | {'areas': np.array(stated, np.float64)}

  def _mask(self, found: CocoObject, size: tuple[int, int]) -> np.ndarray:
    """The pixels of an object."""
    code = found.segmentation
    with _naming(_where(self.file, found.id)):
      return (
        rle.decode(code, size) if isinstance(code, Mapping) else rle.polygons_to_mask(code, size)
      )


def load_coco(
  file: str | os.PathLike,
  folder: str | os.PathLike | Sequence[str | os.PathLike],
  *,
  masks: bool = True,
) -> CocoSource:
  """Reads a COCO instances file.

  Args:
    file: the JSON.
    folder: of the pictures that it names; of several, the first that has the first picture.
    masks: whether examples have masks; False passes their outlines over, unread.

  Returns:
    The source. Crowds are marked `ignore`; annotations with a side of 1 px or less are counted.
    Where the file gives no area, it is that of the mask, or of the box without masks.

  Raises:
    UserError: the file cannot be read or is no such JSON; boxes in shares of a side instead of
      pixels; a box outside of its image or of negative size, an unknown class or image, two of one
      id or name, an empty outline, an area or a mark of crowds that is none, a missing picture. The
      message names the file and the id.
  """
  file = Path(file)
  content = _read(file)
  folders = [folder] if isinstance(folder, str | os.PathLike) else folder
  folder = _folder_of(content['images'], [Path(f) for f in folders])
  category_ids, class_names = _categories(file, content['categories'])
  images = _images(file, folder, content['images'])
  places = {image[0]: place for place, image in enumerate(images)}
  objects: list[list[CocoObject]] = [[] for _ in images]
  seen: set[Any] = set()
  for annotation in content['annotations']:
    where = _where(file, annotation.get('id') if isinstance(annotation, dict) else annotation)
    _check_annotation(annotation, where, seen, places, category_ids)
    place = places[annotation['image_id']]
    objects[place].append(_object(annotation, where, images[place][2:], category_ids, masks))
  _check_pixels(file, objects)
  return CocoSource(
    file,
    folder,
    images,
    tuple(map(tuple, objects)),
    class_names,
    category_ids,
    masks,
    _count_specks(images, objects),
  )


def _check_pixels(file: Path, objects: list[list[CocoObject]]) -> None:
  """Refuses a file whose boxes all end at the first pixels, as those in shares of a side do."""
  ends = [edge for found in objects for one in found for edge in one.box]
  if ends and max(ends) < 2:  # a tool may leave the picture by a rounding
    raise fractions_error(f'{file}: no edge is beyond the second pixel')


def _count_specks(images, objects: list[list[CocoObject]]) -> int:
  """How many objects are too small to be learnt."""
  judged = ([o.box for o in found if not o.crowd] for found in objects)
  boxes = (np.array(own, np.float64).reshape(-1, 4) for own in judged)
  return sum(int(np.sum(~learnt(own, image[2:]))) for image, own in zip(images, boxes, strict=True))


def _where(file: Path, number: Any) -> str:
  """How an annotation is called in messages."""
  return f'{file}: annotation {number}'


@contextlib.contextmanager
def _naming(where: str) -> Iterator[None]:
  """Says which annotation an error is about."""
  try:
    yield
  except UserError as error:
    raise UserError(f'{where}: {error}; mend or remove it') from error


def _read(file: Path) -> dict[str, Any]:
  """The JSON, with its three lists."""
  try:
    content = json.loads(file.read_text(encoding='utf-8-sig'))
  except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
    reason = getattr(error, 'strerror', None) or error
    raise UserError(f'cannot read the annotations {file}: {reason}') from error
  for part in ('images', 'annotations', 'categories'):
    if not isinstance(content, dict) or not isinstance(content.get(part), list):
      raise UserError(f'{file} is no COCO instances file: it has no list of {part}')
  return content


def _folder_of(images: list, folders: Sequence[Path]) -> Path:
  """The folder that has the first picture; the first one where none has, which is said later."""
  first = images[0] if images else None
  name = first.get('file_name') if isinstance(first, dict) else None
  there = (f for f in folders if isinstance(name, str) and (f / name).is_file())
  return next(there, folders[0])


def _categories(file: Path, categories: list) -> tuple[tuple[int, ...], tuple[str, ...]]:
  """Ids in rising order, and their names."""
  pairs = []
  for category in categories:
    parts: Any = category if isinstance(category, dict) else {}
    number, name = parts.get('id'), parts.get('name')
    if not _is_whole(number) or not isinstance(name, str):
      raise UserError(
        f'{file}: category {number!r} has no id or no name, a whole number and a text; mend it'
      )
    pairs.append((int(number), name))
  pairs.sort()
  ids = tuple(number for number, _ in pairs)
  twice = [number for number in ids if ids.count(number) > 1]
  if twice:
    raise UserError(f'{file}: two categories have one id, {twice[0]}; mend them')
  names = tuple(name for _, name in pairs)
  check_names(names, str(file))
  return ids, names


def _images(file: Path, folder: Path, images: list) -> tuple[tuple[int, str, int, int], ...]:
  """Id, name, height and width of each picture; all must be there."""
  found: dict[int, tuple[int, str, int, int]] = {}
  for image in images:
    parts: Any = image if isinstance(image, dict) else {}
    number, name, height, width = (parts.get(part) for part in _IMAGE_PARTS)
    if (
      not _is_id(number)
      or not isinstance(name, str)
      or not (_is_whole(height) and _is_whole(width))
    ):
      raise UserError(f'{file}: image {number} has no id, file_name, height or width; mend it')
    if number in found or min(height, width) < 1:
      raise UserError(f'{file}: image {number} is there twice or has no size; mend it')
    if not (folder / name).is_file():
      raise UserError(
        f'{file}: the picture of image {number} is missing: {folder / name}; '
        'give the right folder or remove the entry'
      )
    found[number] = (number, name, int(height), int(width))
  return tuple(found.values())


def _check_annotation(annotation, where: str, seen: set, places, category_ids) -> None:
  """Refuses an annotation that lacks something or points nowhere."""
  if not isinstance(annotation, dict):
    raise UserError(f'{where} is no object; mend or remove it')
  lacking = [p for p in ('id', 'image_id', 'category_id', 'bbox') if p not in annotation]
  if lacking:
    raise UserError(f'{where} has no {", ".join(lacking)}; mend or remove it')
  ids = [annotation[part] for part in ('id', 'image_id', 'category_id')]
  if not all(map(_is_id, ids)):
    raise UserError(f'{where} has an id that is no number or text among {ids}; mend or remove it')
  if annotation['id'] in seen:
    raise UserError(f'{where} is there twice; remove one')
  seen.add(annotation['id'])
  if annotation['image_id'] not in places:
    raise UserError(f'{where}: there is no image {annotation["image_id"]!r}; mend or remove it')
  category = annotation['category_id']
  if category not in category_ids:
    near = did_you_mean(category, map(str, category_ids), 'the file lists its categories')
    raise UserError(f'{where}: unknown class {category!r}; {near}')


def _object(annotation, where: str, size, category_ids, masks: bool) -> CocoObject:
  """One annotation, checked."""
  box = annotation['bbox']
  if not isinstance(box, list) or len(box) != 4 or not all(_is_number(v) for v in box):
    raise UserError(f'{where}: the box {box} is not four numbers; mend or remove it')
  x, y, width, height = box
  corners = check_box((x, y, x + width, y + height), size, where)
  code = annotation.get('segmentation') if masks else None
  if isinstance(code, Mapping):
    with _naming(where):
      rle.check_head(code, size)
  elif masks:
    _check_polygons(code, where)
  area, crowd = annotation.get('area'), annotation.get('iscrowd')
  if area is not None and (not _is_number(area) or area < 0):
    raise UserError(f'{where}: the area {area!r} is no number of 0 or more; mend or remove it')
  if crowd not in (None, 0, 1):
    raise UserError(f'{where}: iscrowd is 0 or 1, not {crowd!r}; mend it')
  label = category_ids.index(annotation['category_id'])
  stated = None if area is None else float(area)
  return CocoObject(annotation['id'], label, corners, stated, bool(crowd), code)


def _check_polygons(code: Any, where: str) -> None:
  """Refuses what is no list of outlines of three corners or more."""
  if (
    not isinstance(code, list)
    or not code
    or any(
      not isinstance(p, list) or len(p) < 6 or len(p) % 2 or not all(_is_number(v) for v in p)
      for p in code
    )
  ):
    raise UserError(
      f'{where}: the outline is empty or has fewer than three corners; mend or remove it, or read '
      'without masks'
    )


def _is_id(value: Any) -> bool:
  """Whether JSON gave what can stand for a thing."""
  return isinstance(value, str) or _is_whole(value)


def _is_whole(value: Any) -> bool:
  """Whether JSON gave a whole number, perhaps with a point."""
  return _is_number(value) and value == int(value)


def _is_number(value: Any) -> bool:
  """Whether JSON gave a finite number."""
  return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MOST
