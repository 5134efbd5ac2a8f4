"""The region proposal network: where objects may be, whatever they are.

Paper: Ren et al., "Faster R-CNN", NeurIPS 2015, arXiv 1506.01497, on every level of a pyramid (Lin
et al., CVPR 2017, section 4.1); details as in detectron2.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from rest_jax.models.dense import Levels, Targets, conv1, conv3, ignore_regions
from rest_jax.models.layers import Dtype
from rest_jax.ops import boxes as box_ops
from rest_jax.ops.dense_losses import binary_cross_entropy, smooth_l1
from rest_jax.ops.matching import POSITIVE, match, sample
from rest_jax.ops.suppression import nms

_init = nn.initializers.normal(0.01)


class RPNHead(nn.Module):
  """A 3x3 convolution and two 1x1 ones, shared by all levels.

  Attributes:
    anchors: A, anchors a place.
    width: channels of the 3x3 convolution.
    dtype: computing dtype.
  """

  anchors: int = 3
  width: int = 256
  dtype: Dtype | None = None

  def setup(self):
    self.conv = conv3(self.width, _init, dtype=self.dtype)
    self.logits = conv1(self.anchors, _init, dtype=self.dtype)
    self.deltas = conv1(self.anchors * 4, _init, dtype=self.dtype)

  def __call__(self, x):
    """(B, H, W, C) -> float32 logits (B, H W A) and box deltas (B, H W A, 4)."""
    x = nn.relu(self.conv(x))
    batch = x.shape[0]
    logits = self.logits(x).reshape(batch, -1)
    return logits.astype(jnp.float32), self.deltas(x).reshape(batch, -1, 4).astype(jnp.float32)


class Proposals(NamedTuple):
  """Regions that may be objects.

  Attributes:
    boxes: (B, P, 4) corners in pixels, by falling score; zeros for padding.
    valid: (B, P).
  """

  boxes: jax.Array
  valid: jax.Array


def propose(
  levels: Levels, sizes: jax.Array, *, before: int, after: int, threshold: float = 0.7
) -> Proposals:
  """The best regions of all levels; levels do not suppress each other.

  Args:
    levels: outputs of the head.
    sizes: (B, 2) float heights and widths of the images.
    before: candidates of each level.
    after: regions of an image.
    threshold: IoU from which the weaker of two regions of a level goes.

  Returns:
    The proposals, without gradient.
  """

  def one(image):
    logits, deltas, size = image
    boxes, scores, numbers = [], [], []
    for i, (own, delta, anchors) in enumerate(zip(logits, deltas, levels.anchors, strict=True)):
      score, index = lax.top_k(own, min(before, own.size))
      boxes.append(box_ops.decode(delta[index], jnp.asarray(anchors)[index]))
      scores.append(score)
      numbers.append(jnp.full(score.shape, i, jnp.int32))
    every = box_ops.clip(jnp.concatenate(boxes), size)
    there = jnp.all(every[:, 2:] > every[:, :2], axis=1)
    kept = nms(
      every,
      jnp.concatenate(scores),
      threshold,
      count=after,
      groups=jnp.concatenate(numbers),
      valid=there,
    )
    return Proposals(jnp.where(kept.valid[:, None], every[kept.index], 0), kept.valid)

  return lax.map(one, lax.stop_gradient((levels.logits, levels.deltas, sizes)))


def proposal_losses(
  levels: Levels,
  targets: Targets,
  key: jax.Array,
  *,
  high: float = 0.7,
  low: float = 0.3,
  count: int = 256,
  positive_share: float = 0.5,
) -> dict[str, jax.Array]:
  """Cross entropy of being an object, and L1 of the deltas.

  Args:
    levels: outputs of the head.
    targets: ground truth; of the labels only what is padding or a region counts.
    key: of the drawing of anchors.
    high: least IoU of a positive anchor.
    low: IoU under which an anchor is background.
    count: anchors of an image that are drawn.
    positive_share: most of them that may be positive.

  Returns:
    {'rpn_class', 'rpn_box'}: sums over the drawn anchors over `count` times the images.
  """
  anchors, logits, deltas = levels.joined()

  def one(key, logits, deltas, boxes, labels):
    found = match(box_ops.iou(anchors, boxes), labels >= 0, high=high, low=low, low_quality=True)
    status = ignore_regions(found.status, anchors, boxes, labels)
    index, valid = sample(key, status, count, int(count * positive_share))
    positive = valid & (status[index] == POSITIVE)
    entropy = binary_cross_entropy(logits[index], positive.astype(jnp.float32))
    code = box_ops.encode(boxes[found.index[index]], anchors[index])
    box = smooth_l1(jnp.where(positive[:, None], deltas[index] - code, 0), 0.0)
    return jnp.sum(jnp.where(valid, entropy, 0)), jnp.sum(box)

  keys = jax.random.split(key, logits.shape[0])
  entropy, box = jax.vmap(one)(keys, logits, deltas, targets.boxes, targets.labels)
  drawn = count * logits.shape[0]
  return {'rpn_class': jnp.sum(entropy) / drawn, 'rpn_box': jnp.sum(box) / drawn}
