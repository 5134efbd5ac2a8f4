"""Depthwise convolution in NHWC, written for the platform it runs on.

A depthwise convolution has so little arithmetic per element that a general convolution routine is
lost in its own overhead on a CPU. There it is written as one multiply-add of a shifted image for
each kernel tap, which XLA fuses into a single pass; its gradient is written by hand in the same
way, because the transposed slices that autodiff makes of it cost seven times as much.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from rest_jax.ops.plain import out_size, plain_conv
from rest_jax.ops.platform import apart, form, traced_once
from rest_jax.ops.reduce import sum_rows, wide_type


def depthwise_conv(
  x: Float[Array, 'B H W C'],
  kernel: Float[Array, 'kh kw 1 CM'],
  *,
  stride: int = 1,
  padding: int = 0,
) -> Float[Array, 'B Ho Wo CM']:
  """Convolves every channel with its own kernel(s): cross-correlation, as PyTorch's `groups=C`.

  Args:
    x: images or feature maps.
    kernel: one plane for each output channel; output channel c reads input channel
      c // (CM / C).
    stride: step in both directions.
    padding: zeros added on all four sides.

  Returns:
    The maps, Ho = (H + 2 padding - kh) // stride + 1 and the same for Wo, in the dtype of x.

  Raises:
    ValueError: if CM is no multiple of C, or the kernel is larger than the padded image.
  """
  channels, out_channels = x.shape[-1], kernel.shape[-1]
  if kernel.ndim != 4 or kernel.shape[2] != 1 or out_channels % channels:
    raise ValueError(
      f'kernel {kernel.shape} does not fit {channels} channels: want (kh, kw, 1, m*C)'
    )
  if min(out_size(x.shape, kernel.shape, stride, padding)) < 1:
    raise ValueError(
      f'kernel {kernel.shape[:2]} exceeds the image {x.shape[1:3]} padded by {padding}'
    )
  kernel = kernel.astype(x.dtype)
  if form() == 'plain':
    return plain_conv(x, kernel, stride, padding)
  return _shifted_once(x, kernel, stride, padding)


def _pad(x, padding: int):
  return jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))


def _tap(padded, i: int, j: int, size: tuple[int, int], stride: int):
  """The padded image as the kernel's tap (i, j) sees it, (B, Ho, Wo, C)."""
  b, _, _, c = padded.shape
  stop = (b, i + stride * (size[0] - 1) + 1, j + stride * (size[1] - 1) + 1, c)
  return lax.slice(padded, (0, i, j, 0), stop, (1, stride, stride, 1))


def _weight(row, j: int):
  """Tap j of one row of a kernel, (1, 1, 1, CM)."""
  return lax.slice(row, (0, j, 0, 0), (1, j + 1, *row.shape[2:]))


def _as(x, dtype):
  return x if x.dtype == dtype else x.astype(dtype)


def _repeat(x, times: int):
  return x if times == 1 else jnp.repeat(x, times, axis=-1)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _shifted(x, kernel, stride: int, padding: int):
  return _sum_taps(x, kernel, stride, padding, loop=False)


def _shifted_fwd(x, kernel, stride: int, padding: int):
  # XLA does not fuse a loop. A small map of unrolled sums it would compute anew for each of the
  # stride^2 inputs under a window when the gradient reads it: 120 ms of 1,060 for one convolution
  # of rest_small's first stage. Without a gradient the unrolled form is the faster one.
  return _sum_taps(x, kernel, stride, padding, loop=stride > 1), (x, kernel)


def _sum_taps(x, kernel, stride: int, padding: int, loop: bool):
  size = out_size(x.shape, kernel.shape, stride, padding)
  multiplier = kernel.shape[-1] // x.shape[-1]
  padded = _pad(x, padding)
  extent = stride * (size[0] - 1) + 1

  def add_row(i, out):
    rows = lax.dynamic_slice_in_dim(padded, i, extent, axis=1)
    weights = lax.dynamic_slice_in_dim(kernel, i, 1, axis=0)
    for j in range(kernel.shape[1]):
      tap = _as(_repeat(_tap(rows, 0, j, size, stride), multiplier), out.dtype)
      out = lax.add(out, lax.mul(tap, _as(_weight(weights, j), out.dtype)))
    return out

  out = jnp.zeros((x.shape[0], *size, kernel.shape[-1]), wide_type(x.dtype))
  if loop:
    out = lax.fori_loop(0, kernel.shape[0], add_row, out)
  else:
    for i in range(kernel.shape[0]):
      out = add_row(i, out)
  return out.astype(x.dtype)


