"""VGG: the network that the explanation papers were measured on.

Paper: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
ICLR 2015, arXiv 1409.1556 (table 1, configurations D and E). Semantics and weight names are
torchvision's (BSD-3-Clause): the last maps are averaged to 7x7 for the linear layers, so that
images of any size are read; `_bn` adds batch norm behind every convolution.

Deviations: linear layers start as the other models' do (normal 0.02, zero bias).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from rest_jax.errors import UserError
from rest_jax.models.compression import compressors, end_stage
from rest_jax.models.layers import BatchNorm, Conv, Dense, Dtype, check_images, check_stages
from rest_jax.models.registry import register
from rest_jax.ops.pooling import max_pool

GRID = 7  # pixels a side that the linear layers see
_kaiming = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


class Stage(nn.Module):
  """3x3 convolutions of one width, each followed by ReLU (and batch norm before it)."""

  width: int
  depth: int
  batch_norm: bool
  remat: bool
  bn_axis_name: str | None = None
  bn_frozen: bool = False
  dtype: Dtype | None = None

  @nn.compact
  def __call__(self, x, train: bool):
    conv = nn.remat(Conv) if self.remat else Conv
    for i in range(self.depth):
      x = conv(self.width, 3, padding=1, kernel_init=_kaiming, dtype=self.dtype, name=f'conv{i}')(x)
      if self.batch_norm:
        norm = BatchNorm(
          axis_name=self.bn_axis_name, frozen=self.bn_frozen, dtype=self.dtype, name=f'norm{i}'
        )
        x = norm(x, train)
      x = nn.relu(x)
    return x


def _halve(x):
  """2x2 max pooling; an odd last row or column is left out."""
  return max_pool(x, 2, 2)


def average_to_grid(x, side: int = GRID):
  """Averages maps (B, h, w, C) over side x side windows, which overlap where h or w do not divide.

  Window i of h rows has those from floor(i h / side) up to ceil((i + 1) h / side), as PyTorch's
  AdaptiveAvgPool2d.

  Returns:
    (B, side, side, C) in the dtype of x.
  """
  if x.shape[1:3] == (side, side):
    return x
  rows, columns = (jnp.asarray(_windows(length, side), x.dtype) for length in x.shape[1:3])
  return jnp.einsum('ih,jw,bhwc->bijc', rows, columns, x, precision=jax.lax.Precision.HIGHEST)


def _windows(length: int, side: int) -> np.ndarray:
  """(side, length) float32: row i is the mean over window i."""
  matrix = np.zeros((side, length), np.float32)
  for i in range(side):
    start, end = i * length // side, math.ceil((i + 1) * length / side)
    matrix[i, start:end] = 1 / (end - start)
  return matrix


class VGG(nn.Module):
  """VGG with 16 or 19 layers, or of any depth.

  Attributes:
    num_classes: outputs; 0 for no head (the features of the last hidden layer).
    depths: convolutions of the five groups.
    widths: channels of the five groups.
    hidden: width of the two hidden linear layers.
    batch_norm: whether every convolution is followed by batch norm.
    drop_rate: dropout behind the hidden linear layers.
    remat: recompute convolutions in the backward pass instead of storing their results.
    compression: of frequency bands after stages: a strategy or options, see `models.compression`.
    frozen_stages: stem and stages up to this one run as in evaluation and get no gradient; 0: none.
    in_channels: channels of the input.
    bn_axis_name: mapped axis that batch norms are synchronised over; None: per device.
    bn_frozen: batch norms keep their statistics, scale and bias in training, see `BatchNorm`.
    dtype: computing dtype (parameters and logits stay float32).
  """

  num_classes: int = 1000
  depths: Sequence[int] = (2, 2, 3, 3, 3)
  widths: Sequence[int] = (64, 128, 256, 512, 512)
  hidden: int = 4096
  batch_norm: bool = False
  drop_rate: float = 0.5
  remat: bool = False
  compression: Any = None
  frozen_stages: int = 0
  in_channels: int = 3
  bn_axis_name: str | None = None
  bn_frozen: bool = False
  dtype: Dtype | None = None

  def setup(self):
    for name in ('depths', 'widths'):
      values = getattr(self, name)
      if len(values) != 5 or min(values) < 1:
        raise UserError(f'{name} takes five numbers of 1 or more, got {values}')
    check_stages((1, 2, 3, 4), self.frozen_stages)
    options = (self.batch_norm, self.remat, self.bn_axis_name, self.bn_frozen, self.dtype)
    self.stem, self.stage1, self.stage2, self.stage3, self.stage4 = (
      Stage(width, depth, *options) for width, depth in zip(self.widths, self.depths, strict=True)
    )
    for name, layer in compressors(self.compression):
      setattr(self, name, layer)
    self.fc1, self.fc2 = (Dense(self.hidden, dtype=self.dtype) for _ in range(2))
    self.drop = nn.Dropout(self.drop_rate)
    if self.num_classes:
      self.head = Dense(self.num_classes, dtype=self.dtype)

  def features(self, x, train: bool = False):
    """The maps of the last four groups of convolutions, before each one's pooling.

    Args:
      x: normalised images, float (B, H, W, C), 32 px or more a side.
      train: batch statistics and dropout (rng 'dropout').

    Returns:
      Four maps (B, H // r, W // r, width) for r = 2, 4, 8, 16.

    Raises:
      UserError: images that the model cannot read.
    """
    check_images(x, self.in_channels, 'VGG')
    x = self.stem(x.astype(self.dtype or x.dtype), train and not self.frozen_stages)
    maps = []
    for i, stage in enumerate((self.stage1, self.stage2, self.stage3, self.stage4), 1):
      x = end_stage(self, i, stage(_halve(x), train and i > self.frozen_stages))
      maps.append(x)
    return tuple(maps)

  def __call__(self, x, train: bool = False):
    """Logits (B, num_classes), or hidden features (B, hidden) without a head; float32.

    Args and errors as `features`.
    """
    x = average_to_grid(_halve(self.features(x, train)[-1]))
    x = x.reshape(x.shape[0], -1)
    for layer in (self.fc1, self.fc2):
      x = self.drop(nn.relu(layer(x)), deterministic=not train)
    if self.num_classes:
      x = self.head(x)
    return x.astype(jnp.float32)


_PUBLISHED: dict[str, dict[str, Any]] = {
  'vgg16': dict(),
  'vgg19': dict(depths=(2, 2, 4, 4, 4)),
}

for _name, _fields in _PUBLISHED.items():
  for _suffix, _norm in (('', False), ('_bn', True)):
    _options = {**_fields, 'batch_norm': _norm}
    register(_name + _suffix)(lambda _options=_options, **more: VGG(**{**_options, **more}))
