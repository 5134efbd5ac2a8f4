"""COCO's instances JSON: boxes, polygons, run lengths, crowds.

Lin et al., "Microsoft COCO", ECCV 2014, arXiv 1405.0312; the format is that of cocodataset.org.
Category ids have gaps (80 classes, ids up to 90): labels here are contiguous, in the order of the
ids. Everything is checked when the file is read, but for the pixels.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rest_jax.data import rle
from rest_jax.data.images import read_image
from rest_jax.data.objects import LEAST_SIDE, check_box
from rest_jax.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True)
class CocoObject:
  """One annotation.

  Attributes:
    id: its number in the file.
    label: contiguous.
    box: (4,) float64 corners in pixels.
    area: of the mask, as the file says.
    crowd: whether it stands for many objects.
    segmentation: outlines or run lengths, None without.
  """

  id: int
  label: int
  box: np.ndarray
  area: float
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
    dropped: annotations that were left out because a side is 1 px or less.
  """

  file: Path
  folder: Path
  images: tuple[tuple[int, str, int, int], ...]
  objects: tuple[tuple[CocoObject, ...], ...]
  class_names: tuple[str, ...]
  category_ids: tuple[int, ...]
  masks: bool = True
  dropped: int = 0

  def __len__(self) -> int:
    return len(self.images)

  def __getitem__(self, index: int) -> dict[str, Any]:
    image_id, name, height, width = self.images[index]
    image = read_image(self.folder / name)
    if image.shape[:2] != (height, width):
      raise UserError(
        f'{self.file}: image {image_id} is {width}x{height} px, the picture {self.folder / name} '
        f'{image.shape[1]}x{image.shape[0]}; mend either'
      )
    found = self.objects[index]
    example = {
      'image': image,
      'boxes': np.array([o.box for o in found], np.float32).reshape(-1, 4),
      'labels': np.array([o.label for o in found], np.int32),
      'ignore': np.array([o.crowd for o in found], bool),
      'areas': np.array([o.area for o in found], np.float64),
      'image_id': image_id,
    }
    if self.masks:
      shapes = [self._mask(o, (height, width)) for o in found]
      example['masks'] = np.array(shapes, bool).reshape(-1, height, width)
    return example

  def _mask(self, found: CocoObject, size: tuple[int, int]) -> np.ndarray:
    """The pixels of an object."""
    code = found.segmentation
    try:
      if isinstance(code, Mapping):
        return rle.decode(code, size)
      return rle.polygons_to_mask(code, size)
    except UserError as error:
      raise UserError(f'{_where(self.file, found.id)}: {error}; mend or remove it') from error


def load_coco(
  file: str | os.PathLike, folder: str | os.PathLike, *, masks: bool = True
) -> CocoSource:
  """Reads a COCO instances file.

  Args:
    file: the JSON.
    folder: of the pictures that it names.
    masks: whether examples have masks; False passes their outlines over, unread.

  Returns:
    The source. Crowds are marked `ignore`; annotations with a side of 1 px or less are left out and
    counted.

  Raises:
    UserError: the file cannot be read or is no such JSON; a box outside of its image or of negative
      size, an unknown class or image, an empty outline, a missing picture. The message names the
      file and the id.
  """
  file, folder = Path(file), Path(folder)
  content = _read(file)
  category_ids, class_names = _categories(file, content['categories'])
  images = _images(file, folder, content['images'])
  places = {image[0]: place for place, image in enumerate(images)}
  objects: list[list[CocoObject]] = [[] for _ in images]
  dropped = 0
  seen: set[Any] = set()
  for annotation in content['annotations']:
    where = _where(file, annotation.get('id') if isinstance(annotation, dict) else annotation)
    _check_annotation(annotation, where, seen, places, category_ids)
    place = places[annotation['image_id']]
    found = _object(annotation, where, images[place][2:], category_ids, masks)
    if (found.box[2:] - found.box[:2] <= LEAST_SIDE).any():
      dropped += 1
    else:
      objects[place].append(found)
  return CocoSource(
    file, folder, images, tuple(map(tuple, objects)), class_names, category_ids, masks, dropped
  )


