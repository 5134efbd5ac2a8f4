"""Drawing with results that are the same on every machine: the brushes of `digit_scenes`.

Coordinates are (x, y) with pixel centres at whole numbers; images are (H, W) or (H, W, C).
Geometry is fixed-point integer arithmetic. Blending is float32 by single + - * / sqrt, which IEEE
754 rounds in one way only. Nothing here calls a C library's sin or exp, sums floats, or multiplies
matrices, because those differ between processors.
"""

from __future__ import annotations

import math

import numpy as np

_ONE = 1 << 16  # a source pixel in the fixed-point coordinates of `warp`


def warp(source: np.ndarray, inverse: tuple[float, ...], height: int, width: int) -> np.ndarray:
  """Samples an image under an affine map, bilinearly, in integers.

  Args:
    source: (H, W) or (H, W, C) uint8. Positions outside take the nearest border pixel, so an
      image that must end in nothing needs a border of zeros.
    inverse: (a, b, c, d, e, f): output pixel (x, y) shows the source at
      (a x + b y + c, d x + e y + f).
    height: rows of the result, in pixels.
    width: columns of the result, in pixels.

  Returns:
    (height, width) or (height, width, C) int32 in 0..255.
  """
  a, b, c, d, e, f = (round(value * _ONE) for value in inverse)
  x = np.arange(width, dtype=np.int64)[None, :]
  y = np.arange(height, dtype=np.int64)[:, None]
  rows, columns = source.shape[:2]
  u = np.clip(a * x + b * y + c, 0, (columns - 1) * _ONE - 1)
  v = np.clip(d * x + e * y + f, 0, (rows - 1) * _ONE - 1)
  corner = (v >> 16) * columns + (u >> 16)
  extra = (1,) * (source.ndim - 2)
  fu = ((u >> 8) & 255).astype(np.int32).reshape(height, width, *extra)
  fv = ((v >> 8) & 255).astype(np.int32).reshape(height, width, *extra)
  flat = source.reshape(rows * columns, *source.shape[2:])
  top_left, top_right, low_left, low_right = (
    np.take(flat, corner + step, axis=0).astype(np.int32) for step in (0, 1, columns, columns + 1)
  )
  top = top_left * 256 + (top_right - top_left) * fu
  low = low_left * 256 + (low_right - low_left) * fu
  return (top * 256 + (low - top) * fv + (1 << 15)) >> 16


def rotation(half_tangent: float) -> tuple[float, float]:
  """Cosine and sine of the angle 2 atan(t), without trigonometry.

  Args:
    half_tangent: t, the tangent of half the angle.

  Returns:
    (cos, sin), by the rational parameterisation of the circle.
  """
  square = half_tangent * half_tangent
  return (1 - square) / (1 + square), 2 * half_tangent / (1 + square)


def stroke(
  start: tuple[float, float],
  end: tuple[float, float],
  bend: float,
  thickness: float,
  height: int,
  width: int,
) -> np.ndarray:
  """Coverage of a thin, slightly bent stroke.

  Args:
    start: (x, y) of one end, in pixels.
    end: (x, y) of the other end.
    bend: how far the middle bulges to the side, in pixels.
    thickness: of the stroke, in pixels.
    height: rows of the result.
    width: columns of the result.

  Returns:
    (height, width) float32 in [0, 1], with an edge one pixel soft.
  """
  x = np.arange(width, dtype=np.float32)[None, :] - np.float32(start[0])
  y = np.arange(height, dtype=np.float32)[:, None] - np.float32(start[1])
  dx, dy = end[0] - start[0], end[1] - start[1]
  length = math.sqrt(dx * dx + dy * dy)
  dx, dy = dx / length, dy / length
  along = x * np.float32(dx) + y * np.float32(dy)
  across = y * np.float32(dx) - x * np.float32(dy)
  # The parabola through both ends whose middle lies `bend` to the side.
  t = along * np.float32(1 / length)
  across = across - np.float32(4 * bend) * t * (np.float32(1) - t)
  body = np.float32(thickness / 2 + 0.5) - np.abs(across)
  tip = np.minimum(along, np.float32(length) - along) + np.float32(0.5)
  return np.clip(np.minimum(body, tip), 0, 1)


def blend(canvas: np.ndarray, coverage: np.ndarray, colour: np.ndarray) -> None:
  """Paints a colour over a canvas in place.

  Args:
    canvas: (H, W, 3) float32, changed.
    coverage: (H, W) float32 in [0, 1]; 1 replaces the canvas.
    colour: (3,) in 0..255.
  """
  canvas += (colour.astype(np.float32) - canvas) * coverage[..., None]


def luma(colours: np.ndarray) -> np.ndarray:
  """Brightness as the eye weighs it (ITU-R BT.601, in integers).

  Args:
    colours: (..., 3) whole numbers in 0..255, red first.

  Returns:
    (...) int32 in 0..255.
  """
  values = colours.astype(np.int32)
  return (values[..., 0] * 77 + values[..., 1] * 150 + values[..., 2] * 29) >> 8


def enlarge(grids: np.ndarray, factor: int) -> np.ndarray:
  """Enlarges small grey images smoothly, by cubic convolution (Catmull-Rom) in integers.

  Args:
    grids: (N, H, W) integers in 0..16.
    factor: whole-number magnification, even, up to 16.

  Returns:
    (N, (H + 4) factor, (W + 4) factor) uint8 in 0..255, with a border of zeros.
  """
  padded = np.pad(grids.astype(np.int64), ((0, 0), (4, 4), (4, 4)))
  unit = 2 * factor  # positions are odd numbers of 1 / unit pixels
  rows = _enlarge_axis(padded, factor, unit)
  both = _enlarge_axis(rows.swapaxes(1, 2), factor, unit).swapaxes(1, 2)
  scale = (2 * unit**3) ** 2
  return np.clip((both * 255 + 8 * scale) // (16 * scale), 0, 255).astype(np.uint8)


def _enlarge_axis(values: np.ndarray, factor: int, unit: int) -> np.ndarray:
  """Cubic convolution along axis 1; the result is 2 unit^3 times too large, two pixels shorter."""
  count = values.shape[1] - 4
  phases = []
  for phase in range(factor):
    position = 2 * phase + 1 - factor + 2 * unit  # relative to the pixel centre, plus 2
    base, t = position // unit, position % unit
    weights = (
      -(t**3) + 2 * t**2 * unit - t * unit**2,
      3 * t**3 - 5 * t**2 * unit + 2 * unit**3,
      -3 * t**3 + 4 * t**2 * unit + t * unit**2,
      t**3 - t**2 * unit,
    )
    phases.append(
      sum(w * values[:, base - 1 + k : base - 1 + k + count] for k, w in enumerate(weights))
    )
  stacked = np.stack(phases, axis=2)
  return stacked.reshape(values.shape[0], count * factor, values.shape[2])
