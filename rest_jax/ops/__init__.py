"""Pure array functions: float arrays in NHWC or (B, n, heads, d), no parameters, no state."""

from rest_jax.ops.activation import gelu
from rest_jax.ops.attention import attend, emsa
from rest_jax.ops.blur import gaussian_blur
from rest_jax.ops.convolution import conv
from rest_jax.ops.depthwise import depthwise_conv
from rest_jax.ops.platform import form, use_form
from rest_jax.ops.reduce import sum_rows
from rest_jax.ops.resize import resize_bilinear

__all__ = [
  'attend',
  'conv',
  'depthwise_conv',
  'emsa',
  'form',
  'gaussian_blur',
  'gelu',
  'resize_bilinear',
  'sum_rows',
  'use_form',
]
