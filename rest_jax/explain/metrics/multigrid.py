"""Sparse equations on the pixel grid, solved by conjugate gradients with multigrid.

A matrix is a graph: pixels that are linked to their eight neighbours and to the ground, with
weights of 0 or more. Conjugate gradients alone carry a value by one pixel a step; a cycle over ever
coarser graphs before each step carries it across the picture.

Braess 1995, "Towards algebraic multigrid for elliptic problems of second order", Computing 55:
2 x 2 pixels become one, the weights between them are summed, and what the coarser graph corrects is
scaled up, for a constant in each square underestimates it.

Arrays are planes (C, H, W), those of a graph (1, H, W). Every step is a part of the program by
itself: fused into each other, those of a cycle are computed a hundred times over.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rest_jax.ops.platform import apart

_DAMPING = 0.9  # of Jacobi's steps; below 1, so that a cycle is positive definite
_CORRECTION = 1.7  # the authors have 1.8
_LAST_STEPS = 4  # more of Jacobi's steps on the coarsest graph


class Graph(NamedTuple):
  """Weights, 0 or more, of each pixel (1, H, W); those of links that leave the grid are 0.

  Attributes:
    ground: to a value that is known.
    east: to the pixel on the right.
    south: to the pixel below.
    south_east: to the one below on the right.
    south_west: to the one below on the left.
  """

  ground: jax.Array
  east: jax.Array
  south: jax.Array
  south_east: jax.Array
  south_west: jax.Array


class _Level(NamedTuple):
  """A graph as it is multiplied by."""

  graph: Graph
  padded: Graph  # its weights with a border of zeros
  diagonal: jax.Array
  inverse: jax.Array  # the damping over the diagonal; 0 for a pixel without links


def solve(graph: Graph, right: jax.Array, tolerance: jax.Array, iterations: jax.Array) -> jax.Array:
  """Solves: the sum of weight * (x - neighbour's x) over a pixel's links = right; the ground is 0.

  Args:
    graph: every pixel with links has a way to the ground.
    right: float (C, H, W), 0 for pixels without links; a system for each channel.
    tolerance: the residual's norm over that of `right` at which a channel is solved.
    iterations: no more steps than these.

  Returns:
    float (C, H, W), 0 for pixels without links.
  """
  levels = _levels(graph)
  square = _dot(right, right)
  limit = tolerance**2 * square

  def unsolved(state):
    return (state[0] < iterations) & jnp.any(state[-1] > limit)

  def step(state):
    i, x, residual, direction, before, square = state
    better = _cycle(levels, residual)
    # A channel that is solved is not touched again: rounding would make it worse.
    now = jnp.where(square > limit, _dot(residual, better), 0)
    direction = _add(better, _ratio(now, before), direction)
    image = _product(levels[0], _pad(direction))
    length = _ratio(now, _dot(direction, image))
    x, residual = _add(x, length, direction), _add(residual, -length, image)
    return i + 1, x, residual, direction, now, _dot(residual, residual)

  zeros = jnp.zeros_like(right)
  state = (0, zeros, right, zeros, jnp.zeros_like(square), square)
  return jax.lax.while_loop(unsolved, step, state)[1]


def _levels(graph: Graph) -> list[_Level]:
  """The graph and ever coarser ones, down to 2 x 2 pixels."""
  levels = [_level(graph)]
  while max(levels[-1].diagonal.shape) > 2:
    levels.append(_level(_coarser(levels[-1].graph)))
  return levels


@apart
def _level(graph: Graph) -> _Level:
  padded = Graph(*map(_border, graph))
  behind = _at(padded.east, 0, -1) + _at(padded.south, -1, 0)
  behind += _at(padded.south_east, -1, -1) + _at(padded.south_west, -1, 1)
  diagonal = sum(graph[1:], graph.ground) + behind
  return _Level(graph, padded, diagonal, _ratio(jnp.full_like(diagonal, _DAMPING), diagonal))


@apart
def _coarser(graph: Graph) -> Graph:
  """2 x 2 pixels become one; links between the same two are summed, those inside vanish."""
  ground, east, south, south_east, south_west = map(_quarters, graph)
  # The link to the south-west from the square on the right ends at the south of this square.
  back = _at(_border(south_west[0][0]), 0, 1)
  return Graph(
    ground[0][0] + ground[0][1] + ground[1][0] + ground[1][1],
    east[0][1] + east[1][1] + south_east[0][1] + back,
    south[1][0] + south[1][1] + south_east[1][0] + south_west[1][1],
    south_east[1][1],
    south_west[1][0],
  )


def _cycle(levels: list[_Level], residual: jax.Array) -> jax.Array:
  """About the solution for a residual: linear, symmetric and positive definite."""
  level, *coarser = levels
  x = _first(level, residual)
  if not coarser:
    for _ in range(_LAST_STEPS):
      x = _smooth(level, _pad(x), residual)
    return x
  left = _restrict(_residual(level, _pad(x), residual))
  return _smooth(level, _pad(_correct(x, _cycle(coarser, left))), residual)


def _times(level: _Level, x):
  """The matrix times values with a border of zeros."""
  _, east, south, south_east, south_west = level.padded
  ahead = _at(east, 0, 0) * _at(x, 0, 1) + _at(south, 0, 0) * _at(x, 1, 0)
  ahead += _at(south_east, 0, 0) * _at(x, 1, 1) + _at(south_west, 0, 0) * _at(x, 1, -1)
  behind = _at(east, 0, -1) * _at(x, 0, -1) + _at(south, -1, 0) * _at(x, -1, 0)
  behind += _at(south_east, -1, -1) * _at(x, -1, -1) + _at(south_west, -1, 1) * _at(x, -1, 1)
  return level.diagonal * _at(x, 0, 0) - ahead - behind


_product = apart(_times)


@apart
def _residual(level: _Level, x, right):
  return right - _times(level, x)


@apart
def _first(level: _Level, right):
  """Jacobi's step from zero."""
  return level.inverse * right


@apart
def _smooth(level: _Level, x, right):
  """Jacobi's step."""
  return _at(x, 0, 0) + level.inverse * (right - _times(level, x))


@apart
def _restrict(x):
  (a, b), (c, d) = _quarters(x)
  return a + b + c + d


@apart
def _correct(x, coarse):
  height, width = x.shape[1:]
  return x + _CORRECTION * coarse.repeat(2, 1).repeat(2, 2)[:, :height, :width]


@apart
def _add(x, length, direction):
  return x + length * direction


@apart
def _dot(a, b):
  return jnp.sum(a * b, (1, 2), keepdims=True)


def _ratio(a, b):
  return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)


def _border(x):
  return jnp.pad(x, ((0, 0), (1, 1), (1, 1)))


_pad = apart(_border)


def _at(padded, down: int, right: int):
  """The values so many pixels further."""
  height, width = padded.shape[1] - 2, padded.shape[2] - 2
  return padded[:, 1 + down : 1 + down + height, 1 + right : 1 + right + width]


def _quarters(x):
  """The pixels of each square of 2 x 2, by row and column; zeros beyond an odd side."""
  x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2)))
  return [[x[:, i::2, j::2] for j in range(2)] for i in range(2)]
