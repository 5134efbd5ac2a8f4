"""Square Attack's windows: how large at which query, and the pattern of its L2 and L1 forms.

Andriushchenko, Croce, Flammarion & Hein, "Square Attack: a query-efficient black-box adversarial
attack via random search", arXiv 1912.00049, sections 3.2-3.4. Everything here is computed once on
the host, in numpy; the attack looks it up, so that windows of any size share one program.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from rest_jax.attacks import draws

# The share p of changed pixels is halved after these queries of 10000 (the paper's section 4).
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


class Windows(NamedTuple):
  """The tables of an image size, a norm and a budget.

  Attributes:
    sides: (L,) side of the square windows at each level, in pixels.
    level: (n_queries,) level at each query.
    steps: (L, 2, R) what the square of radius r around the centre of the pattern's upper (0) and
      lower (1) half adds to its values.
    tile: side of the tiles of the starting point.
    tile_rings: (2, tile // 2 + 1) a tile's value at Chebyshev distance r from those centres.
  """

  sides: np.ndarray
  level: np.ndarray
  steps: np.ndarray
  tile: int
  tile_rings: np.ndarray


def windows(
  height: int, width: int, norm: str, n_queries: int, p_init: float, rescale: bool
) -> Windows:
  """Builds the tables.

  Args:
    height: of the images.
    width: of the images.
    norm: 'linf', 'l2' or 'l1'; the last two need windows of an odd side, at least 3.
    n_queries: the budget.
    p_init: share of pixels in the first windows.
    rescale: stretches the schedule, made for 10000 queries, to the budget.
  """
  queries = np.arange(n_queries)
  if rescale:
    queries = (queries / n_queries * 10000).astype(int)
  level = np.searchsorted(HALVINGS, queries, side='left')
  sides = [_side(p_init / 2**k, height, width, norm) for k in range(len(HALVINGS) + 1)]
  tile = max(min(height // 5, width), 1)  # of a narrow image one column of tiles
  steps = np.zeros((len(sides), 2, max(sides) // 2 + 1), np.float32)
  for row, side in enumerate(sides):
    values = _rings(side, norm)
    steps[row, :, : values.shape[1]] = values - np.pad(values[:, 1:], ((0, 0), (0, 1)))
  return Windows(
    sides=np.asarray(sides, np.int32),
    level=level.astype(np.int32),
    steps=steps,
    tile=tile,
    tile_rings=_rings(tile, norm).astype(np.float32),
  )


def _side(p: float, height: int, width: int, norm: str) -> int:
  side = round((p * height * width) ** 0.5)
  if norm != 'linf':
    side = max(side, 3)
    side += 1 - side % 2
  return min(max(side, 1), height, width)


def _rings(side: int, norm: str) -> np.ndarray:
  """Values by half and ring, (2, side // 2 + 1), such that the window has norm 1.

  In each half, nested squares around its centre add up: the k-th adds 1/(k+1)^2 in L2 and
  1/(k+1)^4 in L1 (the paper's section 3.4). The lower half is negative.
  """
  power = 2 if norm == 'l2' else 1
  values = np.zeros((2, side // 2 + 1))
  steps = 1.0 / np.arange(1, side // 2 + 2) ** (2 * (3 - power))
  for half, rows in enumerate((side // 2, side - side // 2)):
    if rows:
      count = _ring_counts(rows, side)
      column = np.cumsum(steps[::-1])[::-1]
      values[half] = (-1) ** half * column / np.sum(count * column**power) ** (1 / power)
      values[half] /= (1 + (side > 1)) ** (1 / power)
  return values


def _ring_counts(rows: int, columns: int) -> np.ndarray:
  """How many cells of a half lie at each distance from its centre."""
  down = np.abs(np.arange(rows) - rows // 2)[:, None]
  across = np.abs(np.arange(columns) - columns // 2)[None]
  return np.bincount(np.maximum(down, across).ravel(), minlength=columns // 2 + 1)


def inside(
  top: Int[Array, ' B'], left: Int[Array, ' B'], side: Int[Array, ' B'], height: int, width: int
) -> Bool[Array, 'B H W 1']:
  """Where each image's window is."""
  rows = jnp.arange(height, dtype=jnp.int32)[None] - top[:, None]
  columns = jnp.arange(width, dtype=jnp.int32)[None] - left[:, None]
  within_rows = (rows >= 0) & (rows < side[:, None])
  within_columns = (columns >= 0) & (columns < side[:, None])
  return (within_rows[:, :, None] & within_columns[:, None, :])[..., None]


def window_pattern(
  tables: Windows,
  level: Int[Array, ' B'],
  top: Int[Array, ' B'],
  left: Int[Array, ' B'],
  turned: Bool[Array, ' B'],
  shape: tuple[int, int],
) -> Float[Array, 'B H W 1']:
  """The patterns of windows at (top, left), transposed where `turned`; 0 outside.

  A pattern is a sum of squares, and a square is a product of a row and a column of 0 and 1: so
  the whole is one small matrix product, where looking each pixel up is several times slower.
  """
  side = jnp.asarray(tables.sides)[level][:, None]
  steps = jnp.asarray(tables.steps)[level]
  rows = jnp.arange(shape[0], dtype=jnp.int32)[None] - top[:, None]
  columns = jnp.arange(shape[1], dtype=jnp.int32)[None] - left[:, None]
  turned = turned[:, None, None]
  vertical = jnp.where(turned, _across(rows, side, steps), _down(rows, side, steps))
  horizontal = jnp.where(turned, _down(columns, side, steps), _across(columns, side, steps))
  product = jnp.einsum('bhr,bwr->bhw', vertical, horizontal, precision=lax.Precision.HIGHEST)
  return product[..., None]


def _down(rows: Int[Array, 'B N'], side: Int[Array, 'B 1'], steps: Float[Array, 'B 2 R']):
  """What each radius adds along the axis that the two halves divide: (B, N, R)."""
  upper = side // 2
  lower = rows >= upper
  distance = jnp.abs(rows - jnp.where(lower, upper + (side - upper) // 2, upper // 2))
  added = jnp.where(lower[..., None], steps[:, None, 1], steps[:, None, 0])
  return jnp.where(_reached(distance, rows, side, steps.shape[-1]), added, 0.0)


def _across(columns: Int[Array, 'B N'], side: Int[Array, 'B 1'], steps: Float[Array, 'B 2 R']):
  """Which columns the squares of each radius cover: (B, N, R)."""
  distance = jnp.abs(columns - side // 2)
  return _reached(distance, columns, side, steps.shape[-1]).astype(steps.dtype)


def _reached(distance, at, side, count: int):
  within = (at >= 0) & (at < side)
  radius = jnp.arange(count, dtype=jnp.int32)[None, None]
  return (distance[..., None] <= radius) & within[..., None]


def tiled_start(
  keys: jax.Array, tables: Windows, shape: tuple[int, int, int]
) -> Float[Array, 'B H W C']:
  """The starting point of the L2 and L1 forms: a grid of tiles with random signs and turns."""
  height, width, channels = shape
  side = tables.tile
  rows, columns = (np.arange(n) - max((n - 5 * side) // 2, 0) for n in (height, width))
  grid = (height // side, width // side)
  place = [np.clip(at // side, 0, n - 1) for at, n in zip((rows, columns), grid, strict=True)]
  covered = [(at >= 0) & (at < n * side) for at, n in zip((rows, columns), grid, strict=True)]

  draw = draws.uniform(keys, (*grid, 1 + channels))[:, place[0]][:, :, place[1]]
  turned, sign = draw[..., 0] > 0, jnp.sign(draw[..., 1:])
  full = (keys.shape[0], height, width)
  down = jnp.broadcast_to(jnp.asarray(rows % side, jnp.int32)[:, None], full)
  across = jnp.broadcast_to(jnp.asarray(columns % side, jnp.int32)[None], full)
  down, across = jnp.where(turned, across, down), jnp.where(turned, down, across)
  values = _tile_values(tables, down, across)
  values = jnp.where(covered[0][:, None] & covered[1][None], values, 0.0)
  return values[..., None] * sign


def _tile_values(tables: Windows, down: Int[Array, 'B H W'], across: Int[Array, 'B H W']):
  """The pattern of a tile at given distances from the edge where its positive half begins, and
  from an edge next to that."""
  upper = tables.tile // 2
  lower = down >= upper
  centre = jnp.where(lower, upper + (tables.tile - upper) // 2, upper // 2)
  ring = jnp.maximum(jnp.abs(down - centre), jnp.abs(across - upper))
  count = tables.tile_rings.shape[-1]
  cell = lower.astype(jnp.int32) * count + jnp.clip(ring, 0, count - 1)
  return jnp.asarray(tables.tile_rings).reshape(-1)[cell]
