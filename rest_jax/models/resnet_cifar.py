"""ResNet for CIFAR: ResNet-20 to ResNet-110, as the ResNet paper trains them on 32 x 32 pixels.

Paper: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385,
section 4.2: one 3x3 convolution, three stages of n blocks with 16, 32 and 64 channels (6n + 2
layers), and shortcuts without parameters (option A): where the map halves, every second position,
with channels of zeros on both sides. Weight names are those of the public PyTorch weights of Yerlan
Idelbayev (pytorch_resnet_cifar10, BSD), which follow the paper too.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn

from rest_jax.errors import UserError
from rest_jax.models.layers import BatchNorm, Conv, Dense, Dtype, check_images
from rest_jax.models.registry import register

_kaiming = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')
_LAYERS = (20, 32, 44, 56, 110)


class PlainShortcutBlock(nn.Module):
  """Two 3x3 convolutions around a shortcut without parameters (option A)."""

  width: int
  stride: int
  bn_axis_name: str | None = None
  dtype: Dtype | None = None

  @nn.compact
  def __call__(self, x, train: bool):
    out = x
    for i, stride in enumerate((self.stride, 1), 1):
      conv = Conv(
        self.width, 3, stride, 1, use_bias=False, kernel_init=_kaiming, dtype=self.dtype,
        name=f'conv{i}',
      )  # fmt: skip
      norm = BatchNorm(axis_name=self.bn_axis_name, dtype=self.dtype, name=f'norm{i}')
      out = norm(conv(out), train)
      out = nn.relu(out) if i == 1 else out
    more = self.width - x.shape[-1]
    if self.stride != 1 or more:
      x = x[:, :: self.stride, :: self.stride]
      x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (more // 2, more - more // 2)))
    return nn.relu(out + x)


class PlainStage(nn.Module):
  """The blocks of one resolution, 'block0' onwards; the first one has the stride."""

  depth: int
  width: int
  stride: int
  bn_axis_name: str | None = None
  dtype: Dtype | None = None

  @nn.compact
  def __call__(self, x, train: bool):
    for i in range(self.depth):
      x = PlainShortcutBlock(
        self.width, self.stride if i == 0 else 1, self.bn_axis_name, self.dtype, name=f'block{i}'
      )(x, train)
    return x


class CifarResNet(nn.Module):
  """The three-stage ResNet of section 4.2.

  Attributes:
    num_classes: outputs; 0 for no head (the pooled features).
    depth: blocks of each stage, n in the paper.
    width: channels of the first stage; doubles at every stage.
    in_channels: channels of the input.
    bn_axis_name: mapped axis that batch norms are synchronised over; None: per device.
    dtype: computing dtype (parameters and logits stay float32).
  """

  num_classes: int = 10
  depth: int = 3
  width: int = 16
  in_channels: int = 3
  bn_axis_name: str | None = None
  dtype: Dtype | None = None

  def setup(self):
    if self.depth < 1 or self.width < 1:
      raise UserError(f'depth and width are 1 or more, got {self.depth} and {self.width}')
    self.stem_conv = Conv(
      self.width, 3, 1, 1, use_bias=False, kernel_init=_kaiming, dtype=self.dtype
    )
    self.stem_norm = BatchNorm(axis_name=self.bn_axis_name, dtype=self.dtype)
    self.stage1, self.stage2, self.stage3 = (
      PlainStage(
        self.depth, self.width * 2**i, 1 if i == 0 else 2, self.bn_axis_name, self.dtype
      )
      for i in range(3)
    )  # fmt: skip
    if self.num_classes:
      self.head = Dense(self.num_classes, dtype=self.dtype)

  def features(self, x, train: bool = False):
    """The maps after each stage.

    Args:
      x: normalised images, float (B, H, W, C), 32 px or more a side.
      train: batch statistics.

    Returns:
      Three maps (B, ceil(H/r), ceil(W/r), width) for r = 1, 2, 4.

    Raises:
      UserError: images that the model cannot read.
    """
    check_images(x, self.in_channels, 'ResNet')
    x = nn.relu(self.stem_norm(self.stem_conv(x.astype(self.dtype or x.dtype)), train))
    maps = []
    for stage in (self.stage1, self.stage2, self.stage3):
      x = stage(x, train)
      maps.append(x)
    return tuple(maps)

  def __call__(self, x, train: bool = False):
    """Logits (B, num_classes), or pooled features (B, C) without a head; float32.

    Args and errors as `features`.
    """
    x = self.features(x, train)[-1]
    x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32).astype(x.dtype)
    if self.num_classes:
      x = self.head(x)
    return x.astype(jnp.float32)


for _layers in _LAYERS:
  _options = {'depth': (_layers - 2) // 6}
  register(f'resnet{_layers}')(
    lambda _options=_options, **more: CifarResNet(**{**_options, **more})
  )
