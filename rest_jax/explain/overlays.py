"""Maps laid over pictures: colours, the way back to the picture's pixels, what was not seen.

Maps are float arrays (h, w) in [0, 1]; pictures Pillow images in mode RGB.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

_STRIP = 256  # rows at a time, so that a picture of 100 megapixels needs no array of its size
_STRENGTH = 0.65
_UNSEEN, _HATCH = 0.4, 36  # brightness that is left to what was not seen; of its lines, added
_LINES = 40  # of the hatching, along the shorter side
_STRETCHED = 99  # percentile of a map of single pixels that counts as the most salient
COLOURS = 'inferno'  # perceptually uniform, and readable in grey and with colour blindness


class Region(NamedTuple):
  """Whole pixels of a picture, ends excluded."""

  left: int
  top: int
  right: int
  bottom: int


def colourize(values: np.ndarray, colours: str = COLOURS) -> np.ndarray:
  """Colours of values in [0, 1].

  Args:
    values: floats of any shape; what lies outside [0, 1] is clipped.
    colours: a colour map of Matplotlib.

  Returns:
    uint8 RGB, one axis more than `values`.
  """
  index = np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)
  return _table(colours)[index]


@functools.lru_cache(maxsize=8)
def _table(colours: str) -> np.ndarray:
  import matplotlib

  return np.rint(matplotlib.colormaps[colours](np.arange(256))[:, :3] * 255).astype(np.uint8)


def region(place: tuple[float, float, float, float], size: tuple[int, int]) -> Region:
  """The pixels of a picture whose centres lie inside a rectangle.

  Args:
    place: (left, top, right, bottom) in pixels, may be fractional.
    size: (width, height) of the picture.

  Returns:
    The region, cut to the picture.
  """
  left, top, right, bottom = (int(np.ceil(edge - 0.5)) for edge in place)
  return Region(max(left, 0), max(top, 0), min(right, size[0]), min(bottom, size[1]))


def lay_back(
  saliency: np.ndarray, place: tuple[float, float, float, float], size: tuple[int, int]
) -> Iterator[tuple[int, np.ndarray]]:
  """Resamples a map to the pixels of the picture, strip after strip.

  Bilinear with half-pixel centres (PyTorch's align_corners=False); smaller pictures are averaged.

  Args:
    saliency: (h, w) floats in [0, 1].
    place: the rectangle of the picture that the map covers.
    size: (width, height) of the picture.

  Returns:
    An iterator over (first row, (rows, columns) float32 in [0, 1]) that covers `region`.
  """
  inside = region(place, size)
  height, width = saliency.shape
  rows = _weights(inside.top, inside.bottom, place[1], place[3], height)
  columns = _weights(inside.left, inside.right, place[0], place[2], width)
  across = np.asarray(saliency, np.float32) @ columns.T
  for start in range(0, len(rows), _STRIP):
    yield inside.top + start, (rows[start : start + _STRIP] @ across).clip(0, 1)


def _weights(first: int, end: int, low: float, high: float, cells: int) -> np.ndarray:
  """What each of `cells` cells between two edges gives to the pixels from `first` on.

  Pillow's resize has boxes too, but none that reaches beyond the map by a part of a cell.
  """
  scale = cells / (high - low)
  centres = (np.arange(first, end) + 0.5 - low) * scale - 0.5
  distances = np.abs(centres[:, None] - np.arange(cells))
  weights = np.maximum(0, 1 - distances / max(1.0, scale))
  return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def stretch(saliency: np.ndarray) -> np.ndarray:
  """A map of single pixels for the eye: the 99th percentile and what is above count as 1.

  A few pixels have most of a gradient; of all others nothing would be seen.

  Args:
    saliency: (h, w) floats in [0, 1].
  """
  high = np.percentile(saliency, _STRETCHED)
  return np.clip(saliency / high, 0, 1) if high > 0 else saliency


def overlay(
  picture: Image.Image,
  saliency: np.ndarray,
  place: tuple[float, float, float, float] | None = None,
  *,
  colours: str = COLOURS,
  strength: float = _STRENGTH,
) -> Image.Image:
  """Lays a map over a picture: opaque as it is salient, so that all else keeps its colours.

  Args:
    picture: mode RGB.
    saliency: (h, w) floats in [0, 1].
    place: the rectangle of the picture that the map covers, all of it by default; the rest, which
      the model did not see, is drawn dark, grey and hatched.
    colours: a colour map of Matplotlib.
    strength: opacity of the most salient pixel, in [0, 1].

  Returns:
    A picture of the same size, mode RGB.
  """
  place = place or (0.0, 0.0, float(picture.width), float(picture.height))
  inside = region(place, picture.size)
  marked = picture.copy()
  marked.info = {}  # a profile or a transparent colour was of the file that this came from
  for top, values in lay_back(saliency, place, picture.size):
    box = (inside.left, top, inside.right, top + values.shape[0])
    below = np.asarray(picture.crop(box), np.float32)
    share = np.float32(strength) * values[..., None]
    _paste(marked, below + share * (colourize(values, colours).astype(np.float32) - below), box)
  for box in _around(inside, picture.size):
    _paste(marked, _unseen(np.asarray(picture.crop(box), np.float32), box, min(picture.size)), box)
  return marked


def _paste(onto: Image.Image, pixels: np.ndarray, box: tuple[int, int, int, int]) -> None:
  onto.paste(Image.fromarray(np.rint(pixels).clip(0, 255).astype(np.uint8)), box[:2])


def _around(inside: Region, size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
  """The pixels outside a region, in boxes of few rows."""
  width, height = size
  for top in range(0, height, _STRIP):
    bottom = min(top + _STRIP, height)
    first, last = (min(max(row, top), bottom) for row in (inside.top, inside.bottom))
    boxes = [(0, top, width, first), (0, first, inside.left, last)]
    boxes += [(inside.right, first, width, last), (0, last, width, bottom)]
    yield from (box for box in boxes if box[0] < box[2] and box[1] < box[3])


def _unseen(pixels: np.ndarray, box: tuple[int, int, int, int], shorter: int) -> np.ndarray:
  """Dark, without colours, and with slanting lines, which a dark picture shows too."""
  grey = _UNSEEN * (pixels @ np.array([0.299, 0.587, 0.114], np.float32))
  across, down = np.arange(box[0], box[2]), np.arange(box[1], box[3])
  period = max(4, shorter // _LINES)
  is_line = (across + down[:, None]) % period < max(1, period // 6)
  return np.repeat((grey + _HATCH * is_line)[..., None], 3, axis=2)
