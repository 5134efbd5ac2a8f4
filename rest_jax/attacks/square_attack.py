"""Square Attack: random search that sees nothing but logits.

Andriushchenko, Croce, Flammarion & Hein, "Square Attack: a query-efficient black-box adversarial
attack via random search", arXiv 1912.00049, algorithms 1-3; the L1 form is Croce & Hein, "Mind the
box", arXiv 2103.01208, section 4.2. Each query changes one square window and is kept if the loss
falls. Every image draws windows of its own; the published code draws one for the whole batch.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from rest_jax.attacks import losses
from rest_jax.attacks.algorithm import State, register_state, select
from rest_jax.attacks.ball import draw_uniform, finish, normalize, per_image, project
from rest_jax.attacks.driver import (
  Given,
  IterativeAttack,
  Outcome,
  Runs,
  attack_images,
  make_target,
  program_of,
)
from rest_jax.attacks.losses import fooled
from rest_jax.attacks.queries import fold_each, logits_of
from rest_jax.attacks.registry import face, register
from rest_jax.errors import UserError
from rest_jax.inputs import Norm, check_choice, check_count
from rest_jax.ops.reduce import sum_planes

# The share p of changed pixels is halved after these queries of 10000 (the paper's section 4).
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


# ---- The windows: how large at which query, and the pattern of the L2 and L1 forms (sections 3.2
# to 3.4). The tables are computed once on the host, in numpy; the attack looks them up, so that
# windows of any size share one program.


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

  draw = draw_uniform(keys, (*grid, 1 + channels))[:, place[0]][:, :, place[1]]
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


_cached_windows = lru_cache(maxsize=32)(windows)


@register_state
@dataclasses.dataclass(frozen=True)
class SquareState(State):
  """A batch under attack: `algorithm.State`, and

  Attributes:
    best: the image of least loss, not yet queried at iteration 0.
    loss: its loss, (B,).
  """

  best: Float[Array, 'B H W C']
  loss: Float[Array, ' B']


@register('square', 'no gradients: a check on all the others')
@dataclasses.dataclass(frozen=True, kw_only=True)
class Square(IterativeAttack):
  """The attack; as `square`.

  Attributes:
    n_queries: budget beyond the starting point's one.
    p_init: share of pixels that the first windows change.
    loss: 'margin' of the goal, or 'ce' for cross-entropy; by default the margin, with targets the
      cross-entropy.
    rescale: stretches the published schedule, made for 10000 queries, to the budget.
    restarts: runs from different starts.
  """

  gradients: ClassVar[bool] = False

  n_queries: int = 5000
  p_init: float = 0.8
  loss: str | None = None
  rescale: bool = True
  restarts: int = 1

  def __post_init__(self):
    check_count('n_queries', self.n_queries)
    check_count('restarts', self.restarts)
    if self.loss is not None:
      check_choice('loss', self.loss, ('margin', 'ce'))
    if not 0 < self.p_init <= 1:
      raise UserError(f'p_init is a share of the pixels, over 0 and up to 1, not {self.p_init!r}')

  @property
  def length(self) -> int:
    """Queries at most."""
    return self.n_queries + 1

  def carry_out(self, given: Given, key: Any) -> Outcome:
    """Attacks what is classified correctly, through slots."""
    inputs = given.checked(self.norm).within_range(self.norm)
    target = make_target('square', inputs, key, self.query_batch)
    loss = self.loss or ('ce' if target.targeted else 'margin')
    algorithm = program_of(dataclasses.replace(self, targeted=target.targeted, loss=loss))
    which = target.still_right()
    found = attack_images(target, (Runs(algorithm, self.restarts),), which)
    adv, queries = target.images.copy(), np.zeros(len(target.images), np.int64)
    adv[which], queries[which] = found.adv, found.steps
    return Outcome(jnp.asarray(adv), queries)

  def init(self, model: Partial, images, labels, eps, keys, targets=None) -> SquareState:
    """Starting points; they are queried in the first step."""
    del model
    start = _start(self, self._tables(images.shape), images, eps, keys)
    return SquareState.begin(
      *(images, labels, eps, keys, targets),
      best=finish(start, images, self.norm, eps),
      loss=jnp.full(labels.shape, jnp.inf, jnp.float32),
    )

  def step(self, model: Partial, state: SquareState) -> SquareState:
    """One query of each image."""
    keys = fold_each(state.keys, state.iteration)
    candidate = _propose(self, self._tables(state.images.shape), state, keys)
    candidate = finish(candidate, state.images, self.norm, state.eps)
    candidate = select(state.iteration == 0, state.best, candidate)
    margin, loss, success = _judge(self, logits_of(model, candidate, keys), state)
    improved = loss < state.loss
    return dataclasses.replace(
      state,
      adv=select(success, candidate, state.adv),
      success=state.success | success,
      iteration=state.iteration + 1,
      best=select(improved | (margin <= 0), candidate, state.best),
      loss=jnp.where(improved, loss, state.loss),
    )

  def outcome(self, state: SquareState) -> tuple[jax.Array, jax.Array]:
    """The adversarial image, the original where there is none."""
    return state.adv, -state.loss

  def _tables(self, shape: tuple[int, ...]) -> Windows:
    return _cached_windows(shape[1], shape[2], self.norm, self.n_queries, self.p_init, self.rescale)


def _judge(square: Square, logits, state: SquareState):
  """The margin that must fall to 0, the loss to lower, and whether the attacker has won."""
  success = fooled(logits, state.labels, state.targets, square.targeted)
  goal, sign = (state.targets, 1) if square.targeted else (state.labels, -1)
  margin = sign * losses.margin(logits, goal)
  # Losses are compared, so log odds do for the cross-entropy, and never round to a constant.
  loss = margin if square.loss != 'ce' else sign * losses.log_odds(logits, goal)
  return margin, loss, success


def _start(square: Square, tables: Windows, images, eps, keys):
  """Vertical stripes in Linf, tiles in the other norms."""
  shape = images.shape[1:]
  if square.norm == 'linf':
    stripe = jnp.sign(draw_uniform(keys, (1, *shape[1:])))
    return jnp.clip(images + per_image(eps, images) * stripe, 0.0, 1.0)
  tiles = tiled_start(keys, tables, shape)
  if square.norm == 'l2':
    return jnp.clip(images + normalize(tiles, 'l2') * per_image(eps, images), 0.0, 1.0)
  return images + project(tiles, images, 'l1', eps)


def _propose(square: Square, tables: Windows, state: SquareState, keys):
  """The next images to query."""
  batch, height, width, channels = state.images.shape
  chance = 0.5 + 0.5 * draw_uniform(keys, (5 + channels,))
  query = jnp.clip(state.iteration - 1, 0, square.n_queries - 1)
  level = jnp.asarray(tables.level)[query]
  side = jnp.asarray(tables.sides)[level]
  # As in the published code, the last row and column are reached by a full-size window alone.
  bounds = jnp.stack([height - side, width - side] * 2, axis=1)
  corner = jnp.floor(chance[:, :4] * bounds.astype(jnp.float32)).astype(jnp.int32)
  sign = jnp.where(chance[:, 5:] < 0.5, -1.0, 1.0).reshape(batch, 1, 1, channels)
  here = inside(corner[:, 0], corner[:, 1], side, height, width)
  if square.norm == 'linf':
    eps = per_image(state.eps, state.images)
    moved = jnp.where(here, state.best + 2 * eps * sign, state.best)
    return jnp.clip(moved, state.images - eps, state.images + eps)
  there = inside(corner[:, 2], corner[:, 3], side, height, width)
  turned = chance[:, 4] > 0.5
  form = window_pattern(tables, level, corner[:, 0], corner[:, 1], turned, (height, width))
  moved = _move_mass(square.norm, state, here, there, form * sign)
  if square.norm == 'l2':
    return state.images + _to_radius(moved, state.eps)
  return state.images + project(moved, state.images, 'l1', state.eps)


def _move_mass(norm: Norm, state: SquareState, here, there, form):
  """Empties one window and gives its norm, and what is left of the budget, to another."""
  delta = state.best - state.images
  channels = delta.shape[-1]
  size = _size(delta, norm)
  sums = sum_planes(jnp.where(here, size, 0.0), jnp.where(here | there, size, 0.0), size)
  left, kept, whole = (
    _root(total, norm) for total in (*sums[:2], jnp.sum(sums[2], -1, keepdims=True))
  )
  shape = form + _over(jnp.where(here, delta, 0.0), left)
  eps = per_image(state.eps, delta)
  if norm == 'l2':
    spare = jnp.maximum(eps**2 - whole**2, 0.0) / channels
    mass = jnp.sqrt(spare + kept**2)
  else:
    mass = (jnp.maximum(eps - whole, 0.0) / channels + kept) * channels
  (filled,) = sum_planes(_size(shape, norm))
  filled = shape * _over(mass, _root(filled, norm))
  return jnp.where(here, filled, jnp.where(there, 0.0, delta))


def _to_radius(delta, eps):
  """Stretches each image's perturbation to length eps (B,) in L2."""
  (squares,) = sum_planes(jnp.square(delta))
  length = jnp.sqrt(jnp.sum(squares, axis=-1, keepdims=True))
  return delta * _over(per_image(eps, delta), length)


