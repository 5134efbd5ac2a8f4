"""Exact greedy non-maximum suppression as a loop on the device, with a fixed number of results.

Each turn takes the highest score that is left and drops what overlaps it, so there are as many
turns as results and no matrix of all pairs is stored.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from rest_jax.ops.boxes import iou


class Kept(NamedTuple):
  """What survives.

  Attributes:
    index: (count,) int32, boxes by falling score, equal scores by rising index; 0 for padding.
    valid: (count,) bool, which of them are there.
  """

  index: Int[Array, ' count']
  valid: Bool[Array, ' count']


def nms(
  boxes: Float[Array, 'N 4'],
  scores: Float[Array, ' N'],
  threshold: float,
  *,
  count: int | None = None,
  groups: Int[Array, ' N'] | None = None,
  valid: Bool[Array, ' N'] | None = None,
) -> Kept:
  """Greedy suppression: a box goes where one of higher score overlaps it by more than `threshold`.

  Args:
    boxes: corners in pixels.
    scores: of the boxes; one that is not finite counts as not valid.
    threshold: IoU, in [0, 1).
    count: most results; N by default, so that nothing is lost.
    groups: boxes of different groups (classes, levels) do not suppress each other. They are
      compared as numbers: the usual trick, moving each class to a place of its own, rounds the
      coordinates and with them the IoU.
    valid: which boxes are there.

  Returns:
    The first `count` survivors, the same as those of the plain loop over all pairs.
  """
  count = boxes.shape[0] if count is None else count
  boxes, scores = lax.stop_gradient((boxes, scores))  # indices have no slope; a loop no transpose
  left = jnp.isfinite(scores) if valid is None else jnp.isfinite(scores) & valid
  groups = jnp.zeros(scores.shape, jnp.int32) if groups is None else groups
  if boxes.shape[0] == 0:
    return Kept(jnp.zeros(count, jnp.int32), jnp.zeros(count, bool))

  def more(state):
    return (state[0] < count) & jnp.any(state[1])

  def take(state):
    turn, left, index, found = state
    best = jnp.argmax(jnp.where(left, scores, -jnp.inf)).astype(jnp.int32)
    gone = (iou(boxes[best][None], boxes)[0] > threshold) & (groups == groups[best])
    left = (left & ~gone).at[best].set(False)  # a box without area does not overlap itself
    return turn + 1, left, index.at[turn].set(best), found.at[turn].set(True)

  start = (jnp.int32(0), left, jnp.zeros(count, jnp.int32), jnp.zeros(count, bool))
  _, _, index, found = lax.while_loop(more, take, start)
  return Kept(index, found)