def _shifted_bwd(stride: int, padding: int, residuals, grad):
  x, kernel = residuals
  return (
    _input_gradient(grad, kernel, x.shape, stride, padding),
    _kernel_gradient(grad, x, kernel, stride, padding),
  )


@partial(apart, static_argnums=(2, 3, 4))
def _input_gradient(grad, kernel, x_shape, stride: int, padding: int):
  wide = wide_type(grad.dtype)
  blocks = split_phases(kernel[:, :, 0].astype(wide), stride)
  part = _one_each if kernel.shape[-1] == x_shape[-1] else _several_each
  parts = part(grad.astype(wide), blocks, x_shape[-1])
  return gather_phases(parts, kernel.shape[:2], x_shape, stride, padding).astype(grad.dtype)


def _one_each(grad, blocks, channels: int):
  """What `gather_phases` adds up where every channel has one output."""
  del channels
  spread = grad[:, :, None, :, None]
  return lambda q, p: spread * blocks[q, p][None, None, :, None]


def _several_each(grad, blocks, channels: int):
  """The same of several outputs a channel: products of matrices, which need no array for a tap."""
  of_channel = (a.reshape(*a.shape[:-1], channels, -1) for a in (grad, blocks))
  taps = jnp.einsum('bhwcm,qpijcm->qpbhiwjc', *of_channel)
  return lambda q, p: taps[q, p]


def split_phases(kernel, stride: int):
  """(kh, kw, ...) -> (reach_h, reach_w, stride, stride, ...): taps by window, then by phase."""
  kh, kw = kernel.shape[:2]
  short = ((0, -kh % stride), (0, -kw % stride), *((0, 0),) * (kernel.ndim - 2))
  kernel = jnp.pad(kernel, short)
  rows, cols = kernel.shape[0] // stride, kernel.shape[1] // stride
  kernel = kernel.reshape(rows, stride, cols, stride, *kernel.shape[2:])
  return jnp.moveaxis(kernel, 2, 1)


def gather_phases(part, kernel_size, x_shape, stride: int, padding: int):
  """Adds up what every window gives back to the input: a convolution's transpose.

  Gather form: seen as (Ho', stride, Wo', stride), the input is the sum of one shifted dense array
  for each window that overlaps it, so nothing is scattered and the result is written in place.

  Args:
    part: part(q, p) is what window (i - q, j - p) gives to block (i, j), for all windows:
      (B, Ho, stride, Wo, stride, C).
    kernel_size: (kh, kw).
    x_shape: shape of the input, (B, H, W, C).
    stride: of the convolution.
    padding: of the convolution.

  Returns:
    (B, H, W, C).
  """
  reach = [-(-k // stride) for k in kernel_size]
  total = jnp.zeros(())
  for q in range(reach[0]):
    for p in range(reach[1]):
      edges = ((0, 0), (q, reach[0] - 1 - q), (0, 0), (p, reach[1] - 1 - p), (0, 0), (0, 0))
      shifted = jnp.pad(part(q, p), edges)
      total = total + shifted if q or p else shifted
  b, rows, _, cols, _, c = total.shape
  full = total.reshape(b, rows * stride, cols * stride, c)
  # Rows that no window reached (the stride left them over) have no gradient.
  short = [max(0, padding + x_shape[i + 1] - full.shape[i + 1]) for i in (0, 1)]
  full = jnp.pad(full, ((0, 0), (0, short[0]), (0, short[1]), (0, 0)))
  return full[:, padding : padding + x_shape[1], padding : padding + x_shape[2]]


def _kernel_gradient(grad, x, kernel, stride: int, padding: int):
  size, multiplier = grad.shape[1:3], kernel.shape[-1] // x.shape[-1]
  padded = _pad(x, padding)
  wide = wide_type(grad.dtype)
  flat = grad.astype(wide).reshape(-1, grad.shape[-1])
  taps = (
    _repeat(_tap(padded, i, j, size, stride), multiplier).astype(wide).reshape(flat.shape) * flat
    for i in range(kernel.shape[0])
    for j in range(kernel.shape[1])
  )
  return jnp.stack(sum_rows(*taps)).reshape(kernel.shape).astype(kernel.dtype)


_shifted.defvjp(
  traced_once(_shifted_fwd, static_argnums=(2, 3)),
  traced_once(_shifted_bwd, static_argnums=(0, 1)),
)
_shifted_once = traced_once(_shifted, static_argnums=(2, 3))
