"""Pure array functions: float arrays in NHWC or (B, n, heads, d), no parameters, no state."""

from rest_jax.ops.activation import gelu
from rest_jax.ops.anchors import pyramid_anchors
from rest_jax.ops.attention import attend, emsa
from rest_jax.ops.bands import (
  band_energies,
  inverse2,
  radial_bands,
  scale_bands,
  transform2,
)
from rest_jax.ops.blur import gaussian_blur
from rest_jax.ops.boxes import iou
from rest_jax.ops.convolution import conv
from rest_jax.ops.dct import block_dct2, block_idct2, dct2, idct2
from rest_jax.ops.depthwise import depthwise_conv
from rest_jax.ops.paste import paste_masks
from rest_jax.ops.platform import form, use_form
from rest_jax.ops.pooling import adaptive_avg_pool, max_pool
from rest_jax.ops.reduce import sum_planes, sum_rows
from rest_jax.ops.regions import roi_align
from rest_jax.ops.resize import resize_bilinear
from rest_jax.ops.suppression import nms
from rest_jax.ops.wavelets import dwt2, idwt2, wavedec2, waverec2

__all__ = [
  'adaptive_avg_pool',
  'attend',
  'band_energies',
  'block_dct2',
  'block_idct2',
  'conv',
  'dct2',
  'depthwise_conv',
  'dwt2',
  'emsa',
  'form',
  'gaussian_blur',
  'gelu',
  'idct2',
  'idwt2',
  'inverse2',
  'iou',
  'max_pool',
  'nms',
  'paste_masks',
  'pyramid_anchors',
  'radial_bands',
  'resize_bilinear',
  'roi_align',
  'scale_bands',
  'sum_planes',
  'sum_rows',
  'transform2',
  'use_form',
  'wavedec2',
  'waverec2',
]
