"""COCO's run lengths: masks as the lengths of their runs of 0 and 1, down the columns.

A mask is stored as `{'size': [H, W], 'counts': ...}`, with the counts as a list of numbers
(uncompressed) or as a string: each count as the difference from the one two before it (from the
third on), in groups of five bits, low ones first, as the characters from 48 on.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from rest_jax.errors import UserError


def decode(rle: Any, size: tuple[int, int] | None = None) -> np.ndarray:
  """The mask of run lengths.

  Args:
    rle: {'size': [H, W], 'counts': list, str or bytes}.
    size: (H, W) that it must have; any by default.

  Returns:
    (H, W) bool.

  Raises:
    UserError: it is no such thing, or its runs do not fill the mask.
  """
  height, width = check_head(rle, size)
  counts = rle['counts']
  runs = _unpack(counts) if isinstance(counts, str | bytes) else counts
  if not all(_is_whole(run) and run >= 0 for run in runs):
    raise UserError('the run lengths of the mask are not whole numbers of 0 or more')
  if sum(runs) != height * width:
    raise UserError(f'the runs of the mask fill {sum(runs)} of its {height * width} pixels')
  values = np.arange(len(runs)) % 2 == 1
  return np.repeat(values, np.asarray(runs, np.int64)).reshape(width, height).T


def check_head(rle: Any, size: tuple[int, ...] | None = None) -> tuple[int, int]:
  """What is known of a code without its runs.

  Args:
    rle: as `decode` takes it.
    size: (H, W) that it must have; any by default.

  Returns:
    (H, W).

  Raises:
    UserError: it is no such thing, or of another size.
  """
  code: Any = rle if isinstance(rle, dict) else {}
  sides, counts = code.get('size'), code.get('counts')
  stated = isinstance(sides, Sequence) and len(sides) == 2 and all(map(_is_whole, sides))
  if not stated or not isinstance(counts, list | tuple | str | bytes | np.ndarray):
    raise UserError('the mask is no run-length code with size and counts')
  height, width = (int(side) for side in sides)
  if size is not None and (height, width) != tuple(size):
    raise UserError(f'the mask is {height}x{width}, the image {size[0]}x{size[1]}')
  return height, width


def _is_whole(value: Any) -> bool:
  return isinstance(value, int | np.integer) and not isinstance(value, bool)


def encode(mask: np.ndarray) -> dict[str, Any]:
  """The compressed run lengths of a mask.

  Args:
    mask: (H, W) bool.

  Returns:
    {'size': [H, W], 'counts': str}.
  """
  flat = np.asarray(mask, bool).T.ravel()
  edges = np.flatnonzero(np.diff(flat)) + 1
  runs = np.diff(np.concatenate([[0], edges, [flat.size]]))
  if flat.size and flat[0]:  # the first run is of zeros
    runs = np.concatenate([[0], runs])
  return {'size': [int(side) for side in mask.shape], 'counts': _pack(runs.tolist())}


def _unpack(text: str | bytes) -> list[int]:
  """Counts of a string."""
  codes = [c - 48 for c in (text.encode('latin-1') if isinstance(text, str) else text)]
  if any(not 0 <= code < 64 for code in codes) or (codes and codes[-1] & 32):
    raise UserError('the run-length string of the mask is damaged')
  runs: list[int] = []
  value = shift = 0
  for code in codes:
    value |= (code & 31) << shift
    shift += 5
    if code & 32:  # more follows
      continue
    if code & 16:  # the sign
      value -= 1 << shift
    runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    value = shift = 0
  return runs


def _pack(runs: Sequence[int]) -> str:
  """String of counts."""
  characters = []
  for i, run in enumerate(runs):
    value, more = run - (runs[i - 2] if i > 2 else 0), True
    while more:
      bits = value & 31
      value >>= 5
      more = value != (-1 if bits & 16 else 0)
      characters.append(chr(bits + (32 if more else 0) + 48))
  return ''.join(characters)


def polygons_to_mask(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> np.ndarray:
  """The pixels of an object given by outlines, as pycocotools draws them.

  Args:
    polygons: one or several outlines [x1, y1, x2, y2, ...] in pixels.
    size: (H, W) of the image.

  Returns:
    (H, W) bool.

  Raises:
    UserError: no outline, or one of fewer than three corners.
  """
  coco_mask: Any = importlib.import_module('pycocotools.mask')
  if not polygons or any(len(p) < 6 or len(p) % 2 for p in polygons):
    raise UserError('the outline is empty or has fewer than three corners')
  if not all(np.isfinite(np.asarray(p, np.float64)).all() for p in polygons):
    raise UserError('the outline has corners that are no numbers')
  parts = coco_mask.frPyObjects([list(map(float, p)) for p in polygons], *size)
  return decode(coco_mask.merge(parts))
