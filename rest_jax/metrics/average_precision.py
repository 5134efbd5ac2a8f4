"""Average precision of boxes and masks, by pycocotools.

COCO's figures: the mean over classes and over IoU thresholds of .50 to .95 of the area under the
curve of precision over recall, with at most 100 results a picture.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rest_jax.data import rle
from rest_jax.errors import UserError
from rest_jax.text import distinct

NAMES = ('AP', 'AP50', 'AP75', 'AP_small', 'AP_medium', 'AP_large')


class AveragePrecision:
  """Collects what is true and what was found, a picture at a time."""

  def __init__(self, class_names: Sequence[str], masks: bool = False):
    """Starts at nothing.

    Args:
      class_names: the name of each label; one that stands twice gets the number of its label.
      masks: whether masks are judged beside the boxes.
    """
    self.class_names, self.masks = tuple(distinct(class_names)), masks
    self._images: dict[Any, dict[str, int]] = {}
    self._truth: list[dict[str, Any]] = []
    self._found: list[dict[str, Any]] = []

  def add(self, example: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Adds a picture.

    Args:
      example: its truth, see `rest_jax.data.objects`: image (for its size), image_id, boxes,
        labels, ignore, areas, and masks where they are judged. What is to be ignored is judged like
        COCO's crowds: results that lie in it count neither for nor against.
      found: boxes (D, 4) in pixels of that picture, scores (D,), labels (D,), and masks (D, H, W)
        bool where they are judged. Only what is there: no padding.

    Raises:
      UserError: a picture that was added before, arrays that do not fit, or numbers that are none;
        nothing of the picture is kept then.
    """
    key, size = example['image_id'], tuple(example['image'].shape[:2])
    if key in self._images:
      raise UserError(f'the picture {key} was judged already; its image_id occurs twice')
    for part, what in ((example, 'the truth of'), (found, 'what was found in')):
      self._check(part, size, f'{what} picture {key}')
      _check_values(part, f'{what} picture {key}', self.masks)
    self._images[key] = {'height': size[0], 'width': size[1]}
    for i in range(len(example['labels'])):
      entry = self._entry(example, i, key)
      entry |= {'id': len(self._truth) + 1, 'area': float(example['areas'][i])}
      self._truth.append(entry | {'iscrowd': int(example['ignore'][i])})
    for i in range(len(found['labels'])):
      self._found.append(self._entry(found, i, key) | {'score': float(found['scores'][i])})

  def _check(self, part: Mapping[str, Any], size: tuple[int, ...], what: str) -> None:
    """Refuses arrays that do not fit each other or the classes."""
    labels, count = np.asarray(part['labels']), len(part['labels'])
    if tuple(np.shape(part['boxes'])) != (count, 4):
      raise UserError(f'{what}: boxes are {np.shape(part["boxes"])} for {count} labels')
    if count and not 0 <= labels.min() <= labels.max() < len(self.class_names):
      raise UserError(
        f'{what}: labels reach from {labels.min()} to {labels.max()}, there are '
        f'{len(self.class_names)} classes'
      )
    for name in ('scores', 'ignore', 'areas'):
      if name in part and len(part[name]) != count:
        raise UserError(f'{what}: {len(part[name])} {name} for {count} labels')
    masks = part.get('masks') if self.masks else ()
    if self.masks and (masks is None or tuple(np.shape(masks)) != (count, *size)):
      got = None if masks is None else np.shape(masks)
      raise UserError(f'{what}: masks are {got}, not {(count, *size)}')

  def _entry(self, part: Mapping[str, Any], i: int, key: Any) -> dict[str, Any]:
    """One object in COCO's form; of a picture by its key."""
    left, top, right, bottom = (float(edge) for edge in part['boxes'][i])
    entry: dict[str, Any] = {
      'image_id': key,
      'category_id': int(part['labels'][i]) + 1,
      'bbox': [left, top, right - left, bottom - top],
    }
    if self.masks:
      entry['segmentation'] = rle.encode(part['masks'][i])
    return entry

  def figures(self) -> dict[str, dict[str, Any]]:
    """Judges all pictures.

    Returns:
      {'box': {...}, 'mask': {...}}, the second where masks are judged; in each the shares AP,
      AP50, AP75, AP_small, AP_medium and AP_large (NaN where no object has that size) and
      'classes', the AP of each class by its name.

    Raises:
      UserError: no picture was added.
    """
    if not self._images:
      raise UserError('there is no picture to judge')
    kinds = {'box': 'bbox'} | ({'mask': 'segm'} if self.masks else {})
    with contextlib.redirect_stdout(io.StringIO()):  # it talks
      return {name: self._judge(kind) for name, kind in kinds.items()}

  def _judge(self, kind: str) -> dict[str, Any]:
    """Figures of 'bbox' or 'segm'."""
    coco: Any = importlib.import_module('pycocotools.coco')
    evaluation: Any = importlib.import_module('pycocotools.cocoeval')
    truth, found = coco.COCO(), coco.COCO()
    numbers = self._numbers()
    common = {
      'info': {},
      'images': [{'id': numbers[key], **size} for key, size in self._images.items()],
      'categories': [{'id': i + 1, 'name': n} for i, n in enumerate(self.class_names)],
    }
    truth.dataset = common | {'annotations': _numbered(self._truth, numbers)}
    found.dataset = common | {'annotations': []}
    truth.createIndex()
    found.createIndex()
    if self._found:
      # The one not judged goes: its size would stand for that of the other.
      other = 'segmentation' if kind == 'bbox' else 'bbox'
      entries = _numbered(self._found, numbers)
      found = truth.loadRes([{k: v for k, v in e.items() if k != other} for e in entries])
    judge = evaluation.COCOeval(truth, found, kind)
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    values = [float(v) if v >= 0 else float('nan') for v in judge.stats[:6]]
    return dict(zip(NAMES, values, strict=True)) | {'classes': self._classes(judge)}

  def _numbers(self) -> dict[Any, int]:
    """Pictures by their ids, which decides between equal scores, whatever order they came in."""
    order = sorted(self._images, key=lambda key: (isinstance(key, str), key))
    return {key: number for number, key in enumerate(order, 1)}

  def _classes(self, judge: Any) -> dict[str, float]:
    """AP of each class: over thresholds and recalls, all sizes, 100 results."""
    precision = judge.eval['precision'][:, :, :, 0, -1]
    own = (precision[:, :, i] for i in range(len(self.class_names)))
    values = (float(np.mean(p[p > -1])) if (p > -1).any() else float('nan') for p in own)
    return dict(zip(self.class_names, values, strict=True))


def _check_values(part: Mapping[str, Any], what: str, with_masks: bool) -> None:
  """Refuses values that pycocotools takes: to it what is no number overlaps everything."""
  for name in ('boxes', 'scores', 'areas', 'labels'):
    values = np.asarray(part.get(name, ()), np.float64)
    if not np.isfinite(values).all():
      raise UserError(f'{what}: {name} are not finite numbers')
    if name == 'labels' and (values % 1).any():
      raise UserError(f'{what}: labels are not whole numbers')
  masks = np.asarray(part['masks'] if with_masks else ())
  if masks.dtype.kind == 'f' and ((masks != 0) & (masks != 1)).any():
    raise UserError(f'{what}: masks are bool, not shares of a pixel; give masks >= 0.5')
  corners = np.asarray(part['boxes'])
  if (corners[:, 2:] < corners[:, :2]).any():
    raise UserError(f'{what}: a box ends before it begins; boxes are corners (x1, y1, x2, y2)')


def _numbered(entries: list[dict[str, Any]], numbers: dict[Any, int]) -> list[dict[str, Any]]:
  """Copies of entries, with the numbers of their pictures."""
  return [entry | {'image_id': numbers[entry['image_id']]} for entry in entries]
