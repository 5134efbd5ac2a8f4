"""RetinaNet: one-stage detection with the focal loss.

Paper: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, arXiv 1708.02002. Details and
the order of the anchors are detectron2's (Apache-2.0), whose state dicts `convert_dense` reads.

Deviations: an image has a fixed number of results; the number that losses are divided by is that of
the whole batch over all devices, so that a result does not depend on how many there are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from rest_jax.models.dense import (
  Detections,
  DetectorModel,
  Levels,
  Targets,
  backbone_maps,
  best_detections,
  check_targets,
  conv3,
  ignore_regions,
  image_sizes,
  lying_on,
  per_device,
  strongest,
  total,
  undefined_told,
)
from rest_jax.models.fpn import FPN, TopBlock
from rest_jax.models.layers import Dtype, check_stages
from rest_jax.ops import boxes as box_ops
from rest_jax.ops.anchors import octave_sizes, pyramid_anchors
from rest_jax.ops.dense_losses import sigmoid_focal_loss, smooth_l1
from rest_jax.ops.matching import IGNORED, POSITIVE, match

FIRST_POSITIVES = 100.0  # that the running mean starts from, as in detectron2
_PRIOR = 0.01  # probability of every class at the start, against the flood of background
_head_init = nn.initializers.normal(0.01)


class RetinaHead(nn.Module):
  """Two towers of 3x3 convolutions, shared by all levels.

  Attributes:
    num_classes: K.
    anchors: A, anchors a place.
    convs: 3x3 convolutions of a tower before its last one.
    width: their channels.
    dtype: computing dtype.
  """

  num_classes: int
  anchors: int
  convs: int = 4
  width: int = 256
  dtype: Dtype | None = None

  def setup(self):
    for tower in ('class', 'box'):
      for i in range(self.convs):
        setattr(self, f'{tower}_conv{i}', conv3(self.width, _head_init, dtype=self.dtype))
    rare = nn.initializers.constant(-math.log((1 - _PRIOR) / _PRIOR))
    outputs = self.anchors * self.num_classes
    self.class_out = conv3(outputs, _head_init, bias_init=rare, dtype=self.dtype)
    self.box_out = conv3(self.anchors * 4, _head_init, dtype=self.dtype)

  def __call__(self, x):
    """(B, H, W, C) -> float32 logits (B, H W A, K) and box deltas (B, H W A, 4)."""
    return self._tower(x, 'class', self.num_classes), self._tower(x, 'box', 4)

  def _tower(self, x, tower: str, outputs: int):
    """One tower on one level: (B, N, outputs)."""
    for i in range(self.convs):
      x = nn.relu(getattr(self, f'{tower}_conv{i}')(x))
    x = getattr(self, f'{tower}_out')(x)
    return x.reshape(x.shape[0], -1, outputs).astype(jnp.float32)


class RetinaNet(DetectorModel):
  """RetinaNet on any backbone with four maps.

  Attributes:
    backbone: its method `features` gives the maps.
    num_classes: K, without background.
    stages: of the backbone that the pyramid stands on.
    extra_levels: coarser levels on top of it.
    width: channels of pyramid and head.
    convs: 3x3 convolutions of each tower.
    anchor_scale: side of the smallest anchor of a level, in strides.
    octaves: sizes of a level, within a factor of 2.
    ratios: of the anchors, height over width.
    high: least IoU of a positive anchor.
    low: IoU under which an anchor is background; those in between are ignored.
    alpha: of the focal loss.
    gamma: of the focal loss.
    box_beta: where the box loss turns from square to linear: 0 in the papers' configurations, plain
      L1; detectron2's default is 0.1.
    momentum: of the running mean of positives that both losses are divided by, which starts at 100
      as in detectron2; 0 takes each batch's own count, as torchvision.
    score_threshold: least score of a result.
    candidates: best (anchor, class) pairs that each level puts forward.
    nms_threshold: IoU from which the weaker of two results of a class goes.
    max_detections: results of an image.
    axis_name: mapped axis over which positives are counted.
    dtype: computing dtype of the pyramid and the head; losses and boxes are float32.
  """

  num_classes: int = 80
  stages: Sequence[int] = (2, 3, 4)
  extra_levels: int = 2
  width: int = 256
  convs: int = 4
  anchor_scale: float = 4.0
  octaves: int = 3
  ratios: Sequence[float] = (0.5, 1.0, 2.0)
  high: float = 0.5
  low: float = 0.4
  alpha: float = 0.25
  gamma: float = 2.0
  box_beta: float = 0.0
  momentum: float = 0.9
  score_threshold: float = 0.05
  candidates: int = 1000
  nms_threshold: float = 0.5
  max_detections: int = 100
  axis_name: str | None = None
  dtype: Dtype | None = None

  def setup(self):
    check_stages(self.stages, 0)
    numbers = [stage + 1 for stage in self.stages]
    self.fpn = FPN(tuple(numbers), self.width, self.dtype)
    extra = range(numbers[-1] + 1, numbers[-1] + 1 + self.extra_levels)
    self.top = TopBlock(tuple(extra), self.width, self.dtype)
    anchors = self.octaves * len(self.ratios)
    self.head = RetinaHead(self.num_classes, anchors, self.convs, self.width, self.dtype)
    if self.momentum:
      start = functools.partial(jnp.full, (), FIRST_POSITIVES, jnp.float32)
      self.positives = self.variable('batch_stats', 'positives', start)

  def levels(self, images, train: bool = False) -> Levels:
    """The head's outputs for normalised images (B, H, W, C)."""
    maps, strides, _ = backbone_maps(self.backbone, images, self.stages, train)
    pyramid = self.fpn(maps) + self.top(maps[-1])
    strides += tuple(strides[-1] * 2 ** (i + 1) for i in range(self.extra_levels))
    sizes = octave_sizes(strides, self.anchor_scale, self.octaves)
    shapes = [m.shape[1:3] for m in pyramid]
    logits, deltas = zip(*(self.head(m) for m in pyramid), strict=True)
    return Levels(logits, deltas, tuple(pyramid_anchors(shapes, strides, sizes, self.ratios)))

  def detect(self, images, sizes, train: bool) -> Detections:
    """The best of all levels; see `DetectorModel`."""
    return self.select(self.levels(images, train), sizes)

  def select(self, levels: Levels, sizes) -> Detections:
    """The best candidates of each level, decoded, without those that a better one overlaps.

    Args:
      levels: outputs of the head.
      sizes: (B, 2) float heights and widths of the images.

    Returns:
      The detections.
    """

    def one(image):
      logits, deltas, size = image
      return self._select_one(logits, deltas, size, levels.anchors)

    found = lax.map(one, (levels.logits, levels.deltas, sizes))
    return undefined_told(found, (*levels.logits, *levels.deltas))

  def _select_one(self, logits, deltas, size, anchors) -> Detections:
    """The results of one image."""
    found = [self._candidates(*level) for level in zip(logits, deltas, anchors, strict=True)]
    boxes, scores, labels = (jnp.concatenate(part) for part in zip(*found, strict=True))
    boxes = box_ops.clip(boxes, size)
    return best_detections(boxes, scores, labels, self.nms_threshold, self.max_detections)

  def _candidates(self, logits, deltas, anchors):
    """The best pairs of one level: boxes, scores, labels."""
    scores = jax.nn.sigmoid(logits).ravel()
    scores = jnp.where(scores > self.score_threshold, scores, -jnp.inf)
    scores, index = lax.top_k(scores, min(self.candidates, scores.size))
    place, label = jnp.divmod(index, self.num_classes)
    return box_ops.decode(deltas[place], jnp.asarray(anchors)[place]), scores, label

  def presence(self, images, box, label, sizes=None):
    """How sure it is that an object of a class is at a place: a logit, which has a gradient.

    It is the largest logit of the class among the anchors whose result lies on the place (IoU of
    `nms_threshold` or more, of which suppression would leave one), so its sigmoid is the score of
    what was found there; where no result does, among the anchors that training would give to such
    an object.

    Args:
      images: normalised images on a canvas, float (B, H, W, C).
      box: (4,) corners in pixels of the canvas.
      label: whole number, 0..K - 1.
      sizes: as `__call__`.

    Returns:
      float32 (B,).
    """
    sizes = image_sizes(images, sizes)
    anchors, logits, deltas = self.levels(images).joined()
    boxes = jax.vmap(lambda d, size: box_ops.clip(box_ops.decode(d, anchors), size))(deltas, sizes)
    overlaps = box_ops.iou(anchors, box[None])[:, 0]
    own = (overlaps >= self.high) | (overlaps == jnp.max(overlaps))
    found = lying_on(boxes, box, self.nms_threshold)
    return strongest(jnp.take(logits, label, axis=-1), found, own)

  def losses(self, images, targets: Targets, train: bool = True) -> dict[str, jax.Array]:
    """The losses of a batch; their sum is what training lowers.

    Args:
      images: normalised images on a canvas, float (B, H, W, C).
      targets: ground truth in pixels of the canvas.
      train: as `__call__`; the running mean of positives moves too (collection 'batch_stats').

    Returns:
      {'class': focal loss, 'box': L1 of the deltas}: float32 scalars, each the sum over the anchors
      that count over the mean number of positives.

    Raises:
      UserError: targets that do not fit.
    """
    check_targets(images, targets, masks=False)
    return self.losses_of(self.levels(images, train), targets, train)

  def losses_of(self, levels: Levels, targets: Targets, train: bool = True):
    """`losses` of outputs of the head."""
    anchors, logits, deltas = levels.joined()
    goals = jax.vmap(lambda boxes, labels: self._goals(anchors, boxes, labels))
    status, label, code = goals(targets.boxes, targets.labels)
    positive = status == POSITIVE
    hot = jax.nn.one_hot(jnp.where(positive, label, -1), self.num_classes, dtype=jnp.float32)
    focal = sigmoid_focal_loss(logits, hot, self.alpha, self.gamma)
    box = smooth_l1(jnp.where(positive[..., None], deltas - code, 0), self.box_beta)
    count = self._normaliser(jnp.sum(positive).astype(jnp.float32), train)
    return {
      'class': jnp.sum(jnp.where((status != IGNORED)[..., None], focal, 0)) / count,
      'box': jnp.sum(box) / count,
    }

  def _goals(self, anchors, boxes, labels):
    """Status, class and deltas of one image's anchors: (N,), (N,), (N, 4)."""
    overlaps = box_ops.iou(anchors, boxes)
    found = match(overlaps, labels >= 0, high=self.high, low=self.low, low_quality=True)
    status = ignore_regions(found.status, anchors, boxes, labels)
    return status, labels[found.index], box_ops.encode(boxes[found.index], anchors)

  def _normaliser(self, count, train: bool):
    """What the losses are divided by on this device."""
    if self.momentum == 0:
      return per_device(count, self.axis_name)
    everywhere = jnp.maximum(total(count, self.axis_name), 1.0)
    mean = self.positives.value
    if train and not self.is_initializing():
      mean = self.momentum * mean + (1 - self.momentum) * everywhere
      self.positives.value = mean
    return mean if self.axis_name is None else mean / lax.axis_size(self.axis_name)
