"""What detectors and segmenters share: targets, results, maps of a backbone, small layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from rest_jax.data.canvas import PADDING, REGION
from rest_jax.errors import UserError
from rest_jax.inputs import is_known
from rest_jax.models.layers import BatchNorm, Conv, Dtype
from rest_jax.ops.boxes import area, intersection, iou
from rest_jax.ops.matching import IGNORED, NEGATIVE
from rest_jax.ops.suppression import nms

NORMS = ('bn', 'gn')
MULTIPLE = 32  # that the sides of a canvas are padded to

# Detectron2's `c2_xavier_fill`: uniform within sqrt(3 / fan_in).
xavier_uniform = nn.initializers.variance_scaling(1.0, 'fan_in', 'uniform')
# Detectron2's `c2_msra_fill`, and what mmcv gives a convolution before a norm.
kaiming_normal = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


class Targets(NamedTuple):
  """Ground truth of a batch, padded to G objects an image.

  Attributes:
    boxes: float32 (B, G, 4), corners in pixels of the canvas; zeros for padding.
    labels: int32 (B, G): 0..K - 1; -1 padding; -2 a region to ignore (a crowd, an object that can
      hardly be seen): what lies in it is neither object nor background.
    masks: (B, G, m, m) in the frame of each box, values in [0, 1]; None where nothing has a mask.
    sizes: (B, 2) height and width of each image in its canvas; None for the whole canvas.
  """

  boxes: jax.Array
  labels: jax.Array
  masks: Any = None
  sizes: Any = None


class Levels(NamedTuple):
  """Outputs of a head on the levels of a pyramid, a float32 array of each.

  Attributes:
    logits: (B, N) of being an object, or (B, N, K) of each class.
    deltas: (B, N, 4).
    anchors: (N, 4) corners in pixels, in the order of the outputs.
  """

  logits: tuple[jax.Array, ...]
  deltas: tuple[jax.Array, ...]
  anchors: tuple[Any, ...]

  def joined(self) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Anchors, logits and deltas of all levels, one after another."""
    anchors = jnp.concatenate([jnp.asarray(a) for a in self.anchors])
    logits, deltas = (jnp.concatenate(part, axis=1) for part in (self.logits, self.deltas))
    return anchors, logits, deltas


class Detections(NamedTuple):
  """What a detector found, by falling score, padded to D objects an image.

  Attributes:
    boxes: float32 (B, D, 4), corners in pixels of the canvas, inside of the image.
    scores: float32 (B, D) in [0, 1]; 0 for padding; NaN for an image of which some output of the
      network is no number.
    labels: int32 (B, D), 0..K - 1; -1 for padding.
    valid: bool (B, D).
    masks: float32 (B, D, 28, 28) in the frame of each box, values in [0, 1] (`ops.paste_masks`
      lays them onto the image); None of a detector of boxes.
  """

  boxes: jax.Array
  scores: jax.Array
  labels: jax.Array
  valid: jax.Array
  masks: Any = None


def check_sizes(images: Any, sizes: Any) -> None:
  """Refuses sizes of pictures that their canvases do not hold; of their shape says `normalise`.

  Args:
    images: canvases (B, H, W, C).
    sizes: (B, 2) height and width of each picture; under jit they cannot be looked at.

  Raises:
    UserError: no whole numbers from 1 to the canvas's.
  """
  if sizes is None or not is_known(sizes) or np.ndim(sizes) != 2 or np.ndim(images) != 4:
    return
  found, canvas = np.asarray(sizes), np.shape(images)[1:3]
  if (found != np.floor(found)).any() or (found < 1).any() or (found > canvas).any():
    raise UserError(
      f'sizes are whole numbers of pixels, from 1 to the {canvas[0]}x{canvas[1]} of the canvas, '
      f'got {found.min():g} to {found.max():g}'
    )


def normalise(
  images: jax.Array, sizes: jax.Array | None, mean: Sequence[float], std: Sequence[float]
) -> jax.Array:
  """Pixels as a backbone takes them; what is beyond an image's size becomes 0, after the mean.

  Args:
    images: canvases (B, H, W, C), uint8 of 0..255 or floats in [0, 1].
    sizes: (B, 2) height and width of each image in its canvas; None for the whole canvas.
    mean: a value a channel, in units of [0, 1].
    std: likewise.

  Returns:
    float32 (B, H, W, C).

  Raises:
    UserError: another rank or channel count, or sizes of another shape.
  """
  if images.ndim != 4 or images.shape[-1] != len(mean) or len(mean) != len(std):
    raise UserError(f'canvases are (B, H, W, {len(mean)}), got shape {tuple(images.shape)}')
  whole = jnp.issubdtype(images.dtype, jnp.integer)
  pixels = images.astype(jnp.float32) / (255.0 if whole else 1.0)
  row = [jnp.asarray(v, jnp.float32)[None, None, None] for v in (mean, std)]
  pixels = (pixels - row[0]) / row[1]
  if sizes is None:
    return pixels
  limits = image_sizes(images, sizes)
  y, x = (jnp.arange(side, dtype=jnp.float32) for side in images.shape[1:3])
  inside = (y[None, :, None] < limits[:, 0, None, None]) & (
    x[None, None] < limits[:, 1, None, None]
  )
  return jnp.where(inside[..., None], pixels, 0)


