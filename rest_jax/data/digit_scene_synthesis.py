"""Synthesis of the `digit_scenes`: one handwritten digit, lost in a piece of a photograph.

Coordinates are (x, y) in pixels with centres at whole numbers; colours are RGB in 0..255.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from rest_jax.data.digit_scene_drawing import blend, luma, rotation, stroke, warp
from rest_jax.data.digit_scene_material import CELL, CENTRE, Material

SIZE = 64  # pixels a side of a scene
_CONTRAST = 70  # of brightness, between a digit and nearly all of what surrounds it
_TEXTURE = 34.0  # largest standard deviation of the background's brightness


@dataclasses.dataclass(frozen=True)
class Scene:
  """One scene and where its parts come from.

  Attributes:
    image: (64, 64, 3) uint8 RGB.
    mask: (64, 64) bool, the digit's own pixels.
    label: 0..9.
    bbox: (ymin, xmin, ymax, xmax) in whole pixels, the ends exclusive; the mask's tight box.
    digit_id: row of the digit in scikit-learn's data set.
    fragment_ids: rows of the digits that the clutter is cut from.
    background: (photograph, left, top, side), the square it shows, in full-resolution pixels.
  """

  image: np.ndarray
  mask: np.ndarray
  label: int
  bbox: tuple[int, int, int, int]
  digit_id: int
  fragment_ids: tuple[int, ...]
  background: tuple[int, int, int, int]


def synthesize(material: Material, rng: np.random.Generator) -> Scene:
  """Makes one scene.

  Args:
    material: of the scene's split.
    rng: decides everything; the same state gives the same pixels.

  Returns:
    The scene.
  """
  canvas, background = _background(material, rng)
  fragment_ids = _add_clutter(canvas, material, rng)
  which = int(rng.integers(len(material.labels)))
  ink, scale = _place_digit(material, which, rng)
  # The slope grows with the size, so that every edge is about a pixel and a half soft.
  coverage = _harden(ink, float(rng.uniform(0.38, 0.52)), 1.0 * scale)
  near = (ink > 6) & (coverage < 0.5)
  blend(canvas, coverage, _contrasting_colour(canvas[near], rng))
  image = _expose(canvas, rng)
  mask = coverage > 0.5
  rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
  return Scene(
    image=image,
    mask=mask,
    label=int(material.labels[which]),
    bbox=(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1),
    digit_id=int(material.digit_ids[which]),
    fragment_ids=fragment_ids,
    background=background,
  )


def _background(material: Material, rng: np.random.Generator) -> tuple[np.ndarray, tuple]:
  """A square of a photograph at a random scale; (64, 64, 3) float32."""
  which = int(rng.integers(len(material.regions)))
  photograph, first, _ = material.regions[which]
  full, half = material.photographs[which]
  side = int(rng.integers(48, min(*full.shape[:2], 4 * SIZE) - 7))
  top = int(rng.integers(full.shape[0] - side + 1))
  left = int(rng.integers(full.shape[1] - side + 1))
  source, shrink = (full, 1) if side < 2 * SIZE else (half, 2)
  step = (side / shrink - 2) / (SIZE - 1)
  x0, y0 = left / shrink + 0.5, top / shrink + 0.5
  crop = warp(source, (step, 0, x0, 0, step, y0), SIZE, SIZE)
  if rng.integers(2):
    crop = crop[:, ::-1]
  if rng.integers(2):
    crop = crop[..., rng.permutation(3)]
  return _soften(crop), (photograph, first + left, top, side)


def _soften(crop: np.ndarray) -> np.ndarray:
  """Limits the contrast of a background, so that a colour can stand out from all of it."""
  brightness = luma(crop).astype(np.int64)
  count = brightness.size
  mean = int(brightness.sum()) / count
  variance = int((brightness * brightness).sum()) / count - mean * mean
  keep = min(1.0, _TEXTURE / float(np.sqrt(max(variance, 1.0))))
  return (crop.astype(np.float32) - np.float32(mean)) * np.float32(keep) + np.float32(mean)


def _add_clutter(
  canvas: np.ndarray, material: Material, rng: np.random.Generator
) -> tuple[int, ...]:
  """Paints fragments of other digits and thin strokes; returns the rows of those digits."""
  fragment_ids = []
  for _ in range(int(rng.integers(2, 5))):
    which = int(rng.integers(len(material.labels)))
    _add_fragment(canvas, material, which, rng)
    fragment_ids.append(int(material.digit_ids[which]))
  for _ in range(int(rng.integers(1, 4))):
    x, y = (float(v) for v in rng.uniform(0, SIZE, 2))
    dx, dy = (float(v) for v in rng.uniform(12, 44, 2) * rng.choice([-1, 1], 2))
    bend, thickness = float(rng.uniform(-8, 8)), float(rng.uniform(0.6, 1.6))
    line = stroke((x, y), (x + dx, y + dy), bend, thickness, SIZE, SIZE)
    blend(canvas, line * np.float32(rng.uniform(0.4, 0.9)), rng.integers(0, 256, 3))
  return tuple(fragment_ids)


def _add_fragment(
  canvas: np.ndarray, material: Material, which: int, rng: np.random.Generator
) -> None:
  """Paints a round piece of a digit, too small to be read, at a random place."""
  reach = 24  # pixels a side of the patch that is painted
  points = material.outlines[which]
  px, py = (float(v) for v in points[int(rng.integers(len(points)))])
  scale = float(rng.uniform(2.6, 4.6))  # scene pixels for a pixel of the 8x8 digit
  cos, sin = rotation(float(rng.uniform(-1, 1)))
  a, b = cos * CELL / scale, sin * CELL / scale
  middle = (reach - 1) / 2
  inverse = (
        a, -b, (px * CELL + CENTRE) - (a - b) * middle,
        b, a, (py * CELL + CENTRE) - (b + a) * middle,
    )  # fmt: skip
  ink = warp(material.tables[which], inverse, reach, reach)
  offset = np.arange(reach, dtype=np.float32) - np.float32(middle)
  distance = np.sqrt(offset[:, None] * offset[:, None] + offset[None] * offset[None])
  radius = min(float(rng.uniform(1.4, 2.3)) * scale, 8.0)
  piece = _harden(ink, 0.42, 1.0 * scale) * np.clip(np.float32(radius + 0.5) - distance, 0, 1)
  piece *= np.float32(rng.uniform(0.5, 1.0))
  x, y = (int(v) for v in rng.integers(-reach // 2, SIZE - reach // 2, 2))
  x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + reach, SIZE), min(y + reach, SIZE)
  blend(canvas[y0:y1, x0:x1], piece[y0 - y : y1 - y, x0 - x : x1 - x], rng.integers(0, 256, 3))


def _place_digit(
  material: Material, which: int, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
  """A digit rotated, sheared, 24-48 px on its longer side, and its scale; ink in 0..255."""
  cos, sin = rotation(float(rng.uniform(-0.14, 0.14)))  # within 16 degrees
  shear = float(rng.uniform(-0.2, 0.2))
  aspect = float(rng.uniform(0.85, 1.2))
  # rotation x (shear x stretch), from digit pixels to scene pixels
  a, b = cos * aspect, cos * shear - sin
  c, d = sin * aspect, sin * shear + cos
  points = material.outlines[which]
  x = points[:, 0] * a + points[:, 1] * b
  y = points[:, 0] * c + points[:, 1] * d
  longer = max(float(x.max() - x.min()), float(y.max() - y.min()))
  scale = float(rng.uniform(24.5, 47.5)) / longer
  lowest = [1.5 - scale * float(v.min()) for v in (x, y)]
  highest = [SIZE - 2.5 - scale * float(v.max()) for v in (x, y)]
  tx, ty = (
    low + (high - low) * float(rng.random()) for low, high in zip(lowest, highest, strict=True)
  )
  k = CELL / (scale * (a * d - b * c))
  inverse = (
        d * k, -b * k, CENTRE - (d * tx - b * ty) * k,
        -c * k, a * k, CENTRE - (a * ty - c * tx) * k,
    )  # fmt: skip
  return warp(material.tables[which], inverse, SIZE, SIZE), scale


def _harden(ink: np.ndarray, threshold: float, slope: float) -> np.ndarray:
  """Turns smooth ink in 0..255 into coverage in [0, 1], 0.5 where the ink is `threshold`."""
  rise = (ink.astype(np.float32) * np.float32(1 / 255) - np.float32(threshold)) * np.float32(slope)
  return np.clip(rise + np.float32(0.5), 0, 1)


def _contrasting_colour(surround: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Of random colours the first that stands out from nearly all of a (M, 3) surround."""
  free = rng.integers(0, 256, (20, 3))
  # Half-way to black or to white: on a busy background few free colours stand out.
  candidates = np.concatenate([free, (free + 255 * rng.integers(0, 2, (20, 1))) >> 1])
  here = luma(np.rint(surround))
  difference = np.abs(luma(candidates)[:, None] - here[None])
  share = (difference >= _CONTRAST).sum(axis=1)
  enough = np.flatnonzero(share * 100 >= here.size * 95)
  return candidates[enough[0] if enough.size else int(share.argmax())]


def _expose(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Illumination that changes over the scene, sensor noise, and rounding to uint8."""
  ramp = np.arange(SIZE, dtype=np.float32) * np.float32(2 / (SIZE - 1)) - np.float32(1)
  gx, gy = (np.float32(v) for v in rng.uniform(-0.2, 0.2, 2))
  gain = np.float32(1) + ramp[None] * gx + ramp[:, None] * gy
  # The sum of two uniform numbers stands in for a normal one, which would need exp and log.
  draws = rng.integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8).astype(np.float32)
  noise = (draws[0] + draws[1] - np.float32(255)) * np.float32(rng.uniform(0, 0.09))
  return np.clip(np.rint(canvas * gain[..., None] + noise), 0, 255).astype(np.uint8)
