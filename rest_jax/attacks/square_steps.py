"""Square Attack: random search that sees nothing but logits.

Andriushchenko, Croce, Flammarion & Hein, "Square Attack: a query-efficient black-box adversarial
attack via random search", arXiv 1912.00049, algorithms 1-3; the L1 form is Croce & Hein, "Mind the
box", arXiv 2103.01208, section 4.2. Each query changes one square window and is kept if the loss
falls. Every image draws windows of its own; the published code draws one for the whole batch.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, Key

from rest_jax.attacks import draws, losses
from rest_jax.attacks.algorithm import register_state, select
from rest_jax.attacks.losses import fooled
from rest_jax.attacks.projections import normalize, per_image, project
from rest_jax.attacks.queries import fold_each, logits_of
from rest_jax.attacks.rounding import finish
from rest_jax.attacks.square_windows import (
  Windows,
  inside,
  tiled_start,
  window_pattern,
  windows,
)
from rest_jax.attacks.threat import Norm
from rest_jax.ops.reduce import sum_planes

_cached_windows = lru_cache(maxsize=32)(windows)


@register_state
@dataclasses.dataclass(frozen=True)
class SquareState:
  """A batch under attack: `algorithm.State`, and

  Attributes:
    best: the image of least loss, not yet queried at iteration 0.
    loss: its loss, (B,).
  """

  images: Float[Array, 'B H W C']
  labels: Int[Array, ' B']
  targets: Int[Array, ' B']
  eps: Float[Array, ' B']
  keys: Key[Array, ' B']
  iteration: Int[Array, ' B']
  adv: Float[Array, 'B H W C']
  success: Bool[Array, ' B']
  best: Float[Array, 'B H W C']
  loss: Float[Array, ' B']


@dataclasses.dataclass(frozen=True)
class Square:
  """The algorithm and its settings, in the protocol `algorithm.Algorithm`.

  Attributes:
    norm: 'linf', 'l2' or 'l1'.
    targeted: whether a given class is wanted; any wrong one otherwise.
    n_queries: budget beyond the starting point's one.
    p_init: share of pixels that the first windows change.
    loss: 'margin' of the goal, or 'ce' for cross-entropy.
    rescale: stretches the published schedule, made for 10000 queries, to the budget.
  """

  norm: Norm
  targeted: bool = False
  n_queries: int = 5000
  p_init: float = 0.8
  loss: str = 'margin'
  rescale: bool = True

  @property
  def steps(self) -> int:
    """Queries at most."""
    return self.n_queries + 1

  def init(self, model: Partial, images, labels, eps, keys, targets=None) -> SquareState:
    """Starting points; they are queried in the first step."""
    del model
    start = _start(self, self._tables(images.shape), images, eps, keys)
    return SquareState(
      images=images,
      labels=labels,
      targets=labels if targets is None else targets,
      eps=eps,
      keys=keys,
      iteration=jnp.zeros_like(labels),
      adv=images,
      success=jnp.zeros(labels.shape, bool),
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

  def _tables(self, shape: tuple[int, ...]) -> Windows:
    return _cached_windows(shape[1], shape[2], self.norm, self.n_queries, self.p_init, self.rescale)


def _judge(square: Square, logits, state: SquareState):
  """The margin that must fall to 0, the loss to lower, and whether the attacker has won."""
  success = fooled(logits, state.labels, state.targets, square.targeted)
  goal, sign = (state.targets, 1) if square.targeted else (state.labels, -1)
  margin = sign * losses.margin(logits, goal)
  # Losses are compared, so log odds do for the cross-entropy, and never round to a constant.
  loss = margin if square.loss == 'margin' else sign * losses.log_odds(logits, goal)
  return margin, loss, success


def _start(square: Square, tables: Windows, images, eps, keys):
  """Vertical stripes in Linf, tiles in the other norms."""
  shape = images.shape[1:]
  if square.norm == 'linf':
    stripe = jnp.sign(draws.uniform(keys, (1, *shape[1:])))
    return jnp.clip(images + per_image(eps, images) * stripe, 0.0, 1.0)
  tiles = tiled_start(keys, tables, shape)
  if square.norm == 'l2':
    return jnp.clip(images + normalize(tiles, 'l2') * per_image(eps, images), 0.0, 1.0)
  return images + project(tiles, images, 'l1', eps)


def _propose(square: Square, tables: Windows, state: SquareState, keys):
  """The next images to query."""
  batch, height, width, channels = state.images.shape
  chance = 0.5 + 0.5 * draws.uniform(keys, (5 + channels,))
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
