"""Flips, scales and crops of a picture together with its boxes, masks and classes of pixels.

Functions of an example (`rest_jax.data.objects`, `rest_jax.data.semantic_folder`) that give a new
one; whatever of 'boxes', 'masks' and 'segmentation' it holds moves with the picture.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from rest_jax.errors import UserError

Example = dict[str, Any]


def flip(example: Example) -> Example:
  """The mirror image, left for right."""
  new = dict(example)
  for name in ('image', 'segmentation'):
    if name in example:
      new[name] = np.ascontiguousarray(example[name][:, ::-1])
  if 'masks' in example:
    new['masks'] = np.ascontiguousarray(example['masks'][:, :, ::-1])
  if 'boxes' in example:
    width = example['image'].shape[1]
    left, top, right, bottom = np.moveaxis(example['boxes'], -1, 0)
    new['boxes'] = np.stack([width - right, top, width - left, bottom], -1)
  return new


def resize(example: Example, size: tuple[int, int]) -> Example:
  """Another size: the picture bilinear with antialiasing, masks and classes by the nearest pixel.

  Args:
    example: any.
    size: (H, W) in pixels.

  Returns:
    The new example.

  Raises:
    UserError: a side under 1.
  """
  height, width = example['image'].shape[:2]
  if min(size) < 1:
    raise UserError(f'a picture is resized to 1 px or more a side, not {size[0]}x{size[1]}')
  new = dict(example)
  picture = Image.fromarray(example['image'])
  new['image'] = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))
  rows, columns = (_nearest(n, m) for n, m in ((height, size[0]), (width, size[1])))
  if 'segmentation' in example:
    new['segmentation'] = example['segmentation'][rows[:, None], columns[None]]
  if 'masks' in example:
    new['masks'] = example['masks'][:, rows[:, None], columns[None]]
  if 'boxes' in example:
    scale = np.array([size[1] / width, size[0] / height] * 2, np.float32)
    new['boxes'] = example['boxes'] * scale
    new['areas'] = example['areas'] * (size[0] * size[1] / (height * width))
  return new


def _nearest(n: int, m: int) -> np.ndarray:
  """For each of m pixels, the one of n that its centre falls into."""
  return np.minimum(((np.arange(m) + 0.5) * n / m).astype(int), n - 1)


def fit(size: tuple[int, int], short: float, long: float | None = None) -> tuple[int, int]:
  """The size at which the shorter side is `short`, or the longer one `long` where that is less.

  Args:
    size: (H, W) of a picture.
    short: of the shorter side, in pixels.
    long: most of the longer side; any by default.

  Returns:
    (H, W), rounded.
  """
  scale = short / min(size)
  if long is not None:
    scale = min(scale, long / max(size))
  return max(int(size[0] * scale + 0.5), 1), max(int(size[1] * scale + 0.5), 1)


def crop(
  example: Example, window: tuple[int, int, int, int], *, least_visible: float = 0.0
) -> Example:
  """A part of the picture; objects that nothing is left of go.

  Args:
    example: any.
    window: (top, left, height, width) in pixels, inside of the picture.
    least_visible: objects of which a smaller share of the pixels (of the box without masks) is left
      are marked `ignore`.

  Returns:
    The new example. With masks the boxes are drawn tight around what is left of them.

  Raises:
    UserError: a window that is not inside.
  """
  top, left, height, width = window
  full = example['image'].shape[:2]
  inside = 0 <= top <= full[0] - height and 0 <= left <= full[1] - width
  if min(height, width) < 1 or not inside:
    raise UserError(f'the window {window} is not inside of a picture of {full[0]}x{full[1]}')
  new, part = dict(example), np.s_[top : top + height, left : left + width]
  for name in ('image', 'segmentation'):
    if name in example:
      new[name] = example[name][part]
  if 'boxes' in example:
    new |= _crop_objects(example, window, least_visible)
  return new


def _crop_objects(example: Example, window, least_visible: float) -> Example:
  """Boxes, masks and all else that is one an object."""
  top, left, height, width = window
  before = example['boxes']
  offset, limit = (np.array(pair * 2, np.float32) for pair in ((left, top), (width, height)))
  boxes = np.clip(before - offset, 0, limit)
  there = (boxes[:, 2:] > boxes[:, :2]).all(1)
  visible = _areas(boxes) / np.maximum(_areas(before), 1e-9)
  moved: Example = {}
  if 'masks' in example:
    masks = example['masks'][:, top : top + height, left : left + width]
    whole, rest = (m.sum((1, 2), dtype=np.int64) for m in (example['masks'], masks))
    visible = rest / np.maximum(whole, 1)
    there &= rest > 0
    boxes = np.where(there[:, None], tight_boxes(masks), boxes)
    moved = {'masks': masks[there], 'areas': rest[there].astype(np.float64)}
  else:
    moved = {'areas': example['areas'][there] * visible[there]}
  ignore = example['ignore'] | (visible < least_visible)
  return moved | {
    'boxes': boxes[there].astype(np.float32),
    'labels': example['labels'][there],
    'ignore': ignore[there],
  }


def _areas(boxes: np.ndarray) -> np.ndarray:
  """Square pixels of boxes (N, 4)."""
  return np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)


def tight_boxes(masks: np.ndarray) -> np.ndarray:
  """The smallest boxes around masks (N, H, W): (N, 4) float32, zeros for an empty mask."""
  boxes = np.zeros((len(masks), 4), np.float32)
  for box, mask in zip(boxes, masks, strict=True):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if rows.size:
      box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
  return boxes
