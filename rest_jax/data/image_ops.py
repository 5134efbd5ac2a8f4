"""The operations of RandAugment on Pillow images, 8 bits a channel, RGB in and RGB out.

Each is within one grey level of timm's (Pillow's) for every argument; `tests/golden/
rand_augment_timm.npz` holds the reference values. Shears and translations are one-dimensional
interpolations, so they are computed line by line in NumPy, several times faster than by Pillow's
general affine transform.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageOps

Colour = tuple[int, ...]  # three levels from 0 to 255
_TRANSPOSE = Image.Transpose.TRANSPOSE
_BLOCK = 32  # rows at a time, which stay in the cache and below what malloc maps anew each time


def brightness(picture: Image.Image, factor: float) -> Image.Image:
  """Blends with black: 0 is black, 1 the picture, above 1 brighter."""
  return Image.blend(Image.new('RGB', picture.size), picture, factor)


def contrast(picture: Image.Image, factor: float) -> Image.Image:
  """Blends with the mean grey of the picture, rounded to a whole level; 1 is the picture."""
  histogram = picture.convert('L').histogram()
  total = int(np.dot(histogram, np.arange(256)))
  mean = int(total / (picture.size[0] * picture.size[1]) + 0.5)
  return Image.blend(Image.new('RGB', picture.size, (mean, mean, mean)), picture, factor)


def color(picture: Image.Image, factor: float) -> Image.Image:
  """Blends with the grey version of the picture: 0 is grey, 1 the picture."""
  return Image.blend(picture.convert('L').convert('RGB'), picture, factor)


def sharpness(picture: Image.Image, factor: float) -> Image.Image:
  """Blends with a smoothed version (3x3, weights 1 and 5 in the middle): 1 is the picture."""
  return Image.blend(_smooth(picture), picture, factor)


def _smooth(picture: Image.Image) -> Image.Image:
  """Pillow's SMOOTH, which leaves the border as it is: (3x3 sum + 4 middle) / 13, rounded."""
  if min(picture.size) < 3:
    return picture
  pixels = np.asarray(picture)
  result = pixels.copy()
  for start in range(1, len(pixels) - 1, _BLOCK):
    rows = pixels[start - 1 : start + _BLOCK + 1].astype(np.uint16)
    total = rows[:-2] + rows[1:-1]
    total += rows[2:]
    total = total[:, :-2] + total[:, 1:-1] + total[:, 2:]
    total += rows[1:-1, 1:-1] << 2
    total += 6  # no half can occur, as 13 is odd
    total //= 13
    result[start : start + len(total), 1:-1] = total
  return Image.fromarray(result)


def auto_contrast(picture: Image.Image) -> Image.Image:
  """Stretches each channel to the whole range [0, 255]; a constant channel stays."""
  table = []
  extrema: Any = picture.getextrema()  # one pair a channel
  for low, high in extrema:
    scale = 255.0 / (high - low) if high > low else 1.0
    offset = -low * scale if high > low else 0.0
    table += (np.arange(256) * scale + offset).clip(0, 255).astype(int).tolist()
  return picture.point(table)


def equalize(picture: Image.Image) -> Image.Image:
  """Makes the histogram of each channel as even as a table of levels can."""
  return ImageOps.equalize(picture)


def invert(picture: Image.Image) -> Image.Image:
  """Turns level v into 255 - v."""
  return _by_table(picture, 255 - np.arange(256))


def posterize(picture: Image.Image, bits: int) -> Image.Image:
  """Keeps the highest bits of each level: 8 is the picture, 0 black."""
  return picture if bits >= 8 else _by_table(picture, np.arange(256) & ~(0xFF >> bits))


def solarize(picture: Image.Image, threshold: int) -> Image.Image:
  """Inverts the levels from `threshold` on."""
  levels = np.arange(256)
  return _by_table(picture, np.where(levels < threshold, levels, 255 - levels))


def solarize_add(picture: Image.Image, add: int) -> Image.Image:
  """Adds `add` to the levels below 128, up to 255."""
  levels = np.arange(256)
  return _by_table(picture, np.where(levels < 128, np.minimum(levels + add, 255), levels))


def _by_table(picture: Image.Image, table: np.ndarray) -> Image.Image:
  return picture.point(table.tolist() * 3)


def rotate(
  picture: Image.Image, degrees: float, fill: Colour, resample: Image.Resampling
) -> Image.Image:
  """Turns about the centre, counter-clockwise; the corners show `fill`."""
  return picture.rotate(degrees, resample=resample, fillcolor=fill)


def shear_x(
  picture: Image.Image, factor: float, fill: Colour, resample: Image.Resampling
) -> Image.Image:
  """Takes pixel (x, y) from (x + factor y, y), measured from the corner of the image."""
  shift = factor * (np.arange(picture.size[1]) + 0.5)
  return _shear_rows(picture, shift, fill, resample)


def shear_y(
  picture: Image.Image, factor: float, fill: Colour, resample: Image.Resampling
) -> Image.Image:
  """Takes pixel (x, y) from (x, y + factor x), measured from the corner of the image."""
  turned = picture.transpose(_TRANSPOSE)
  return shear_x(turned, factor, fill, resample).transpose(_TRANSPOSE)


def translate_x(
  picture: Image.Image, share: float, fill: Colour, resample: Image.Resampling
) -> Image.Image:
  """Takes pixel (x, y) from (x + share * width, y)."""
  return _translate(picture, share * picture.size[0], 1, fill, resample)


def translate_y(
  picture: Image.Image, share: float, fill: Colour, resample: Image.Resampling
) -> Image.Image:
  """Takes pixel (x, y) from (x, y + share * height)."""
  return _translate(picture, share * picture.size[1], 0, fill, resample)


