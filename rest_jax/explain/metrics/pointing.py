"""Does the map point at the object? Pointing game and energy share; a map to compare with.

On the host: the maps are there to be reported, and nothing here is worth a compilation.
"""

from __future__ import annotations

import jax
import numpy as np
from jax.core import Tracer

from rest_jax.errors import UserError
from rest_jax.explain.metrics.order import check_finite_maps, ranks

TOLERANCE = 15 / 224  # of the shorter side: Zhang et al. 2018, 15 px at 224


def pointing_game(
  maps: jax.Array | np.ndarray,
  objects: jax.Array | np.ndarray,
  *,
  tolerance: float | None = None,
) -> np.ndarray:
  """Whether a map's maximum lies on the object or near it (Zhang et al. 2018, arXiv 1608.00507).

  Where several pixels share the maximum, the one that counts is the first in the order of
  `metrics.order`, which has no pattern. A constant map points nowhere: no hit.

  Args:
    maps: float (B, H, W).
    objects: bool (B, H, W), or 0 and another number; or boxes (B, 4) as TFDS has them (ymin, xmin,
      ymax, xmax in [0, 1]).
    tolerance: pixels between the maximum and the nearest pixel of the object that still count;
      15/224 of the shorter side by default.

  Returns:
    bool (B,).

  Raises:
    UserError: shapes that do not belong together, an object without a pixel, masks of several
      values, a negative tolerance, a map that is not finite; inside jit.
  """
  maps, masks = _maps_and_masks(maps, objects)
  height, width = maps.shape[1:]
  reach = TOLERANCE * min(height, width) if tolerance is None else tolerance
  if not reach >= 0:
    raise UserError(f'a tolerance is 0 px or more, got {tolerance}')
  flat = maps.reshape(len(maps), -1)
  y, x = np.divmod(np.argmin(ranks(maps).reshape(flat.shape), 1), width)
  squares = (np.arange(height)[:, None] - y[:, None, None]) ** 2
  squares = squares + (np.arange(width) - x[:, None, None]) ** 2
  nearest = np.where(masks, squares, height**2 + width**2).min((1, 2))
  return (nearest <= reach**2) & (flat.min(1) < flat.max(1))


def energy_share(maps: jax.Array | np.ndarray, objects: jax.Array | np.ndarray) -> np.ndarray:
  """Share of a map's sum that lies on the object (Wang et al. 2020, Score-CAM, arXiv 1910.01279).

  Args:
    maps: float (B, H, W), 0 or more.
    objects: as for `pointing_game`.

  Returns:
    float64 (B,) in [0, 1]; 0 for a map of zeros.

  Raises:
    UserError: shapes that do not belong together, an object without a pixel, masks of several
      values, a map that is not finite or has values under 0; inside jit.
  """
  maps, masks = _maps_and_masks(maps, objects)
  if maps.min() < 0:
    raise UserError('energy is that of maps of 0 or more, and these have values below; clip them')
  largest = maps.max((1, 2), keepdims=True)
  maps = maps / np.where(largest > 0, largest, 1)  # so that no sum overflows
  total = maps.sum((1, 2))
  inside = np.where(masks, maps, 0).sum((1, 2))
  return np.where(total > 0, inside / np.where(total > 0, total, 1), 0)


def centre_maps(count: int, size: tuple[int, int]) -> np.ndarray:
  """The baseline that always points at the centre: float32 (count, H, W) in [0, 1].

  A round hill over the middle of the picture, 1 there (at the lower right of the four middle
  pixels where a side is even) and 0 in the corner furthest away.
  """
  height, width = size
  squares = (np.arange(height) - height // 2)[:, None] ** 2 + (np.arange(width) - width // 2) ** 2
  hill = 1 - np.sqrt(squares / max(squares.max(), 1))
  return np.tile(hill.astype(np.float32), (count, 1, 1))


def box_masks(boxes: jax.Array | np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """The pixels whose centre lies in a box.

  Args:
    boxes: float (B, 4): ymin, xmin, ymax, xmax in [0, 1], as TFDS has them.
    size: H, W.

  Returns:
    bool (B, H, W).

  Raises:
    UserError: edges in pixels, or not finite.
  """
  edges = np.asarray(boxes, np.float64)
  # A box may hang over the picture's edge, but not by as much again.
  if edges.size and not -1 <= edges.min() <= edges.max() <= 2:
    raise UserError(
      'boxes are (ymin, xmin, ymax, xmax) in [0, 1], got edges from '
      f'{edges.min():.6g} to {edges.max():.6g}; divide pixels by the height and the width'
    )
  ymin, xmin, ymax, xmax = (b[:, None] for b in edges.T)
  y, x = ((np.arange(side) + 0.5) / side for side in size)
  rows, columns = (ymin <= y) & (y <= ymax), (xmin <= x) & (x <= xmax)
  return rows[:, :, None] & columns[:, None]


def _one_value(objects: np.ndarray) -> np.ndarray:
  """Masks as bool: of shares of pixels, or of several classes, all would be the object."""
  if objects.dtype == bool:
    return objects
  values = np.unique(objects[objects != 0])
  if len(values) > 1 or not np.isfinite(values).all():
    raise UserError(
      'masks have one value beside 0, and these have several, or what is no number; give bool, '
      'such as objects >= 0.5 or objects == label'
    )
  return objects.astype(bool)


def _maps_and_masks(maps, objects) -> tuple[np.ndarray, np.ndarray]:
  if isinstance(maps, Tracer) or isinstance(objects, Tracer):
    raise UserError('this measure runs on the host, so not inside jit; give it arrays')
  maps, objects = np.asarray(maps, np.float64), np.asarray(objects)
  if maps.ndim != 3 or not maps.size:
    raise UserError(f'maps are (B, H, W), got {maps.shape}')
  check_finite_maps(maps)
  if objects.shape == (len(maps), 4) and np.issubdtype(objects.dtype, np.floating):
    masks = box_masks(objects, (maps.shape[1], maps.shape[2]))
  elif objects.shape == maps.shape:
    masks = _one_value(objects)
  else:
    raise UserError(
      f'objects of {objects.dtype} {objects.shape} do not fit maps {maps.shape}; '
      f'give masks of the same shape or float boxes ({len(maps)}, 4)'
    )
  empty = np.flatnonzero(~masks.any((1, 2)))
  if len(empty):
    raise UserError(f'the object of image {empty[0]} has no pixel; leave that image out')
  return maps, masks