def _over(above, below):
  """above / below, 0 where below is 0."""
  return jnp.where(below > 0, above / jnp.where(below > 0, below, 1.0), 0.0)


def _size(x, norm: str):
  return jnp.abs(x) if norm == 'l1' else jnp.square(x)


def _root(x, norm: str):
  return x if norm == 'l1' else jnp.sqrt(x)


@face(Square)
def square(
  logits_fn: Any,
  images: Any,
  labels: Any,
  *,
  key: Any,
  norm: Norm = 'linf',
  eps: Any,
  n_queries: int = 5000,
  p_init: float = 0.8,
  loss: str | None = None,
  rescale: bool = True,
  restarts: int = 1,
  targets: Any = None,
  query_batch: int | None = None,
) -> jax.Array:
  """Random search over square windows, with the model's logits alone.

  Andriushchenko, Croce, Flammarion & Hein, "Square Attack: a query-efficient black-box adversarial
  attack via random search", arXiv 1912.00049; in L1 "Mind the box", arXiv 2103.01208, section 4.2.

  Args:
    n_queries: changes to try on each image, after the starting point.
    p_init: share of the pixels that the first windows change, over 0 and up to 1.
    loss: 'margin' or 'ce', of the label or the target; by default, as published, the margin, with
      targets the cross-entropy.
    rescale: stretches the schedule of window sizes, made for 10000 queries, to `n_queries`.
      AutoAttack does not.
    query_batch: images in a batch, at most; 64 on a CPU and 256 elsewhere by default. Where few are
      left, smaller ones are compiled if they pay.

  Returns:
    float32 (B, H, W, C), in the ball and in [0, 1]: adversarial images, the originals where none
    was found or where they are misclassified by themselves.
  """
  ...