# Pillow's rules for what moves: a place outside the image shows `fill`, neighbours beyond the
# border are those at the border, the interpolated value is cut to [0, 255] and rounded down.


def _translate(
  picture: Image.Image, shift: float, axis: int, fill: Colour, resample: Image.Resampling
) -> Image.Image:
  """Takes what stands at t of an axis (0 is down, 1 across) from t + shift."""
  width, height = picture.size
  lines = np.asarray(picture).reshape(height, -1)
  start, stop = (int(edge[0]) for edge in _inside(np.array([shift]), (height, width)[axis]))
  result = np.empty_like(lines)
  result[:] = np.tile(np.array(fill, np.uint8), width)
  if start < stop:
    whole = math.floor(shift)
    # From one pixel before the first second neighbour to two behind the last.
    begin, end, rest = start + whole - 1, stop + whole + 2, np.float32(shift - whole)
    if axis:
      taps = _widen(lines, begin, end)
      result[:, 3 * start : 3 * stop] = _interpolate(taps, 3, rest, resample)[:, :-9]
    else:
      taps = lines[np.arange(begin, end).clip(0, height - 1)]
      result[start:stop] = _interpolate(taps, taps.shape[1], rest, resample)[:-3]
  return Image.fromarray(result.reshape(height, width, 3))


def _shear_rows(
  picture: Image.Image, shift: np.ndarray, fill: Colour, resample: Image.Resampling
) -> Image.Image:
  """Takes pixel (x, y) from (x + shift[y], y)."""
  width, height = picture.size
  whole = np.floor(shift)
  rest = (shift - whole).astype(np.float32)
  whole = whole.astype(int)
  begin = min(0, int(whole.min()) - 1)
  lines = np.asarray(picture).reshape(height, -1)
  lines = _widen(lines, begin, max(0, int(whole.max()) + 2) + width)
  # Each row from its place `whole - 1` on, three pixels longer than the image.
  starts = np.arange(height) * lines.shape[1] + 3 * (whole - 1 - begin)
  taps = sliding_window_view(lines.reshape(-1), 3 * (width + 3))[starts]
  result = _interpolate(taps, 3, rest, resample)[:, :-9]
  _fill_outside(result, shift, fill)
  return Image.fromarray(result.reshape(height, width, 3))


def _widen(lines: np.ndarray, begin: int, end: int) -> np.ndarray:
  """Pixels from `begin` to `end` of each row; beyond the border they are those at the border."""
  width = lines.shape[1] // 3
  parts = [lines[:, 3 * max(begin, 0) : 3 * min(end, width)]]
  if begin < 0:
    parts.insert(0, np.tile(lines[:, :3], (1, -begin)))
  if end > width:
    parts.append(np.tile(lines[:, -3:], (1, end - width)))
  return np.concatenate(parts, axis=1)


def _inside(shift: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
  """The first t for which t + 0.5 + shift is in [0, length), and the one after the last."""
  first, last = np.ceil(-0.5 - shift), np.ceil(length - 0.5 - shift)
  return first.clip(0, length).astype(int), last.clip(0, length).astype(int)


def _fill_outside(lines: np.ndarray, shift: np.ndarray, fill: Colour) -> None:
  """Colours, in place, the pixels of each row that come from outside."""
  width = lines.shape[1] // 3
  colours = np.tile(np.array(fill, np.uint8), width)
  first, last = _inside(shift, width)
  for row, start, stop in zip(lines, first.tolist(), last.tolist(), strict=True):
    if start:
      row[: 3 * start] = colours[: 3 * start]
    if stop < width:
      row[3 * stop :] = colours[3 * stop :]


def _interpolate(taps: np.ndarray, step: int, rest: Any, resample: Image.Resampling) -> np.ndarray:
  """What lies `rest` of a pixel behind the second of four neighbours.

  Args:
    taps: (h, w) uint8, from one pixel before the second neighbours on.
    step: from one neighbour to the next in `taps.reshape(-1)`.
    rest: float32 in [0, 1), a scalar or (h,).
    resample: bicubic (convolution with a = -1) or bilinear.

  Returns:
    (h, w) uint8; the last 3 steps mean nothing.
  """
  # As one long line: rows would each cost a loop, and what is computed over their ends is little.
  height, width = taps.shape
  flat, result = taps.reshape(-1), np.empty(height * width, np.uint8)
  size = _BLOCK * width
  for first in range(0, flat.size - 3 * step, size):
    last = min(first + size, flat.size - 3 * step)
    near = flat[first : last + 3 * step].astype(np.int16)
    rows = rest
    if np.ndim(rest):
      rows = np.repeat(rest[first // width : -(-last // width)], width)[: last - first]
    v1, v2, v3, v4 = (near[k * step :][: last - first] for k in range(4))
    value = _between(v1, v2, v3, v4, rows, resample)
    result[first:last] = np.clip(value, 0, 255, out=value)
  return result.reshape(height, width)


def _between(
  v1: np.ndarray, v2: np.ndarray, v3: np.ndarray, v4: np.ndarray, rest: Any, resample: int
) -> np.ndarray:
  """Interpolates between the int16 neighbours v2 and v3; float32."""
  # Differences are exact in 16 bits, so that even areas stay exactly what they are. In place,
  # because new arrays of this size cost more than the arithmetic.
  if resample == Image.Resampling.BILINEAR:
    value = (v3 - v2) * rest
    value += v2
    return value
  square, cube = v1 - v2, v4 - v3
  cube -= square
  square -= cube
  value = cube * rest
  value += square
  value *= rest
  value += v3 - v1
  value *= rest
  value += v2
  return value
