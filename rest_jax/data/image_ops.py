"""The operations of RandAugment on Pillow images, 8 bits a channel, RGB in and RGB out.

Each is within one grey level of timm's (Pillow's) for every argument; `tests/golden/
rand_augment_timm.npz` holds the reference values. Shears and translations are one-dimensional
interpolations, so they are computed line by line in NumPy, several times faster than by Pillow's
general affine transform.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageOps

Colour = tuple[int, ...]  # three levels from 0 to 255
_TRANSPOSE = Image.Transpose.TRANSPOSE
_BLOCK = 64  # rows at a time, which stay in the processor's cache


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
  return _shift_rows(picture, shift, fill, resample)


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
  return _shift_rows(picture, np.full(1, share * picture.size[0]), fill, resample)


def translate_y(
  picture: Image.Image, share: float, fill: Colour, resample: Image.Resampling
) -> Image.Image:
  """Takes pixel (x, y) from (x, y + share * height)."""
  turned = picture.transpose(_TRANSPOSE)
  return translate_x(turned, share, fill, resample).transpose(_TRANSPOSE)


def _shift_rows(
  picture: Image.Image, shift: np.ndarray, fill: Colour, resample: Image.Resampling
) -> Image.Image:
  """Takes pixel (x, y) from (x + shift[y], y); one shift may stand for all rows.

  Pillow's rules: a place outside the image shows `fill`, neighbours beyond the border are those
  at the border, and the interpolated value is cut to [0, 255] and rounded down.
  """
  pixels = np.asarray(picture)
  height, width, _ = pixels.shape
  whole = np.floor(shift)
  taps = _gather(pixels, whole.astype(int))
  rest = np.broadcast_to((shift - whole).astype(np.float32)[:, None], (height, 1))
  lines = np.empty((height, 3 * width), np.uint8)
  for start in range(0, height, _BLOCK):
    rows = slice(start, start + _BLOCK)
    value = _between(taps[rows], rest[rows], resample)
    np.maximum(value, 0, out=value)
    np.minimum(value, 255, out=value)
    lines[rows] = value.astype(np.uint8)
  _fill_outside(lines, shift, fill)
  return Image.fromarray(lines.reshape(height, width, 3))


def _fill_outside(lines: np.ndarray, shift: np.ndarray, fill: Colour) -> None:
  """Colours, in place, the pixels x of each row for which x + 0.5 + shift is not in [0, width)."""
  width = lines.shape[1] // 3
  colours = np.tile(np.array(fill, np.uint8), width)
  first = np.clip(np.ceil(-0.5 - shift), 0, width).astype(int).tolist()
  last = np.clip(np.ceil(width - 0.5 - shift), 0, width).astype(int).tolist()
  rows = [lines] if len(shift) == 1 else lines
  for row, start, stop in zip(rows, first, last, strict=True):
    if start:
      row[..., : 3 * start] = colours[: 3 * start]
    if stop < width:
      row[..., 3 * stop :] = colours[3 * stop :]


def _between(taps: np.ndarray, rest: np.ndarray, resample: Image.Resampling) -> np.ndarray:
  """Interpolates `rest` of a pixel behind the second of four neighbours.

  Args:
    taps: (h, 3 (w + 3)) uint8, the lines from one pixel before the second neighbours on.
    rest: (h, 1) float32 in [0, 1).
    resample: bicubic (convolution with a = -1) or bilinear.

  Returns:
    (h, 3 w) float32.
  """
  taps, count = taps.astype(np.int16), taps.shape[1] - 9
  v1, v2, v3, v4 = (taps[:, 3 * k : 3 * k + count] for k in range(4))
  # Differences are exact in 16 bits, so that even areas stay exactly what they are. In place,
  # because new arrays of this size cost more than the arithmetic.
  if resample == Image.Resampling.BILINEAR:
    value = (v3 - v2) * rest
    value += v2
    return value
  down, rise = v1 - v2, v3 - v4
  value = (-down - rise) * rest
  down += down
  down += rise
  value += down
  value *= rest
  value += v3 - v1
  value *= rest
  value += v2
  return value


def _gather(pixels: np.ndarray, whole: np.ndarray) -> np.ndarray:
  """Each row from its place `whole - 1` on, three pixels longer than the image."""
  height, width, _ = pixels.shape
  left, right = max(0, 1 - int(whole.min())), max(0, int(whole.max()) + 2)
  first, last = pixels[:, :1], pixels[:, -1:]
  wide = np.concatenate([first.repeat(left, 1), pixels, last.repeat(right, 1)], axis=1)
  lines, starts = wide.reshape(height, -1), 3 * (whole + left - 1)
  length = 3 * (width + 3)
  if len(starts) == 1:
    return lines[:, starts[0] : starts[0] + length]
  taken = np.empty((height, length), np.uint8)
  for row, start in enumerate(starts.tolist()):
    taken[row] = lines[row, start : start + length]
  return taken
