"""The feature pyramid network: one width and strong semantics on every level.

Paper: Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017, arXiv 1612.03144.
As in detectron2: no norm and no activation, weights uniform within sqrt(3 / fan_in).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from rest_jax.models.dense import conv1, conv3, xavier_uniform
from rest_jax.models.layers import Dtype


def double(x: jax.Array) -> jax.Array:
  """Every pixel twice in both directions: (B, H, W, C) -> (B, 2 H, 2 W, C)."""
  b, h, w, c = x.shape
  x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c))
  return x.reshape(b, 2 * h, 2 * w, c)


class FPN(nn.Module):
  """1x1 convolutions, a path from coarse to fine that adds, 3x3 convolutions.

  Attributes:
    levels: numbers of the levels, fine to coarse, such as (3, 4, 5): a level of number n has
      stride 2^n. They only name the parameters.
    width: channels of every level.
    dtype: computing dtype.
  """

  levels: Sequence[int]
  width: int = 256
  dtype: Dtype | None = None

  @nn.compact
  def __call__(self, maps):
    """Builds the pyramid.

    Args:
      maps: one (B, H, W, C) a level, each half the size of the one before.

    Returns:
      As many maps of the same sizes and of `width` channels.
    """
    outputs, above = [], None
    for level, x in reversed(list(zip(self.levels, maps, strict=True))):
      x = conv1(self.width, xavier_uniform, dtype=self.dtype, name=f'lateral{level}')(x)
      above = x if above is None else x + double(above)
      out = conv3(self.width, xavier_uniform, dtype=self.dtype, name=f'output{level}')
      outputs.append(out(above))
    return tuple(reversed(outputs))


class TopBlock(nn.Module):
  """RetinaNet's coarser levels: a 3x3/2 convolution of the backbone's last map, then of its ReLU.

  Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, section 4: P6 comes from C5, not
  from P5.

  Attributes:
    levels: numbers of the levels to add, such as (6, 7).
    width: channels of every level.
    dtype: computing dtype.
  """

  levels: Sequence[int]
  width: int = 256
  dtype: Dtype | None = None

  @nn.compact
  def __call__(self, x):
    """(B, H, W, C) -> a map of half the size for each level, and of half that, and so on."""
    outputs = []
    for level in self.levels:
      x = nn.relu(x) if outputs else x
      step = conv3(self.width, xavier_uniform, stride=2, dtype=self.dtype, name=f'p{level}')
      x = step(x)
      outputs.append(x)
    return tuple(outputs)
