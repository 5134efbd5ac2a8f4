"""UPerNet: pooled context on the coarsest map, a pyramid, all levels fused.

Paper: Xiao et al., "Unified Perceptual Parsing for Scene Understanding", ECCV 2018, arXiv
1807.10221. Details are mmsegmentation's (Apache-2.0), whose state dicts `convert_dense` reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from rest_jax.models.dense import ConvNorm, DenseModel, backbone_maps
from rest_jax.models.layers import Dtype
from rest_jax.models.semantic import (
  PixelClassifier,
  check_labels,
  enlarge,
  resize_like,
  segmentation_loss,
)
from rest_jax.ops.pooling import adaptive_avg_pool


class UPerHead(nn.Module):
  """The decoder of UPerNet.

  Attributes:
    num_classes: K.
    width: channels.
    pool_sizes: cells a side of the pooled context.
    drop_rate: share of channels dropped before the last convolution.
    bn_axis_name: mapped axis that batch norms are synchronised over.
    dtype: computing dtype.
  """

  num_classes: int
  width: int = 512
  pool_sizes: Sequence[int] = (1, 2, 3, 6)
  drop_rate: float = 0.1
  bn_axis_name: str | None = None
  dtype: Dtype | None = None

  @nn.compact
  def __call__(self, maps, train: bool):
    """Maps (B, H, W, C), fine to coarse -> float32 logits (B, H, W, K) of the first's size."""
    rows = [self._conv(1, f'lateral{i}')(x, train) for i, x in enumerate(maps[:-1])]
    rows.append(self._context(maps[-1], train))
    for i in range(len(rows) - 1, 0, -1):
      rows[i - 1] += resize_like(rows[i], rows[i - 1])
    fine = [self._conv(3, f'fpn{i}')(x, train) for i, x in enumerate(rows[:-1])]
    fused = [resize_like(x, rows[0]) for x in (*fine, rows[-1])]
    x = self._conv(3, 'fpn_bottleneck')(jnp.concatenate(fused, axis=-1), train)
    return PixelClassifier(self.num_classes, self.drop_rate, self.dtype, name='classify')(x, train)

  def _context(self, x, train: bool):
    """The pyramid pooling module: means of cells, beside the map itself."""
    parts = [x]
    for i, size in enumerate(self.pool_sizes):
      pooled = self._conv(1, f'pool{i}')(adaptive_avg_pool(x, size), train)
      parts.append(resize_like(pooled, x))
    return self._conv(3, 'bottleneck')(jnp.concatenate(parts, axis=-1), train)

  def _conv(self, size: int, name: str) -> ConvNorm:
    """A convolution with norm and ReLU, under a name."""
    options: dict[str, Any] = dict(bn_axis_name=self.bn_axis_name, dtype=self.dtype)
    return ConvNorm(self.width, size, name=name, **options)


class FCNHead(nn.Module):
  """The auxiliary head: 3x3 convolutions and a class a pixel.

  Attributes:
    num_classes: K.
    width: channels.
    convs: 3x3 convolutions.
    drop_rate: share of channels dropped before the last convolution.
    bn_axis_name: mapped axis that batch norms are synchronised over.
    dtype: computing dtype.
  """

  num_classes: int
  width: int = 256
  convs: int = 1
  drop_rate: float = 0.1
  bn_axis_name: str | None = None
  dtype: Dtype | None = None

  @nn.compact
  def __call__(self, x, train: bool):
    """(B, H, W, C) -> float32 logits (B, H, W, K)."""
    for i in range(self.convs):
      options: dict[str, Any] = dict(bn_axis_name=self.bn_axis_name, dtype=self.dtype)
      x = ConvNorm(self.width, name=f'conv{i}', **options)(x, train)
    return PixelClassifier(self.num_classes, self.drop_rate, self.dtype, name='classify')(x, train)


class UPerNet(DenseModel):
  """UPerNet on any backbone with four maps, with the auxiliary head on its third.

  Attributes:
    backbone: its method `features` gives the maps.
    num_classes: K.
    width: channels of the decoder.
    aux_width: channels of the auxiliary head.
    aux_weight: of its loss; 0 leaves the head out.
    drop_rate: share of channels dropped before the last convolutions.
    every_pixel: whether the mean of the loss counts pixels to ignore, see `segmentation_loss`.
    bn_axis_name: mapped axis that the heads' batch norms are synchronised over.
    dtype: computing dtype of the heads; logits and losses are float32.
  """

  num_classes: int = 150
  width: int = 512
  aux_width: int = 256
  aux_weight: float = 0.4
  drop_rate: float = 0.1
  every_pixel: bool = True
  bn_axis_name: str | None = None
  dtype: Dtype | None = None

  def setup(self):
    options: dict[str, Any] = dict(
      drop_rate=self.drop_rate, bn_axis_name=self.bn_axis_name, dtype=self.dtype
    )
    self.head = UPerHead(self.num_classes, self.width, **options)
    if self.aux_weight:
      self.aux_head = FCNHead(self.num_classes, self.aux_width, **options)

  def logits(self, images, train: bool = False) -> tuple[jax.Array, jax.Array | None]:
    """Logits of the padded canvas: at a quarter of its size, and the auxiliary ones or None."""
    maps, _, _ = backbone_maps(self.backbone, images, (1, 2, 3, 4), train)
    wanted = self.aux_weight and (train or self.is_initializing())
    return self.head(maps, train), self.aux_head(maps[2], train) if wanted else None

  def __call__(self, images, train: bool = False) -> jax.Array:
    """Logits of every pixel.

    Args:
      images: normalised images, float (B, H, W, C).
      train: batch statistics, dropout and stochastic depth (rng 'dropout').

    Returns:
      float32 (B, H, W, K).

    Raises:
      UserError: images that the backbone cannot read.
    """
    return enlarge(self.logits(images, train)[0], images.shape[1:3])

  def losses(self, images, labels, train: bool = True) -> dict[str, jax.Array]:
    """The losses of a batch; their sum is what training lowers.

    Args:
      images: normalised images, float (B, H, W, C).
      labels: whole numbers (B, H, W): 0..K - 1, or 255 for pixels to ignore.
      train: as `__call__`; without it there is no auxiliary loss.

    Returns:
      {'segment': cross entropy, 'auxiliary': that of the auxiliary head times its weight}.

    Raises:
      UserError: labels of another shape.
    """
    check_labels(images, labels)
    main, auxiliary = self.logits(images, train)
    losses = {'segment': segmentation_loss(main, labels, every_pixel=self.every_pixel)}
    if auxiliary is not None:
      own = segmentation_loss(auxiliary, labels, every_pixel=self.every_pixel)
      losses['auxiliary'] = self.aux_weight * own
    return losses