def pad_to_multiple(images: jax.Array, multiple: int = MULTIPLE) -> jax.Array:
  """Adds zeros below and to the right of (B, H, W, C) until `multiple` divides both sides."""
  height, width = (-side % multiple for side in images.shape[1:3])
  return jnp.pad(images, ((0, 0), (0, height), (0, width), (0, 0)))


def backbone_maps(
  backbone: nn.Module, images: jax.Array, stages: Sequence[int], train: bool
) -> tuple[tuple[jax.Array, ...], tuple[int, ...], tuple[int, int]]:
  """The maps of some stages of a canvas padded to multiples of 32.

  Attention over the whole image and instance norms see the padding, so what comes out depends on
  the canvas: judge on the smallest one.

  Args:
    backbone: a model whose method `features` gives four maps.
    images: normalised images, float (B, H, W, C).
    stages: of 1 to 4.
    train: passed on.

  Returns:
    (maps, their strides, (height, width) of the padded canvas).
  """
  padded = pad_to_multiple(images, MULTIPLE)
  maps = backbone.features(padded, train)  # type: ignore[attr-defined]
  maps = tuple(maps[stage - 1] for stage in stages)
  height, width = padded.shape[1:3]
  return maps, tuple(height // m.shape[1] for m in maps), (height, width)


def image_sizes(images: jax.Array, sizes: jax.Array | None) -> jax.Array:
  """(B, 2) float32 heights and widths: the given ones, or those of the canvas.

  Raises:
    UserError: another shape.
  """
  if sizes is None:
    sizes = jnp.asarray(images.shape[1:3], jnp.float32)[None]
    return jnp.broadcast_to(sizes, (images.shape[0], 2))
  if sizes.shape != (images.shape[0], 2):
    raise UserError(
      f'sizes are (B, 2), height and width of each image in its canvas, got {sizes.shape} for '
      f'{images.shape[0]} images'
    )
  return sizes.astype(jnp.float32)


def check_targets(images: jax.Array, targets: Targets, masks: bool) -> None:
  """Refuses ground truth that does not fit its images.

  Raises:
    UserError: another shape, or no masks where they are learnt.
  """
  shape = tuple(targets.boxes.shape)
  if len(shape) != 3 or shape[0] != images.shape[0] or shape[2] != 4:
    raise UserError(f'target boxes are (B, G, 4), got {shape} for {images.shape[0]} images')
  if tuple(targets.labels.shape) != shape[:2]:
    raise UserError(f'target labels are (B, G) {shape[:2]}, got {tuple(targets.labels.shape)}')
  if masks and (targets.masks is None or tuple(targets.masks.shape[:2]) != shape[:2]):
    got = None if targets.masks is None else tuple(targets.masks.shape)
    raise UserError(f'a detector of masks learns from masks (B, G, m, m), got {got}')


def ignore_regions(
  status: jax.Array, anchors: jax.Array, boxes: jax.Array, labels: jax.Array, share: float = 0.5
) -> jax.Array:
  """Takes what lies in a region to ignore out of the background.

  Args:
    status: (N,) of the anchors, see `ops.matching`.
    anchors: (N, 4).
    boxes: (G, 4) ground truth of one image.
    labels: (G,), -2 where a box is such a region.
    share: least part of an anchor's own area that lies in the region.

  Returns:
    The status, IGNORED where it was NEGATIVE.
  """
  common = intersection(anchors, boxes) >= share * area(anchors)[:, None]
  within = jnp.any(common & (labels == REGION)[None], axis=1)
  return jnp.where(within & (status == NEGATIVE), IGNORED, status)


def best_detections(
  boxes: jax.Array, scores: jax.Array, labels: jax.Array, threshold: float, count: int
) -> Detections:
  """One image's results: no two of a class on one place, and none that lies in the padding.

  Args:
    boxes: (N, 4), clipped to the image: what was found beyond its border has no area left.
    scores: (N,); -inf does not count; with a NaN among them all of the results' scores are NaN.
    labels: (N,) whole numbers.
    threshold: IoU from which the weaker of two results of a class goes.
    count: D; the rest is padded with zeros and labels of -1.

  Returns:
    The detections, without the axis of the batch.
  """
  kept = nms(boxes, scores, threshold, count=count, groups=labels, valid=area(boxes) > 0)
  return Detections(
    boxes=jnp.where(kept.valid[:, None], boxes[kept.index], 0),
    # A score that is no number is no result, and not nothing either: all say so.
    scores=jnp.where(
      jnp.isnan(scores).any(), jnp.nan, jnp.where(kept.valid, scores[kept.index], 0)
    ),
    labels=jnp.where(kept.valid, labels[kept.index].astype(jnp.int32), PADDING),
    valid=kept.valid,
  )


def undefined_told(found: Detections, outputs: Sequence[jax.Array]) -> Detections:
  """Scores of NaN for an image of which some output is no number.

  Comparisons pass over such boxes, proposals and masks, and what is left looks like an image on
  which nothing was found.

  Args:
    found: of a batch.
    outputs: of the heads, (B, ...) each; -inf is a number, of a class that is ruled out.
  """
  broken = [~(x < jnp.inf).all(tuple(range(1, x.ndim))) for x in outputs]
  bad = jnp.stack(broken).any(0)
  return found._replace(scores=jnp.where(bad[:, None], jnp.nan, found.scores))


def lying_on(boxes: jax.Array, box: jax.Array, threshold: float) -> jax.Array:
  """Which boxes are results for a place: (..., N, 4), (4,) -> (..., N) bool, without gradient.

  Args:
    boxes: results.
    box: the place.
    threshold: least IoU; from it on suppression takes two results for one.
  """
  boxes = lax.stop_gradient(boxes)
  place = jnp.broadcast_to(box, (*boxes.shape[:-2], 1, 4))
  return iou(boxes, place)[..., 0] >= threshold


def strongest(logits: jax.Array, found: jax.Array, otherwise: jax.Array) -> jax.Array:
  """The largest logit of those found, of the others where none is: (B, N), bool -> (B,).

  Args:
    logits: (B, N).
    found: (B, N), which count.
    otherwise: (N,), which count where none is found; one at least.
  """
  chosen = jnp.where(jnp.any(found, axis=1, keepdims=True), found, otherwise[None])
  return jnp.max(jnp.where(chosen, logits, -jnp.inf), axis=1)


def total(value: jax.Array, axis_name: str | None) -> jax.Array:
  """The sum over a mapped axis, or the value itself without one."""
  return value if axis_name is None else lax.psum(value, axis_name)


def per_device(count: jax.Array, axis_name: str | None) -> jax.Array:
  """A count of the whole batch, at least 1, as each device divides by it.

  The devices' losses are averaged, so each divides by its share of the count.
  """
  share = jnp.maximum(total(count, axis_name), 1.0)
  return share if axis_name is None else share / lax.axis_size(axis_name)


class DenseModel(nn.Module):
  """What detectors and segmenters are: a head on the maps of a backbone.

  Attributes:
    backbone: its method `features` gives four maps.
  """

  backbone: nn.Module

  @property
  def in_channels(self) -> int:
    """Channels of the images."""
    return getattr(self.backbone, 'in_channels', 3)


class DetectorModel(DenseModel):
  """What detectors are called with; each has a method `detect`."""

  def __call__(self, images, train: bool = False, sizes=None) -> Detections:
    """Finds objects, and their masks where the detector has them.

    Args:
      images: normalised images on a canvas, float (B, H, W, C), padded with zeros.
      train: batch statistics, dropout and stochastic depth (rng 'dropout').
      sizes: (B, 2) height and width of each image in its canvas; the whole canvas by default.

    Returns:
      The detections.

    Raises:
      UserError: images that the backbone cannot read, or sizes of another shape.
    """
    return self.detect(images, image_sizes(images, sizes), train)

  def detect(self, images, sizes: jax.Array, train: bool) -> Detections:
    """`__call__` with float sizes."""
    raise NotImplementedError


class ConvNorm(nn.Module):
  """Convolution without bias, norm, ReLU: mmsegmentation's `ConvModule`.

  Attributes:
    features: output channels.
    kernel_size: side of the kernel; padding keeps the size.
    norm: 'bn', batch norm, or 'gn', group norm of 32 groups.
    bn_axis_name: mapped axis that the batch norm is synchronised over.
    dtype: computing dtype.
  """

  features: int
  kernel_size: int = 3
  norm: str = 'bn'
  bn_axis_name: str | None = None
  dtype: Dtype | None = None

  @nn.compact
  def __call__(self, x, train: bool):
    x = Conv(
      self.features,
      self.kernel_size,
      padding=self.kernel_size // 2,
      use_bias=False,
      kernel_init=kaiming_normal,
      dtype=self.dtype,
      name='conv',
    )(x)
    if self.norm == 'gn':
      return nn.relu(nn.GroupNorm(32, epsilon=1e-5, dtype=x.dtype, name='norm')(x))
    norm = BatchNorm(axis_name=self.bn_axis_name, dtype=self.dtype, name='norm')
    return nn.relu(norm(x, train))


def conv3(features: int, init, *, stride: int = 1, **options: Any) -> Conv:
  """A 3x3 convolution with bias that keeps the size, or halves it."""
  return Conv(features, 3, stride, padding=1, kernel_init=init, **options)


def conv1(features: int, init, **options: Any) -> Conv:
  """A 1x1 convolution with bias."""
  return Conv(features, 1, kernel_init=init, **options)
