"""The heads of Mask R-CNN that look at regions: class and box, and the mask.

Papers: Girshick, "Fast R-CNN", ICCV 2015, arXiv 1504.08083; He et al., "Mask R-CNN", ICCV 2017,
arXiv 1703.06870, figure 4, right; details as in detectron2.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn

from rest_jax.models.dense import conv1, conv3, kaiming_normal, xavier_uniform
from rest_jax.models.layers import Dtype, parameter


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
