"""Semantic FPN: the levels of a pyramid brought to one size and added.

Paper: Kirillov et al., "Panoptic Feature Pyramid Networks", CVPR 2019, arXiv 1901.02446, section
3.1. Details are mmsegmentation's (Apache-2.0), whose state dicts `convert_dense` reads.
"""

from __future__ import annotations

import math
from typing import Any

import jax
from flax import linen as nn

from rest_jax.errors import UserError
from rest_jax.models.dense import NORMS, ConvNorm, DenseModel, backbone_maps
from rest_jax.models.fpn import FPN
from rest_jax.models.layers import Dtype
from rest_jax.models.semantic import (
  PixelClassifier,
  check_labels,
  enlarge,
  resize_like,
  segmentation_loss,
)
from rest_jax.ops.resize import resize_bilinear


class SemanticFPNHead(nn.Module):
  """3x3 convolutions on every level, doubled in size after each until all have the finest's.

  Attributes:
    num_classes: K.
    width: channels.
    norm: 'bn' (mmsegmentation) or 'gn' (the paper).
    drop_rate: share of channels dropped before the last convolution.
    bn_axis_name: mapped axis that batch norms are synchronised over.
    dtype: computing dtype.
  """

  num_classes: int
  width: int = 128
  norm: str = 'bn'
  drop_rate: float = 0.1
  bn_axis_name: str | None = None
  dtype: Dtype | None = None

  @nn.compact
  def __call__(self, maps, train: bool):
    """Maps (B, H, W, C), fine to coarse -> float32 logits (B, H, W, K) of the first's size."""
    merged = None
    for i, x in enumerate(maps):
      halvings = round(math.log2(maps[0].shape[1] / x.shape[1]))
      for k in range(max(halvings, 1)):
        x = self._conv(f'scale{i}_{k}')(x, train)
        if halvings:
          x = resize_bilinear(x, (2 * x.shape[1], 2 * x.shape[2]))
      merged = x if merged is None else merged + resize_like(x, maps[0])
    classify = PixelClassifier(self.num_classes, self.drop_rate, self.dtype, name='classify')
    return classify(merged, train)

  def _conv(self, name: str) -> ConvNorm:
    """A convolution with norm and ReLU, under a name."""
    options: dict[str, Any] = dict(norm=self.norm, bn_axis_name=self.bn_axis_name, dtype=self.dtype)
    return ConvNorm(self.width, name=name, **options)


class SemanticFPN(DenseModel):
  """Semantic FPN on any backbone with four maps.

  Attributes:
    backbone: its method `features` gives the maps.
    num_classes: K.
    fpn_width: channels of the pyramid.
    width: channels of the head.
    norm: of the head, 'bn' or 'gn'.
    drop_rate: share of channels dropped before the last convolution.
    every_pixel: whether the mean of the loss counts pixels to ignore, see `segmentation_loss`.
    bn_axis_name: mapped axis that the head's batch norms are synchronised over.
    dtype: computing dtype of pyramid and head; logits and losses are float32.
  """

  num_classes: int = 150
  fpn_width: int = 256
  width: int = 128
  norm: str = 'bn'
  drop_rate: float = 0.1
  every_pixel: bool = True
  bn_axis_name: str | None = None
  dtype: Dtype | None = None

  def setup(self):
    if self.norm not in NORMS:
      raise UserError(f'norm is {" or ".join(NORMS)}, got {self.norm!r}')
    self.fpn = FPN((2, 3, 4, 5), self.fpn_width, self.dtype)
    self.head = SemanticFPNHead(
      self.num_classes, self.width, self.norm, self.drop_rate, self.bn_axis_name, self.dtype
    )

  def logits(self, images, train: bool = False) -> jax.Array:
    """Logits of the padded canvas, (B, h, w, K) at the size of the backbone's first map."""
    maps, _, _ = backbone_maps(self.backbone, images, (1, 2, 3, 4), train)
    return self.head(self.fpn(maps), train)

  def __call__(self, images, train: bool = False) -> jax.Array:
    """Logits of every pixel; as `UPerNet.__call__`."""
    return enlarge(self.logits(images, train), images.shape[1:3])

  def losses(self, images, labels, train: bool = True) -> dict[str, jax.Array]:
    """{'segment': cross entropy}; arguments and errors as `UPerNet.losses`."""
    check_labels(images, labels)
    logits = self.logits(images, train)
    return {'segment': segmentation_loss(logits, labels, every_pixel=self.every_pixel)}
