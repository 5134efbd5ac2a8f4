"""The convolution that XLA gives, and its output size: what both hand-written forms stand on."""

from __future__ import annotations

from jax import lax


def plain_conv(x, kernel, stride: int, padding: int):
  """XLA's own convolution of x (B, H, W, C) with an HWIO kernel, padded equally on all sides.

  A kernel whose third side is less than C reads C in groups of that many channels.
  """
  return lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    ((padding, padding), (padding, padding)),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=x.shape[-1] // kernel.shape[2],
  )


def out_size(x_shape, k_shape, stride: int, padding: int) -> tuple[int, int]:
  """(Ho, Wo) of a convolution of (B, H, W, C) with (kh, kw, ...)."""
  height, width = ((x_shape[i + 1] + 2 * padding - k_shape[i]) // stride + 1 for i in (0, 1))
  return height, width
