"""ResNet: the other backbone of the papers.

Paper: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385.
Semantics and weight names are torchvision's (BSD-3-Clause): the stride of a bottleneck is in its
3x3 convolution ("v1.5"), padding is the same on all sides, convolutions start from Kaiming's normal
over the fan-out. The CIFAR stem is section 4.2's: one 3x3 convolution, no pooling.

Deviations: the head starts as the other models' do (normal 0.02, zero bias).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from rest_jax.errors import UserError
from rest_jax.models.compression import compressors, end_stage
from rest_jax.models.layers import BatchNorm, Conv, Dense, Dtype, check_images, check_stages
from rest_jax.models.registry import register
from rest_jax.ops.pooling import max_pool
from rest_jax.ops.reduce import wide_type

_kaiming = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


def _conv(width: int, size: int, stride: int, dtype, name: str) -> Conv:
  """A convolution as all here are: no bias, zeros on every side up to half the kernel."""
  return Conv(
    width, size, stride, size // 2, use_bias=False, kernel_init=_kaiming, dtype=dtype, name=name
  )


def _batch_norm(module, name: str, scale_init=nn.initializers.ones) -> BatchNorm:
  return BatchNorm(
    axis_name=module.bn_axis_name,
    frozen=module.bn_frozen,
    scale_init=scale_init,
    dtype=module.dtype,
    name=name,
  )


class Stem(nn.Module):
  """7x7/2 convolution and 3x3/2 max pooling, or one 3x3 convolution for small images."""

  width: int
  cifar: bool
  bn_axis_name: str | None = None
  bn_frozen: bool = False
  dtype: Dtype | None = None

  @nn.compact
  def __call__(self, x, train: bool):
    size, stride = (3, 1) if self.cifar else (7, 2)
    x = _conv(self.width, size, stride, self.dtype, 'conv')(x)
    x = nn.relu(_batch_norm(self, 'norm')(x, train))
    if self.cifar:
      return x
    return max_pool(x, 3, 2, padding=1)


class Block(nn.Module):
  """Residual block: two 3x3 convolutions, or 1x1, 3x3, 1x1 to four times the width."""

  width: int
  stride: int
  bottleneck: bool
  zero_init_last: bool
  bn_axis_name: str | None = None
  bn_frozen: bool = False
  dtype: Dtype | None = None

  @nn.compact
  def __call__(self, x, train: bool):
    w = self.width
    steps = ((w, 3, self.stride), (w, 3, 1))
    if self.bottleneck:
      steps = ((w, 1, 1), (w, 3, self.stride), (4 * w, 1, 1))
    out = x
    for i, (width, size, stride) in enumerate(steps, 1):
      last = i == len(steps)
      out = _conv(width, size, stride, self.dtype, f'conv{i}')(out)
      out = self._norm(f'norm{i}', zero=last and self.zero_init_last)(out, train)
      out = out if last else nn.relu(out)
    if self.stride != 1 or x.shape[-1] != out.shape[-1]:
      x = _conv(out.shape[-1], 1, self.stride, self.dtype, 'shortcut_conv')(x)
      x = self._norm('shortcut_norm')(x, train)
    return nn.relu(out + x)

  def _norm(self, name: str, zero: bool = False) -> BatchNorm:
    return _batch_norm(self, name, nn.initializers.zeros if zero else nn.initializers.ones)


class Stage(nn.Module):
  """The blocks of one resolution, 'block0' onwards; the first one has the stride."""

  depth: int
  stride: int
  remat: bool
  block: dict[str, Any]

  @nn.compact
  def __call__(self, x, train: bool):
    block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
    for i in range(self.depth):
      x = block(stride=self.stride if i == 0 else 1, name=f'block{i}', **self.block)(x, train)
    return x


class ResNet(nn.Module):
  """ResNet with basic or bottleneck blocks.

  Attributes:
    num_classes: outputs; 0 for no head (the pooled features).
    depths: blocks of the four stages.
    width: channels of the first stage's 3x3 convolutions; doubles at every stage.
    bottleneck: 1x1, 3x3, 1x1 blocks that give four times the width.
    cifar_stem: one 3x3 convolution in place of the 7x7/2 and the pooling.
    zero_init_last: a block's last scale starts at 0, so that every block starts as the identity.
    remat: recompute each block in the backward pass instead of storing it.
    compression: of frequency bands after stages: a strategy or options, see `models.compression`.
    frozen_stages: stem and stages up to this one run as in evaluation and get no gradient; 0: none.
    in_channels: channels of the input.
    bn_axis_name: mapped axis that batch norms are synchronised over; None: per device.
    bn_frozen: batch norms keep their statistics, scale and bias in training, see `BatchNorm`.
    dtype: computing dtype (parameters and logits stay float32).
  """

  num_classes: int = 1000
  depths: Sequence[int] = (2, 2, 2, 2)
  width: int = 64
  bottleneck: bool = False
  cifar_stem: bool = False
  zero_init_last: bool = False
  remat: bool = False
  compression: Any = None
  frozen_stages: int = 0
  in_channels: int = 3
  bn_axis_name: str | None = None
  bn_frozen: bool = False
  dtype: Dtype | None = None

  def setup(self):
    if len(self.depths) != 4 or min(self.depths) < 1:
      raise UserError(f'depths takes four numbers of 1 or more, got {self.depths}')
    check_stages((1, 2, 3, 4), self.frozen_stages)
    norms: dict[str, Any] = dict(bn_axis_name=self.bn_axis_name, bn_frozen=self.bn_frozen)
    self.stem = Stem(self.width, self.cifar_stem, dtype=self.dtype, **norms)
    self.stage1, self.stage2, self.stage3, self.stage4 = (self._stage(i) for i in range(4))
    for name, layer in compressors(self.compression):
      setattr(self, name, layer)
    if self.num_classes:
      self.head = Dense(self.num_classes, dtype=self.dtype)

  def _stage(self, i: int) -> Stage:
    block = dict(
      width=self.width * 2**i,
      bottleneck=self.bottleneck,
      zero_init_last=self.zero_init_last,
      bn_axis_name=self.bn_axis_name,
      bn_frozen=self.bn_frozen,
      dtype=self.dtype,
    )
    return Stage(self.depths[i], 1 if i == 0 else 2, self.remat, block)

  def features(self, x, train: bool = False):
    """The maps after each stage.

    Args:
      x: normalised images, float (B, H, W, C), 32 px or more a side.
      train: batch statistics.

    Returns:
      Four maps (B, ceil(H/r), ceil(W/r), width) for r = 4, 8, 16, 32; 1, 2, 4, 8 with the CIFAR
      stem.

    Raises:
      UserError: images that the model cannot read.
    """
    check_images(x, self.in_channels, 'ResNet')
    x = self.stem(x.astype(self.dtype or x.dtype), train and not self.frozen_stages)
    maps = []
    for i, stage in enumerate((self.stage1, self.stage2, self.stage3, self.stage4), 1):
      x = end_stage(self, i, stage(x, train and i > self.frozen_stages))
      maps.append(x)
    return tuple(maps)

  def __call__(self, x, train: bool = False):
    """Logits (B, num_classes), or pooled features (B, C) without a head; float32, of float64
    images float64.

    Args and errors as `features`.
    """
    x = self.features(x, train)[-1]
    x = jnp.mean(x, axis=(1, 2), dtype=wide_type(x.dtype)).astype(x.dtype)
    if self.num_classes:
      x = self.head(x)
    return x.astype(wide_type(x.dtype))


_PUBLISHED: dict[str, dict[str, Any]] = {
  'resnet18': dict(),
  'resnet34': dict(depths=(3, 4, 6, 3)),
  'resnet50': dict(depths=(3, 4, 6, 3), bottleneck=True),
  'resnet101': dict(depths=(3, 4, 23, 3), bottleneck=True),
}

for _name, _fields in _PUBLISHED.items():
  for _suffix, _cifar in (('', False), ('_cifar', True)):
    _options = {**_fields, 'cifar_stem': _cifar}
    register(_name + _suffix)(lambda _options=_options, **more: ResNet(**{**_options, **more}))
