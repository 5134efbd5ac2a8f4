"""A small convolutional autoencoder that takes noise out of images.

Residual learning as in DnCNN (Zhang et al., arXiv 1608.03981): the network estimates the noise,
and the image minus that is the result. It works on blocks of 2x2 pixels as channels as FFDNet does
(Zhang et al., arXiv 1710.04026), with one more halving between encoder and decoder. The layout
and the widths are ours.

It is no classifier: images go in and images come out, both in [0, 1], so it is trained with mean 0
and deviation 1 (`configs/digit_scenes_denoiser.py`), and a number of classes has no effect.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from rest_jax.errors import UserError
from rest_jax.models.layers import Conv, Dtype
from rest_jax.models.registry import register

_kaiming = nn.initializers.variance_scaling(2.0, 'fan_in', 'truncated_normal')
_BLOCK = 2  # pixels a side that become channels
_FACTOR = 4  # pixels a side that one position of the code stands for

Code = tuple[jax.Array, jax.Array]


class DenoisingAutoencoder(nn.Module):
  """Encoder, decoder and one connection past the bottleneck; 47,436 parameters at width 16.

  Starts as the identity: the last convolution's kernel is zero.

  Attributes:
    width: channels at half the resolution; twice as many in the code, at a quarter.
    in_channels: channels of the images.
    dtype: computing dtype (parameters and images stay float32).
  """

  width: int = 16
  in_channels: int = 3
  dtype: Dtype | None = None

  def setup(self):
    width, pixels = self.width, _BLOCK**2
    self.enter = self._conv(width)
    self.down = self._conv(2 * width, stride=2)
    self.code1, self.code2 = self._conv(2 * width), self._conv(2 * width)
    self.up = self._conv(width * pixels)
    self.join = self._conv(width)
    self.leave = self._conv(self.in_channels * pixels, init=nn.initializers.zeros)

  def _conv(self, features: int, stride: int = 1, init: Any = _kaiming) -> Conv:
    return Conv(features, 3, stride, 1, kernel_init=init, dtype=self.dtype)

  def encode(self, images: jax.Array) -> Code:
    """From images to what the decoder reads.

    Args:
      images: floats (B, H, W, C) in [0, 1], of any size; the borders are repeated up to a
        multiple of 4 pixels.

    Returns:
      Features at half the resolution (B, ceil(H/4) 2, ceil(W/4) 2, width), and the code at a
      quarter of it (B, ceil(H/4), ceil(W/4), 2 width).

    Raises:
      UserError: another rank or channel count.
    """
    if images.ndim != 4 or images.shape[-1] != self.in_channels:
      raise UserError(
        f'this autoencoder takes images (B, H, W, {self.in_channels}), got {tuple(images.shape)}'
      )
    edges = [(0, -size % _FACTOR) for size in images.shape[1:3]]
    x = jnp.pad(images, ((0, 0), *edges, (0, 0)), mode='edge')
    x = _blocks_to_channels(4 * x - 2).astype(self.dtype or x.dtype)
    # Linear past the bottleneck: a smoothing filter needs no more.
    past = self.enter(x)
    code = nn.relu(self.down(nn.relu(past)))
    code = code + nn.relu(self.code2(nn.relu(self.code1(code))))
    return past, code

  def decode(self, past: jax.Array, code: jax.Array) -> jax.Array:
    """From a code to the noise of the images, float32; padded as in `encode`, (B, H', W', C)."""
    x = past + _channels_to_blocks(nn.relu(self.up(code)))
    x = x + nn.relu(self.join(x))
    return _channels_to_blocks(self.leave(x)).astype(jnp.float32)

  def noise(self, images: jax.Array) -> jax.Array:
    """The noise that the images are estimated to have, float32 (B, H, W, C)."""
    _, height, width, _ = images.shape
    return self.decode(*self.encode(images))[:, :height, :width]

  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    """The images without their estimated noise, float32 (B, H, W, C); not clipped to [0, 1]."""
    del train  # the same in both modes
    return images.astype(jnp.float32) - self.noise(images)


def _blocks_to_channels(x: jax.Array) -> jax.Array:
  """(B, H, W, C) -> (B, H/2, W/2, 4C)."""
  b, h, w, c = x.shape
  x = x.reshape(b, h // _BLOCK, _BLOCK, w // _BLOCK, _BLOCK, c).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, h // _BLOCK, w // _BLOCK, _BLOCK**2 * c)


def _channels_to_blocks(x: jax.Array) -> jax.Array:
  """The inverse of `_blocks_to_channels`."""
  b, h, w, c = x.shape
  x = x.reshape(b, h, w, _BLOCK, _BLOCK, c // _BLOCK**2).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, h * _BLOCK, w * _BLOCK, c // _BLOCK**2)


@register('denoising_autoencoder')
def _build(num_classes: int = 0, **options: Any) -> DenoisingAutoencoder:
  del num_classes  # the registry's argument for classifiers
  return DenoisingAutoencoder(**options)
