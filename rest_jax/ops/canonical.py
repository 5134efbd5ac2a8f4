"""Convolution in the one layout that XLA's CPU backend is fast with, gradients included.

XLA:CPU has a quick routine for convolutions of (N, ..., C) with (..., I, O), and a pass that brings
others into that layout. The pass looks at a program's entry computation alone: inside a
`lax.fori_loop`, `while_loop` or `scan` the gradient of a plain 3x3 convolution, whose kernel has I
and O exchanged, falls back on a routine that is 4 to 12 times slower. Here every convolution,
those of the gradients too, is written with the transposes that the pass would have made.

Of few channels that routine spends most of its time on fetching patches. There some neighbouring
outputs are computed as channels of one larger window (`_in_blocks`).
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rest_jax.ops.platform import traced_once

Pairs = tuple[tuple[int, int], ...]


class Window(NamedTuple):
  """How a convolution steps; the arguments of `lax.conv_general_dilated`, a tuple each."""

  strides: tuple[int, ...]
  padding: Pairs
  lhs_dilation: tuple[int, ...]
  rhs_dilation: tuple[int, ...]
  precision: Any = None
  preferred_element_type: Any = None


def canonical_conv(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
  """Cross-correlation without groups, as `lax.conv_general_dilated`.

  Args:
    x: (N, spatial, C).
    kernel: (spatial, C, O).
    window: strides, padding and dilations, one for each spatial dimension.

  Returns:
    (N, spatial, O). Its gradient is written by hand, so that it has no forward mode.
  """
  return _conv_once(x, kernel, window)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x, kernel, window: Window) -> Any:
  return _lax_conv(x, kernel, window)


def _lax_conv(x, kernel, window: Window):
  block = _block(x, kernel, window)
  return _plain(x, kernel, window) if block == (1, 1) else _in_blocks(x, kernel, window, block)


def _plain(x, kernel, window: Window):
  spatial = 'HWD'[: x.ndim - 2]
  names = (f'N{spatial}C', f'{spatial}IO', f'N{spatial}C')
  return lax.conv_general_dilated(
    x,
    kernel,
    window.strides,
    window.padding,
    lhs_dilation=window.lhs_dilation,
    rhs_dilation=window.rhs_dilation,
    dimension_numbers=names,
    precision=window.precision,
    preferred_element_type=window.preferred_element_type,
  )


def _block(x, kernel, window: Window) -> tuple[int, int]:
  """How many neighbouring outputs to compute at once, down and across.

  Measured on a core of a Xeon with AVX-512, 3x3, 32 images of 32 px, times of 1x1 over those of
  the block: 3 to 16 channels 5.1 (2x2), 16 to 3 channels 2.1 (2x2), 8 to 8 3.2 (2x2), 16 to 16 1.7
  (1x2) and 1.3 (2x2). From 32 channels on, on either side, no block is quicker.
  """
  sizes, channels = kernel.shape[:-2], kernel.shape[-2:]
  if x.ndim != 4 or x.dtype != jnp.float32 or max(channels) > 16 or 0 in x.shape:
    return 1, 1
  steps = {*window.strides, *window.lhs_dilation, *window.rhs_dilation}
  if steps != {1} or min(sizes) < 2 or max(sizes) > 7:
    return 1, 1
  out = [
    n + lo + hi - k + 1 for n, k, (lo, hi) in zip(x.shape[1:3], sizes, window.padding, strict=True)
  ]
  block = (2, 2) if channels[0] * channels[1] <= 128 else (1, 2)
  return block if all(n % b == 0 for n, b in zip(out, block, strict=True)) else (1, 1)


def _in_blocks(x, kernel, window: Window, block: tuple[int, int]):
  """The same, a block of outputs as the channels of one output of a window that holds them all.

  What is not of an output's own window is multiplied by 0: what is not finite spreads there.
  """
  rows, columns = block
  shifted = [
    jnp.pad(kernel, ((i, rows - 1 - i), (j, columns - 1 - j), (0, 0), (0, 0)))
    for i in range(rows)
    for j in range(columns)
  ]
  out = _plain(x, jnp.concatenate(shifted, -1), window._replace(strides=block))
  count, down, across, _ = out.shape
  out = jnp.moveaxis(out.reshape(count, down, across, rows, columns, -1), 3, 2)
  return out.reshape(count, down * rows, across * columns, -1)


def _conv_fwd(x, kernel, window: Window):
  return _lax_conv(x, kernel, window), (x, kernel)


def _conv_bwd(window: Window, residuals, grad):
  x, kernel = residuals
  sizes = _Sizes(
    _spread(x.shape[1:-1], window.lhs_dilation),
    _spread(kernel.shape[:-2], window.rhs_dilation),
    _spread(grad.shape[1:-1], window.strides),
  )
  grad = grad.astype(jnp.result_type(x, kernel))
  return _input_gradient(grad, x, kernel, window, sizes), _kernel_gradient(
    grad, x, kernel, window, sizes
  )


class _Sizes(NamedTuple):
  """Spatial sizes with the dilations' gaps: of the input, the kernel, and the output's reach."""

  x: tuple[int, ...]
  kernel: tuple[int, ...]
  out: tuple[int, ...]


def _spread(sizes, gaps) -> tuple[int, ...]:
  return tuple((size - 1) * gap + 1 if size else 0 for size, gap in zip(sizes, gaps, strict=True))


def _input_gradient(grad, x, kernel, window: Window, sizes: _Sizes):
  spatial = tuple(range(kernel.ndim - 2))
  turned = jnp.swapaxes(jnp.flip(kernel, spatial), -1, -2)
  before = tuple(k - 1 - lo for k, (lo, _) in zip(sizes.kernel, window.padding, strict=True))
  after = tuple(
    n + k - 1 - out - b
    for n, k, out, b in zip(sizes.x, sizes.kernel, sizes.out, before, strict=True)
  )
  back = window._replace(
    strides=window.lhs_dilation,
    padding=tuple(zip(before, after, strict=True)),
    lhs_dilation=window.strides,
    preferred_element_type=None,
  )
  found: Any = _conv(grad, turned, back)
  return found.astype(x.dtype)


def _kernel_gradient(grad, x, kernel, window: Window, sizes: _Sizes):
  # Images take the part of channels: (C, spatial, N) with (spatial, N, O) gives (C, spatial, O).
  images, taps = jnp.swapaxes(x, 0, -1), jnp.moveaxis(grad, 0, -2)
  padding = tuple(
    (lo, out - n + k - 1 - lo)
    for n, k, out, (lo, _) in zip(sizes.x, sizes.kernel, sizes.out, window.padding, strict=True)
  )
  across = window._replace(
    strides=window.rhs_dilation,
    padding=padding,
    rhs_dilation=window.strides,
    preferred_element_type=None,
  )
  found: Any = _conv(images.astype(taps.dtype), taps, across)
  return jnp.moveaxis(found, 0, -2).astype(kernel.dtype)


_conv.defvjp(traced_once(_conv_fwd, static_argnums=2), traced_once(_conv_bwd, static_argnums=0))
_conv_once = traced_once(_conv, static_argnums=2)
