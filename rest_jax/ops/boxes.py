"""Boxes as corners (x1, y1, x2, y2) in pixels, x to the right and y down; x2 and y2 are the ends.

A box covers x1 <= x < x2: its width is x2 - x1, and the whole of an image of H x W pixels is
(0, 0, W, H). Padding is boxes of zeros, which have no area and an IoU of 0 with everything.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

# Largest log of a size ratio that `decode` takes: a stray output must not overflow exp.
MAX_LOG_RATIO = math.log(1000 / 16)
_LEAST_SIDE = 1e-6  # px, of a box that is encoded: the log of a padding box stays finite

Weights = tuple[float, float, float, float]


def area(boxes: Float[Array, '*N 4']) -> Float[Array, '*N']:
  """Areas in square pixels; 0 for a box whose ends come before its start."""
  sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0)
  return sides[..., 0] * sides[..., 1]


def intersection(
  one: Float[Array, '*B N 4'], other: Float[Array, '*B M 4']
) -> Float[Array, '*B N M']:
  """Areas that every box of `one` has in common with every box of `other`."""
  a, b = one[..., :, None, :], other[..., None, :, :]
  low = jnp.maximum(a[..., :2], b[..., :2])
  high = jnp.minimum(a[..., 2:], b[..., 2:])
  sides = jnp.maximum(high - low, 0)
  return sides[..., 0] * sides[..., 1]


def iou(one: Float[Array, '*B N 4'], other: Float[Array, '*B M 4']) -> Float[Array, '*B N M']:
  """Intersection over union of all pairs.

  Args:
    one: boxes.
    other: boxes, with the same leading axes.

  Returns:
    Values in [0, 1]; 0 where the union is empty.
  """
  common = intersection(one, other)
  union = area(one)[..., :, None] + area(other)[..., None, :] - common
  return jnp.where(union > 0, common / jnp.where(union > 0, union, 1), 0)


def clip(boxes: Float[Array, '*N 4'], size: Float[Array, ' 2']) -> Float[Array, '*N 4']:
  """Cuts boxes off at the border of an image.

  Args:
    boxes: any boxes.
    size: (height, width) of the image in pixels.

  Returns:
    Boxes inside of (0, 0, width, height).
  """
  height, width = size[0], size[1]
  limit = jnp.stack([width, height, width, height]).astype(boxes.dtype)
  return jnp.clip(boxes, 0, limit.reshape((1,) * (boxes.ndim - 1) + (4,)))


def _centres(boxes):
  """Centres and sides, each (..., 2)."""
  sides = boxes[..., 2:] - boxes[..., :2]
  return boxes[..., :2] + 0.5 * sides, sides


def encode(
  boxes: Float[Array, '*N 4'], anchors: Float[Array, '*N 4'], weights: Weights = (1, 1, 1, 1)
) -> Float[Array, '*N 4']:
  """What has to be added to anchors to get boxes (R-CNN's parameterisation).

  Girshick et al., CVPR 2014 (arXiv 1311.2524), appendix C: (dx / w, dy / h, log w' / w,
  log h' / h) times the weights.

  Args:
    boxes: the boxes to reach; sides under 1e-6 px count as that.
    anchors: where from, sides above 0.
    weights: of the four numbers.

  Returns:
    (..., 4), finite.
  """
  (to, to_sides), (start, sides) = _centres(boxes), _centres(anchors)
  sides = jnp.maximum(sides, _LEAST_SIDE)
  shift = (to - start) / sides
  log = jnp.log(jnp.maximum(to_sides, _LEAST_SIDE) / sides)
  return jnp.concatenate([shift, log], -1) * _row(weights, boxes)


def decode(
  deltas: Float[Array, '*N 4'], anchors: Float[Array, '*N 4'], weights: Weights = (1, 1, 1, 1)
) -> Float[Array, '*N 4']:
  """The inverse of `encode`; a side grows by 1000 / 16 at most.

  Args:
    deltas: outputs of a box head.
    anchors: where they start from.
    weights: as given to `encode`.

  Returns:
    Boxes, not clipped.
  """
  centre, sides = _centres(anchors)
  deltas = deltas / _row(weights, deltas)
  centre = centre + deltas[..., :2] * sides
  half = 0.5 * sides * jnp.exp(jnp.minimum(deltas[..., 2:], MAX_LOG_RATIO))
  return jnp.concatenate([centre - half, centre + half], -1)


def _row(weights: Weights, like):
  """Weights in the shape and dtype that go with an array."""
  return jnp.asarray(weights, like.dtype).reshape((1,) * (like.ndim - 1) + (4,))
