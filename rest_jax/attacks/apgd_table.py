"""When Auto-PGD looks back: its checkpoints and stages as tables over the steps."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rest_jax.attacks.threat import Norm


class Row(NamedTuple):
  """What each image does at its own step, (B,) each; as `Table`."""

  radius: jax.Array
  start: jax.Array
  window: jax.Array


class Table(NamedTuple):
  """What a run does at each of its steps, (steps,) each.

  Attributes:
    radius: of the ball, in units of eps: over 1 in the early stages of the L1 schedule.
    start: whether a stage begins here: the point is evaluated without a move.
    window: moves since the last checkpoint where one is due after this step, else 0.
  """

  radius: np.ndarray
  start: np.ndarray
  window: np.ndarray

  def at(self, iteration: jax.Array) -> Row:
    """The rows of steps (B,)."""
    return Row(*(jnp.asarray(column)[iteration] for column in self))


@functools.lru_cache
def make_table(norm: Norm, iterations: int, large_radii: bool) -> Table:
  """What a run does at each of its steps.

  Args:
    norm: of the ball; L1 has checkpoints of its own.
    iterations: gradient steps.
    large_radii: whether three and two times the radius come first, with 30 % of the steps each.

  Returns:
    The table, a row a step and one for the start of each stage.
  """
  stages = [(1.0, iterations)]
  if large_radii:
    early = math.ceil(0.3 * iterations)
    stages = [(3.0, early), (2.0, early), (1.0, max(iterations - 2 * early, 0))]
  rows = [
    (radius, at == 0, window)
    for radius, count in stages
    for at, window in enumerate([0, *_windows(norm, iterations, count)])
  ]
  radius, start, window = (np.array(column) for column in zip(*rows, strict=True))
  return Table(radius.astype(np.float32), start, window.astype(np.float32))


def _windows(norm: Norm, iterations: int, count: int) -> list[int]:
  """For each of `count` moves the window of the checkpoint after it, 0 where there is none.

  Linf and L2: 22 % of all iterations first, each later one 3 % shorter down to 6 %. L1: 4 % of
  the stage's.
  """
  window, least, less = (max(int(share * iterations), 1) for share in (0.22, 0.06, 0.03))
  if norm == 'l1':
    window, less = max(int(0.04 * count), 1), 0
    least = window
  windows, since = [0] * count, 0
  for i in range(count):
    since += 1
    if since == window:
      windows[i], since = window, 0
      window = max(window - less, least)
  return windows
