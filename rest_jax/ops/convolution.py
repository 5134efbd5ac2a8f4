"""Dense convolution in NHWC, with gradients that suit a CPU."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rest_jax.ops.canonical import Window, canonical_conv
from rest_jax.ops.depthwise import gather_phases, split_phases
from rest_jax.ops.plain import out_size, plain_conv
from rest_jax.ops.platform import form, traced_once

# Largest output (Ho * Wo) whose input gradient goes through a matrix product. XLA:CPU takes
# 40-80 ms for that of a 3x3/2 convolution of a 4x4 map, 128 to 256 channels, batch 128, where the
# product takes 1; from 14x14 outputs on the two are even, and the product takes more memory.
SMALL_MAP = 64


def conv(
  x: Float[Array, 'B H W C'],
  kernel: Float[Array, 'kh kw C D'],
  *,
  stride: int = 1,
  padding: int = 0,
) -> Float[Array, 'B Ho Wo D']:
  """Cross-correlation with equal zero padding on all sides, as PyTorch's Conv2d.

  Args:
    x: images or feature maps.
    kernel: HWIO.
    stride: step in both directions.
    padding: zeros added on all four sides.

  Returns:
    The maps, Ho = (H + 2 padding - kh) // stride + 1 and the same for Wo, in the dtype of x.
  """
  kernel = kernel.astype(x.dtype)
  if form() == 'plain':
    return plain_conv(x, kernel, stride, padding)
  if math.prod(out_size(x.shape, kernel.shape, stride, padding)) > SMALL_MAP:
    return _canonical(x, kernel, stride, padding)
  return _small_conv_once(x, kernel, stride, padding)


def _canonical(x, kernel, stride: int, padding: int):
  around = ((padding, padding), (padding, padding))
  return canonical_conv(x, kernel, Window((stride, stride), around, (1, 1), (1, 1)))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _small_conv(x, kernel, stride: int, padding: int):
  return plain_conv(x, kernel, stride, padding)


def _small_conv_fwd(x, kernel, stride: int, padding: int):
  return plain_conv(x, kernel, stride, padding), (x, kernel)


def _small_conv_bwd(stride: int, padding: int, residuals, grad):
  x, kernel = residuals
  kh, kw, _, features = kernel.shape
  blocks = split_phases(kernel, stride)
  weights = jnp.moveaxis(blocks, -1, 0).reshape(features, -1)
  taps = grad.reshape(-1, features) @ weights
  taps = taps.reshape(*grad.shape[:3], *blocks.shape[:-1])

  def part(q: int, p: int):
    return taps[:, :, :, q, p].transpose(0, 1, 3, 2, 4, 5)

  x_grad = gather_phases(part, (kh, kw), x.shape, stride, padding)
  _, kernel_vjp = jax.vjp(lambda k: _canonical(x, k, stride, padding), kernel)
  return x_grad.astype(x.dtype), kernel_vjp(grad)[0]


_small_conv.defvjp(
  traced_once(_small_conv_fwd, static_argnums=(2, 3)),
  traced_once(_small_conv_bwd, static_argnums=(0, 1)),
)
_small_conv_once = traced_once(_small_conv, static_argnums=(2, 3))