def _where(file: Path, number: Any) -> str:
  """How an annotation is called in messages."""
  return f'{file}: annotation {number}'


def _read(file: Path) -> dict[str, Any]:
  """The JSON, with its three lists."""
  try:
    content = json.loads(file.read_text(encoding='utf-8'))
  except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
    reason = getattr(error, 'strerror', None) or error
    raise UserError(f'cannot read the annotations {file}: {reason}') from error
  for part in ('images', 'annotations', 'categories'):
    if not isinstance(content, dict) or not isinstance(content.get(part), list):
      raise UserError(f'{file} is no COCO instances file: it has no list of {part}')
  return content


def _categories(file: Path, categories: list) -> tuple[tuple[int, ...], tuple[str, ...]]:
  """Ids in rising order, and their names."""
  try:
    pairs = sorted((int(c['id']), str(c['name'])) for c in categories)
  except (TypeError, KeyError, ValueError) as error:
    raise UserError(f'{file}: a category has no id or no name; mend it') from error
  ids = tuple(number for number, _ in pairs)
  if not ids or len(set(ids)) != len(ids):
    raise UserError(f'{file}: categories are missing, or two have one id; mend them')
  return ids, tuple(name for _, name in pairs)


def _images(file: Path, folder: Path, images: list) -> tuple[tuple[int, str, int, int], ...]:
  """Id, name, height and width of each picture; all must be there."""
  found: dict[int, tuple[int, str, int, int]] = {}
  for image in images:
    number = image.get('id') if isinstance(image, dict) else None
    try:
      entry = (image['id'], str(image['file_name']), int(image['height']), int(image['width']))
    except (TypeError, KeyError, ValueError) as error:
      raise UserError(
        f'{file}: image {number} has no id, file_name, height or width; mend it'
      ) from error
    if number in found or min(entry[2:]) < 1:
      raise UserError(f'{file}: image {number} is there twice or has no size; mend it')
    if not (folder / entry[1]).is_file():
      raise UserError(
        f'{file}: the picture of image {number} is missing: {folder / entry[1]}; '
        'give the right folder or remove the entry'
      )
    found[entry[0]] = entry
  return tuple(found.values())


def _check_annotation(annotation, where: str, seen: set, places, category_ids) -> None:
  """Refuses an annotation that lacks something or points nowhere."""
  if not isinstance(annotation, dict):
    raise UserError(f'{where} is no object; mend or remove it')
  lacking = [p for p in ('id', 'image_id', 'category_id', 'bbox') if p not in annotation]
  if lacking:
    raise UserError(f'{where} has no {", ".join(lacking)}; mend or remove it')
  if annotation['id'] in seen:
    raise UserError(f'{where} is there twice; remove one')
  seen.add(annotation['id'])
  if annotation['image_id'] not in places:
    raise UserError(f'{where}: there is no image {annotation["image_id"]}; mend or remove it')
  category = annotation['category_id']
  if category not in category_ids:
    near = did_you_mean(category, map(str, category_ids), 'the file lists its categories')
    raise UserError(f'{where}: unknown class {category}; {near}')


def _object(annotation, where: str, size, category_ids, masks: bool) -> CocoObject:
  """One annotation, checked."""
  box = annotation['bbox']
  if not isinstance(box, list) or len(box) != 4 or not all(_is_number(v) for v in box):
    raise UserError(f'{where}: the box {box} is not four numbers; mend or remove it')
  x, y, width, height = box
  corners = check_box((x, y, x + width, y + height), size, where)
  code = annotation.get('segmentation') if masks else None
  if masks and not isinstance(code, Mapping):
    _check_polygons(code, where)
  area = annotation.get('area')
  area = float(area) if _is_number(area) else float(np.prod(corners[2:] - corners[:2]))
  label = category_ids.index(annotation['category_id'])
  crowd = bool(annotation.get('iscrowd', 0))
  return CocoObject(annotation['id'], label, corners, area, crowd, code)


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


def _is_number(value: Any) -> bool:
  """Whether JSON gave a finite number."""
  return isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)
