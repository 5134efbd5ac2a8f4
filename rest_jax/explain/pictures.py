"""Pictures beside their maps: where a model looked, the map laid over them.

Maps are float arrays (h, w) in [0, 1]; pictures Pillow images in mode RGB.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

_STRIP = 256  # rows at a time, so that a picture of 100 megapixels needs no array of its size
_KEPT_COLOUR = 0.25
COLOURS = 'inferno'  # perceptually uniform, and readable in grey and with colour blindness


class Placement(NamedTuple):
  """The rectangle of a picture that a model saw, in pixels, edges not centres; may be fractional.

  A picture of W x H pixels spans (0, 0, W, H).
  """

  left: float
  top: float
  right: float
  bottom: float


def placement(
  size: tuple[int, int], *, input_size: int, resize: str, crop_pct: float = 0.875
) -> Placement:
  """Where in a picture the model's input lies: the inverse of `models.predictions.preprocess`.

  Args:
    size: (width, height) of the picture.
    input_size: pixels a side of the model's input.
    resize: 'squash' or 'resize_crop'.
    crop_pct: as the classifier's.

  Returns:
    The rectangle; the whole picture for 'squash'.
  """
  width, height = size
  if resize == 'squash':
    return Placement(0.0, 0.0, float(width), float(height))
  shorter, least = int(input_size / crop_pct), min(width, height)
  scaled = int(shorter * width / least), int(shorter * height / least)
  left, top = (round((side - input_size) / 2) for side in scaled)
  across, down = width / scaled[0], height / scaled[1]
  return Placement(
    left * across, top * down, (left + input_size) * across, (top + input_size) * down
  )


# ---- Overlays -----------------------------------------------------------------------------------


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


def overlay(
  picture: Image.Image,
  saliency: np.ndarray,
  place: tuple[float, float, float, float] | None = None,
  *,
  colours: str = COLOURS,
  strength: float = 0.75,
) -> Image.Image:
  """Lays a map over a picture: the more salient, the more of the colour.

  Args:
    picture: mode RGB.
    saliency: (h, w) floats in [0, 1].
    place: the rectangle of the picture that the map covers, all of it by default; the rest stays
      as it is.
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
    below = _faded(np.asarray(picture.crop(box), np.float32))
    share = _opacity(values, strength)[..., None]
    mixed = below + share * (colourize(values, colours).astype(np.float32) - below)
    marked.paste(Image.fromarray(np.rint(mixed).astype(np.uint8)), box[:2])
  return marked


def _faded(pixels: np.ndarray) -> np.ndarray:
  """Takes most of the colour out: what is coloured then is the map."""
  grey = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
  return grey[..., None] + np.float32(_KEPT_COLOUR) * (pixels - grey[..., None])


def _opacity(values: np.ndarray, strength: float) -> np.ndarray:
  return np.float32(strength) * np.sqrt(values)
