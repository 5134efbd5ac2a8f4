"""Mask R-CNN: proposals, boxes, masks.

Paper: He et al., "Mask R-CNN", ICCV 2017, arXiv 1703.06870, with the region proposal network of Ren
et al., "Faster R-CNN", NeurIPS 2015, arXiv 1506.01497, on a feature pyramid; the box head is
Girshick's, "Fast R-CNN", ICCV 2015, arXiv 1504.08083. Details are detectron2's (Apache-2.0), whose
state dicts `convert_dense` reads.

Deviations: proposals, samples and results have fixed numbers, with a mark of what is there;
ROIAlign takes two samples a side of a bin where detectron2 takes as many as the region has pixels;
the targets of masks come from 112x112 frames of the ground truth's boxes, cut on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from rest_jax.models.dense import (
  PADDING,
  Detections,
  DetectorModel,
  Levels,
  Targets,
  backbone_maps,
  best_detections,
  check_targets,
  conv1,
  conv3,
  ignore_regions,
  image_sizes,
  kaiming_normal,
  lying_on,
  per_device,
  strongest,
  undefined_told,
  xavier_uniform,
)
from rest_jax.models.fpn import FPN
from rest_jax.models.layers import Dtype, check_stages, parameter
from rest_jax.models.rpn import Proposals, RPNHead, proposal_losses, propose
from rest_jax.ops import boxes as box_ops
from rest_jax.ops.anchors import pyramid_anchors
from rest_jax.ops.dense_losses import binary_cross_entropy, cross_entropy, smooth_l1
from rest_jax.ops.matching import IGNORED, POSITIVE, match, sample
from rest_jax.ops.paste import crop_masks
from rest_jax.ops.regions import pyramid_roi_align

_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of the second box code: its errors are smaller


class BoxHead(nn.Module):
  """Two hidden layers, then class scores and a box for every class.

  Attributes:
    num_classes: K; the background is class K.
    width: of the hidden layers.
    dtype: computing dtype.
  """

  num_classes: int
  width: int = 1024
  dtype: Dtype | None = None

  @nn.compact
  def __call__(self, x):
    """(T, n, n, C) -> float32 logits (T, K + 1) and box deltas (T, K, 4)."""
    x = x.reshape(x.shape[0], -1)
    dtype = self.dtype or x.dtype
    for i in (1, 2):
      hidden = nn.Dense(self.width, dtype=dtype, kernel_init=xavier_uniform, name=f'fc{i}')
      x = nn.relu(hidden(x))
    outputs, normal = self.num_classes + 1, nn.initializers.normal
    logits = nn.Dense(outputs, dtype=dtype, kernel_init=normal(0.01), name='class_out')(x)
    boxes = nn.Dense(4 * self.num_classes, dtype=dtype, kernel_init=normal(0.001), name='box_out')
    deltas = boxes(x).reshape(-1, self.num_classes, 4)
    return logits.astype(jnp.float32), deltas.astype(jnp.float32)


class MaskHead(nn.Module):
  """3x3 convolutions, a doubling of the size, a mask for every class.

  Attributes:
    num_classes: K.
    convs: 3x3 convolutions.
    width: their channels.
    dtype: computing dtype.
  """

  num_classes: int
  convs: int = 4
  width: int = 256
  dtype: Dtype | None = None

  @nn.compact
  def __call__(self, x):
    """(T, n, n, C) -> float32 logits (T, 2 n, 2 n, K)."""
    for i in range(1, self.convs + 1):
      x = nn.relu(conv3(self.width, kaiming_normal, dtype=self.dtype, name=f'conv{i}')(x))
    x = nn.relu(Doubling(self.width, self.dtype, name='deconv')(x))
    last = nn.initializers.normal(0.001)
    return conv1(self.num_classes, last, dtype=self.dtype, name='out')(x).astype(jnp.float32)


class Doubling(nn.Module):
  """A 2x2 transposed convolution with stride 2: each pixel becomes four, by a matrix each.

  Attributes:
    features: output channels.
    dtype: computing dtype.
  """

  features: int
  dtype: Dtype | None = None

  @nn.compact
  def __call__(self, x):
    n, h, w, c = x.shape
    dtype = self.dtype or x.dtype
    kernel = parameter(self, 'kernel', kaiming_normal, (2, 2, c, self.features)).astype(dtype)
    bias = parameter(self, 'bias', nn.initializers.zeros, (self.features,)).astype(dtype)
    out = jnp.einsum('nhwc,ijcd->nhiwjd', x.astype(dtype), kernel)
    return out.reshape(n, 2 * h, 2 * w, self.features) + bias[None, None, None]


class Regions(NamedTuple):
  """What the heads learn from: drawn proposals of one image, the positives first.

  Attributes:
    boxes: (S, 4).
    valid: (S,) which are there.
    label: (S,) class of the ground truth; K, the background, for the rest.
    index: (S,) ground truth of the positives.
  """

  boxes: jax.Array
  valid: jax.Array
  label: jax.Array
  index: jax.Array


class MaskRCNN(DetectorModel):
  """Mask R-CNN on any backbone with four maps.

  Attributes:
    backbone: its method `features` gives the maps.
    num_classes: K, without background.
    masks: False leaves the mask head out (Faster R-CNN).
    stages: of the backbone that the pyramid stands on.
    width: channels of the pyramid and of the convolutions of the heads.
    box_width: hidden layers of the box head.
    convs: 3x3 convolutions of the mask head.
    anchor_scale: side of a level's anchors, in strides.
    ratios: of the anchors, height over width.
    box_size: bins of ROIAlign a side for the box head.
    mask_size: likewise for the mask head; masks have twice as many samples a side.
    canonical: side of a region that is read from the level of stride 16, in pixels.
    proposal_candidates: best anchors that a level puts forward, in training and in use.
    proposals: regions of an image after suppression, in training and in use.
    anchors_drawn: of an image for the losses of the proposals.
    regions_drawn: of an image for the losses of the heads.
    positive_share: most of those that may be positive.
    score_threshold: least score of a result.
    nms_threshold: IoU from which the weaker of two results of a class goes.
    max_detections: results of an image.
    axis_name: mapped axis over which regions are counted.
    dtype: computing dtype of pyramid and heads; losses and boxes are float32.
  """

  num_classes: int = 80
  masks: bool = True
  stages: Sequence[int] = (1, 2, 3, 4)
  width: int = 256
  box_width: int = 1024
  convs: int = 4
  anchor_scale: float = 8.0
  ratios: Sequence[float] = (0.5, 1.0, 2.0)
  box_size: int = 7
  mask_size: int = 14
  canonical: float = 224.0
  proposal_candidates: Sequence[int] = (2000, 1000)
  proposals: Sequence[int] = (1000, 1000)
  anchors_drawn: int = 256
  regions_drawn: int = 512
  positive_share: float = 0.25
  score_threshold: float = 0.05
  nms_threshold: float = 0.5
  max_detections: int = 100
  axis_name: str | None = None
  dtype: Dtype | None = None

  def setup(self):
    check_stages(self.stages, 0)
    self.fpn = FPN(tuple(stage + 1 for stage in self.stages), self.width, self.dtype)
    self.rpn = RPNHead(len(self.ratios), self.width, self.dtype)
    self.box_head = BoxHead(self.num_classes, self.box_width, self.dtype)
    if self.masks:
      self.mask_head = MaskHead(self.num_classes, self.convs, self.width, self.dtype)

  def pyramid(self, images, train: bool = False):
    """Maps and strides of the pyramid for normalised images (B, H, W, C), fine to coarse."""
    maps, strides, _ = backbone_maps(self.backbone, images, self.stages, train)
    return self.fpn(maps), strides

  def proposal_levels(self, pyramid, strides) -> Levels:
    """Outputs of the proposal network; its last level is every second pixel of the pyramid's."""
    maps = (*pyramid, pyramid[-1][:, ::2, ::2])
    strides = (*strides, 2 * strides[-1])
    sizes = [(self.anchor_scale * stride,) for stride in strides]
    anchors = pyramid_anchors([m.shape[1:3] for m in maps], strides, sizes, self.ratios)
    logits, deltas = zip(*(self.rpn(m) for m in maps), strict=True)
    return Levels(logits, deltas, tuple(anchors))

  def detect(self, images, sizes, train: bool) -> Detections:
    """Objects and their masks; see `DetectorModel`."""
    pyramid, strides = self.pyramid(images, train)
    levels = self.proposal_levels(pyramid, strides)
    found = self._propose(levels, sizes, train=False)
    read = self._read(pyramid, found.boxes, strides, self.box_size)
    logits, deltas = self._box_outputs(read)
    outputs = [*levels.logits, *levels.deltas, logits, deltas]
    detections = jax.vmap(self._select_one)(logits, deltas, *found, sizes)
    if self.masks:
      masks = self._masks(pyramid, strides, detections)
      detections, outputs = detections._replace(masks=masks), [*outputs, masks]
    return undefined_told(detections, outputs)

  def _propose(self, levels: Levels, sizes, train: bool) -> Proposals:
    """The regions that the heads look at, as many as in training or in use."""
    place = 0 if train else 1
    before, after = self.proposal_candidates[place], self.proposals[place]
    return propose(levels, sizes, before=before, after=after)

  def _read(self, pyramid, boxes, strides, size: int):
    """ROIAlign of every image's regions: (B, T, size, size, C)."""

    def one(image):
      maps, own = image
      return pyramid_roi_align(maps, own, strides, size, canonical=self.canonical)

    return lax.map(one, (pyramid, boxes))

  def _box_outputs(self, read):
    """Class scores and deltas of (B, T, n, n, C): (B, T, K + 1), (B, T, K, 4)."""
    batch, count = read.shape[:2]
    logits, deltas = self.box_head(read.reshape(-1, *read.shape[2:]))
    return logits.reshape(batch, count, -1), deltas.reshape(batch, count, self.num_classes, 4)

  def _select_one(self, logits, deltas, proposals, valid, size) -> Detections:
    """The results of one image among its proposals."""
    scores = jax.nn.softmax(logits, axis=-1)[:, :-1]
    bad = (scores <= self.score_threshold) | ~valid[:, None]  # NaN stays
    boxes = box_ops.decode(deltas, proposals[:, None], _WEIGHTS)
    boxes = box_ops.clip(boxes, size).reshape(-1, 4)
    labels = jnp.tile(jnp.arange(self.num_classes, dtype=jnp.int32), scores.shape[0])
    flat = jnp.where(bad, -jnp.inf, scores).ravel()
    return best_detections(boxes, flat, labels, self.nms_threshold, self.max_detections)

  def _masks(self, pyramid, strides, detections: Detections):
    """Masks of the predicted classes, (B, D, m, m)."""
    read = self._read(pyramid, detections.boxes, strides, self.mask_size)
    logits = self._mask_logits(read, jnp.maximum(detections.labels, 0))
    return jnp.where(detections.valid[..., None, None], jax.nn.sigmoid(logits), 0)

  def _mask_logits(self, read, labels):
    """Logits of one class's mask for each region: (B, T, n, n, C), (B, T) -> (B, T, m, m)."""
    every = self.mask_head(read.reshape(-1, *read.shape[2:]))
    own = jnp.take_along_axis(every, labels.reshape(-1, 1, 1, 1), axis=-1)[..., 0]
    return own.reshape(*labels.shape, *own.shape[1:])

  def presence(self, images, box, label, sizes=None):
    """How sure it is that an object of a class is at a place: a logit, which has a gradient.

    It is the largest log odds of the class among the proposals whose result lies on the place (IoU
    of `nms_threshold` or more, of which suppression would leave one), so its sigmoid is the score
    of what was found there; where no result does, that of the place itself as a proposal. The
    choice of proposals has no gradient.

    Args:
      images: normalised images on a canvas, float (B, H, W, C).
      box: (4,) corners in pixels of the canvas.
      label: whole number, 0..K - 1.
      sizes: as `__call__`.

    Returns:
      float32 (B,).
    """
    sizes = image_sizes(images, sizes)
    pyramid, strides = self.pyramid(images)
    found = self._propose(self.proposal_levels(pyramid, strides), sizes, train=False)
    place = jnp.broadcast_to(box, (images.shape[0], 1, 4))
    regions = jnp.concatenate([place, found.boxes], axis=1)
    logits, deltas = self._box_outputs(self._read(pyramid, regions, strides, self.box_size))
    results = box_ops.decode(jnp.take(deltas, label, axis=2), regions, _WEIGHTS)
    results = jax.vmap(box_ops.clip)(results, sizes)
    on_it = lying_on(results[:, 1:], box, self.nms_threshold) & found.valid
    on_it = jnp.pad(on_it, ((0, 0), (1, 0)))
    return strongest(_log_odds(logits, label), on_it, jnp.arange(regions.shape[1]) == 0)

  def losses(self, images, targets: Targets, train: bool = True) -> dict[str, jax.Array]:
    """The losses of a batch; their sum is what training lowers.

    Args:
      images: normalised images on a canvas, float (B, H, W, C).
      targets: ground truth in pixels of the canvas; with masks, unless `masks` is False.
      train: as `__call__`. Anchors and regions are drawn by the rng 'dropout' either way.

    Returns:
      {'rpn_class', 'rpn_box', 'class', 'box', 'mask'}: float32 scalars.

    Raises:
      UserError: targets that do not fit.
    """
    check_targets(images, targets, self.masks)
    keys = jax.random.split(self.make_rng('dropout'), 2)
    pyramid, strides = self.pyramid(images, train)
    levels = self.proposal_levels(pyramid, strides)
    found = self._propose(levels, image_sizes(images, targets.sizes), train=True)
    regions = self._draw(keys[1], found, targets)
    drawn = proposal_losses(levels, targets, keys[0], count=self.anchors_drawn)
    losses = drawn | self._box_losses(pyramid, strides, regions, targets)
    if self.masks:
      losses |= {'mask': self._mask_loss(pyramid, strides, regions, targets)}
    return losses

  def _draw(self, key, found: Proposals, targets: Targets) -> Regions:
    """Proposals and ground truth itself, matched and drawn for every image."""

    def one(key, boxes, valid, goals, labels):
      every = jnp.concatenate([boxes, goals])
      there = jnp.concatenate([valid, labels >= 0])
      matched = match(box_ops.iou(every, goals), labels >= 0, high=0.5, low=0.5, low_quality=False)
      status = ignore_regions(matched.status, every, goals, labels)
      status = jnp.where(there, status, IGNORED)
      most = int(self.regions_drawn * self.positive_share)
      index, drawn = sample(key, status, self.regions_drawn, most)
      positive = drawn & (status[index] == POSITIVE)
      own = matched.index[index]
      label = jnp.where(positive, labels[own], self.num_classes)
      return Regions(every[index], drawn, label, own)

    keys = jax.random.split(key, found.boxes.shape[0])
    return lax.stop_gradient(jax.vmap(one)(keys, *found, targets.boxes, targets.labels))

  def _box_losses(self, pyramid, strides, regions: Regions, targets: Targets):
    """Cross entropy over the drawn regions, L1 of the deltas of the true class."""
    logits, deltas = self._box_outputs(self._read(pyramid, regions.boxes, strides, self.box_size))
    positive = regions.label < self.num_classes
    own = jnp.where(positive, regions.label, 0)
    goals = jnp.take_along_axis(targets.boxes, regions.index[..., None], axis=1)
    code = box_ops.encode(goals, regions.boxes, _WEIGHTS)
    delta = jnp.take_along_axis(deltas, own[..., None, None], axis=2)[:, :, 0]
    box = smooth_l1(jnp.where(positive[..., None], delta - code, 0), 0.0)
    label = jnp.where(regions.valid, regions.label, PADDING)
    drawn = per_device(jnp.sum(regions.valid).astype(jnp.float32), self.axis_name)
    entropy = cross_entropy(logits, label, PADDING)
    return {'class': jnp.sum(entropy) / drawn, 'box': jnp.sum(box) / drawn}

  def _mask_loss(self, pyramid, strides, regions: Regions, targets: Targets):
    """Cross entropy of the true class's mask, the mean over positives and samples."""
    most = int(self.regions_drawn * self.positive_share)
    boxes, _, label, index = (part[:, :most] for part in regions)
    positive = label < self.num_classes
    read = self._read(pyramid, boxes, strides, self.mask_size)
    logits = self._mask_logits(read, jnp.where(positive, label, 0))
    goals = _mask_goals(targets, boxes, index, logits.shape[-1])
    entropy = jnp.mean(binary_cross_entropy(logits, goals), axis=(2, 3))
    count = per_device(jnp.sum(positive).astype(jnp.float32), self.axis_name)
    return jnp.sum(jnp.where(positive, entropy, 0)) / count


def _log_odds(logits, label):
  """Of one class against all the others, the background too: (..., K + 1) -> (...)."""
  own = jnp.arange(logits.shape[-1]) == label
  others = jnp.where(own.reshape((1,) * (logits.ndim - 1) + (-1,)), -jnp.inf, logits)
  return jnp.take(logits, label, axis=-1) - jax.nn.logsumexp(others, axis=-1)


def _mask_goals(targets: Targets, boxes, index, size: int):
  """What the masks of drawn regions should be: 0 or 1, (B, T, size, size)."""

  def one(masks, frames, boxes, index):
    return crop_masks(masks[index], frames[index], boxes, size) >= 0.5

  cut = jax.vmap(one)(targets.masks, targets.boxes, boxes, index)
  return cut.astype(jnp.float32)
