"""Anchors of the levels of a pyramid: NumPy, since they are constants of a canvas.

The order is detectron2's, in which its checkpoints have their channels: over rows, columns, and at
each place over sizes and within a size over ratios. torchvision goes over ratios first and rounds
the base anchors to whole pixels; here they keep their exact sides.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rest_jax.errors import UserError


def base_anchors(sizes: Sequence[float], ratios: Sequence[float]) -> np.ndarray:
  """Anchors of one place, around (0, 0).

  Args:
    sizes: square roots of the areas, in pixels.
    ratios: height over width.

  Returns:
    (len(sizes) * len(ratios), 4) float64 corners, the ratios of a size beside each other.

  Raises:
    UserError: a size or ratio is not above 0.
  """
  if not sizes or not ratios or min(*sizes, *ratios) <= 0:
    raise UserError(f'anchors take sizes and ratios above 0, got {list(sizes)} and {list(ratios)}')
  size, ratio = (m.ravel() for m in np.meshgrid(sizes, ratios, indexing='ij'))
  width = size / np.sqrt(ratio)
  half = np.stack([width, width * ratio], 1) / 2
  return np.concatenate([-half, half], 1)


def grid_anchors(base: np.ndarray, shape: tuple[int, int], stride: int) -> np.ndarray:
  """Anchors of every place of a map: centred at (column * stride, row * stride), as detectron2's.

  Args:
    base: (A, 4) corners around (0, 0).
    shape: (rows, columns) of the map.
    stride: pixels of the image for one of the map.

  Returns:
    (rows * columns * A, 4) float32.
  """
  y, x = (m.ravel() * stride for m in np.meshgrid(*map(np.arange, shape), indexing='ij'))
  shifts = np.stack([x, y, x, y], 1)
  return (shifts[:, None] + base[None]).reshape(-1, 4).astype(np.float32)


def pyramid_anchors(
  shapes: Sequence[tuple[int, int]],
  strides: Sequence[int],
  sizes: Sequence[Sequence[float]],
  ratios: Sequence[float] = (0.5, 1.0, 2.0),
) -> list[np.ndarray]:
  """Anchors of all levels.

  Args:
    shapes: (rows, columns) of each level.
    strides: of each level.
    sizes: of each level's anchors.
    ratios: height over width, the same on all levels.

  Returns:
    A (rows * columns * A, 4) float32 array for each level.

  Raises:
    UserError: as `base_anchors`, or the levels do not agree.
  """
  if not len(shapes) == len(strides) == len(sizes):
    raise UserError(
      f'{len(shapes)} levels have {len(strides)} strides and {len(sizes)} lists of anchor sizes'
    )
  levels = zip(shapes, strides, sizes, strict=True)
  return [grid_anchors(base_anchors(own, ratios), shape, stride) for shape, stride, own in levels]


def octave_sizes(
  strides: Sequence[int], scale: float = 4.0, octaves: int = 3
) -> tuple[tuple[float, ...], ...]:
  """Sizes of RetinaNet's anchors (Lin et al. 2017, section 4): `scale` strides, times 2^(k / n)."""
  return tuple(
    tuple(scale * stride * 2 ** (k / octaves) for k in range(octaves)) for stride in strides
  )
