"""Pictures of several sizes as one batch of fixed shapes: padded canvases, padded objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rest_jax.data.geometry import Example
from rest_jax.data.semantic_folder import IGNORE
from rest_jax.errors import UserError

PADDING, REGION = -1, -2  # labels of objects that are not there, and of regions to ignore


def smallest_canvas(size: tuple[int, int], canvases: Sequence[tuple[int, int]]) -> tuple[int, int]:
  """The canvas of the least area that a picture fits on.

  Args:
    size: (H, W) of the picture.
    canvases: (H, W) each.

  Raises:
    UserError: none is large enough.
  """
  fitting = [c for c in canvases if c[0] >= size[0] and c[1] >= size[1]]
  if not fitting:
    raise UserError(
      f'a picture of {size[0]}x{size[1]} px fits on none of the canvases {list(canvases)}; add a '
      'larger one or resize the picture'
    )
  return min(fitting, key=lambda c: c[0] * c[1])


def collate(
  examples: Sequence[Example],
  canvas: tuple[int, int],
  *,
  max_objects: int = 100,
  mask_size: int = 112,
) -> dict[str, Any]:
  """One batch.

  Args:
    examples: with boxes, with masks too, or with classes of pixels; all alike.
    canvas: (H, W) in pixels.
    max_objects: G; objects of a picture.
    mask_size: m; side of a mask in the frame of its box.

  Returns:
    images (B, H, W, 3) uint8, zeros for padding, which `models.dense.normalise` makes the mean;
    sizes (B, 2) int32 height and width; image_ids, a list; and as the examples have them:
    boxes (B, G, 4) float32, labels (B, G) int32 (-1 padding, -2 to be ignored), masks
    (B, G, m, m) uint8 of 0 and 1; segmentation (B, H, W) uint8, 255 for padding.

  Raises:
    UserError: no examples, a picture larger than the canvas, more objects than there is room for.
  """
  if not examples:
    raise UserError('a batch needs an example')
  batch: dict[str, Any] = {
    'images': np.stack([_pad(e, 'image', canvas, 0) for e in examples]),
    'sizes': np.array([e['image'].shape[:2] for e in examples], np.int32),
    'image_ids': [e.get('image_id') for e in examples],
  }
  if 'segmentation' in examples[0]:
    batch['segmentation'] = np.stack([_pad(e, 'segmentation', canvas, IGNORE) for e in examples])
  if 'boxes' in examples[0]:
    padded = [_objects(e, max_objects, mask_size) for e in examples]
    batch |= {name: np.stack([p[name] for p in padded]) for name in padded[0]}
  return batch


def _pad(example: Example, name: str, canvas: tuple[int, int], value: int) -> np.ndarray:
  """One array of an example on the canvas."""
  array = example[name]
  below, right = (room - side for room, side in zip(canvas, array.shape, strict=False))
  if below < 0 or right < 0:
    raise UserError(
      f'the picture {example.get("image_id")} of {array.shape[0]}x{array.shape[1]} px does not fit '
      f'on a canvas of {canvas[0]}x{canvas[1]}; take a larger canvas'
    )
  return np.pad(array, [(0, below), (0, right), (0, 0)][: array.ndim], constant_values=value)


def _objects(example: Example, room: int, mask_size: int) -> dict[str, np.ndarray]:
  """Objects of one picture, padded."""
  count = len(example['labels'])
  if count > room:
    raise UserError(
      f'the picture {example.get("image_id")} has {count} objects, room is for {room}; raise '
      'max_objects (dense.max_objects of a config)'
    )
  boxes = np.zeros((room, 4), np.float32)
  labels = np.full(room, PADDING, np.int32)
  boxes[:count] = example['boxes']
  labels[:count] = np.where(example['ignore'], REGION, example['labels'])
  if 'masks' not in example:
    return {'boxes': boxes, 'labels': labels}
  masks = np.zeros((room, mask_size, mask_size), np.uint8)
  for i in range(count):
    masks[i] = frame_mask(example['masks'][i], example['boxes'][i], mask_size) >= 0.5
  return {'boxes': boxes, 'labels': labels, 'masks': masks}


def frame_mask(mask: np.ndarray, box: np.ndarray, size: int) -> np.ndarray:
  """A mask in the frame of a box: the share of each of size x size cells that it covers.

  Args:
    mask: (H, W) bool.
    box: (4,) corners in pixels.
    size: cells a side.

  Returns:
    (size, size) float64 in [0, 1]; 0 outside of the image.
  """
  # Only pixels that the box touches have a share, and a box is a small part of a picture.
  spans = [
    (max(int(np.floor(box[i])), 0), min(int(np.ceil(box[i + 2])), mask.shape[1 - i]))
    for i in (1, 0)
  ]
  if any(end <= start for start, end in spans):
    return np.zeros((size, size))
  (top, bottom), (left, right) = spans
  rows = _shares(box[1] - top, box[3] - top, size, bottom - top)
  columns = _shares(box[0] - left, box[2] - left, size, right - left)
  return rows @ mask[top:bottom, left:right].astype(np.float64) @ columns.T


def _shares(start: float, end: float, size: int, pixels: int) -> np.ndarray:
  """(size, pixels): the part of each cell between start and end that lies in each pixel."""
  edges = np.linspace(float(start), float(end), size + 1)
  low = np.maximum(edges[:-1, None], np.arange(pixels)[None])
  high = np.minimum(edges[1:, None], np.arange(1, pixels + 1)[None])
  return np.maximum(high - low, 0) / max((float(end) - float(start)) / size, 1e-9)
