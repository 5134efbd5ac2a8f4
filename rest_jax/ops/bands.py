"""Radial frequency bands of a plane, over the DCT-II ('dct') or the real FFT ('fft').

The radius of a coefficient is its distance from the mean's, as a share of the largest there can
be: r = sqrt((v_y^2 + v_x^2) / 2), where v = 2 |frequency in cycles a pixel| is in [0, 1]. For the
FFT v = 2 |fftfreq|, for the DCT, whose index u is a frequency of u / 2n, v = u / n. So a band is
the same range of frequencies with either transform and at every size.

Both transforms are orthonormal. The real FFT keeps half of the spectrum; where energies are summed,
the other half, its mirror image, is counted too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rest_jax.errors import UserError
from rest_jax.ops.dct import check_planes, dct2, idct2


class _Transform(NamedTuple):
  forward: Callable[[jax.Array], jax.Array]
  inverse: Callable[[jax.Array, tuple[int, int]], jax.Array]
  radius: Callable[[int, int], np.ndarray]


def radial_bands(
  height: int, width: int, bands: int = 8, transform: str = 'dct', *, soft: bool = False
) -> np.ndarray:
  """Masks of bands of equal width in the radius.

  Args:
    height: H of the plane.
    width: W.
    bands: K, how many. Those that a small plane has no coefficient in are zero everywhere.
    transform: 'dct' or 'fft'.
    soft: False: band k has the radii [k / K, (k + 1) / K), masks are 0 or 1. True: every mask
      falls linearly from 1 at its band's middle to 0 at its neighbours' middles; below the first
      and above the last middle it stays 1.

  Returns:
    float32 (K, H, W); of the FFT (K, H, W // 2 + 1), frequencies in `rfft2`'s order. Nonnegative;
    the sum over the bands is 1 (of soft ones to rounding).

  Raises:
    UserError: an unknown transform, or a number under 1.
  """
  if min(height, width, bands) < 1:
    raise UserError(f'bands of a plane take 1 or more, got {bands} of {height}x{width}')
  return _radial_bands(height, width, bands, _check(transform), soft)


@functools.lru_cache(maxsize=64)
def _radial_bands(height: int, width: int, bands: int, transform: str, soft: bool) -> np.ndarray:
  place = _TRANSFORMS[transform].radius(height, width) * bands
  index = np.arange(bands)[:, None, None]
  if soft:
    masks = np.clip(1 - np.abs(np.clip(place - 0.5, 0, bands - 1) - index), 0, 1)
  else:
    # Radii on a border are the same in both transforms only up to rounding.
    masks = np.minimum(np.floor(place + 1e-9), bands - 1) == index
  masks = masks.astype(np.float32)
  masks.setflags(write=False)
  return masks


def radii(height: int, width: int, transform: str = 'dct') -> np.ndarray:
  """The radius of every coefficient: float64 (H, W), of the FFT (H, W // 2 + 1), in [0, 1].

  Raises:
    UserError: an unknown transform.
  """
  return _TRANSFORMS[_check(transform)].radius(height, width)


def _dct_radius(height: int, width: int) -> np.ndarray:
  return _radius(np.arange(height) / height, np.arange(width) / width)


def _fft_radius(height: int, width: int) -> np.ndarray:
  return _radius(2 * np.abs(np.fft.fftfreq(height)), 2 * np.fft.rfftfreq(width))


def _radius(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
  return np.sqrt((rows[:, None] ** 2 + columns[None] ** 2) / 2)


def _rfft2(x: jax.Array) -> jax.Array:
  return jnp.fft.rfft2(check_planes(x, 'transform2'), axes=(1, 2), norm='ortho')


_TRANSFORMS = {
  'dct': _Transform(dct2, lambda z, size: idct2(z), _dct_radius),
  'fft': _Transform(
    _rfft2, lambda z, size: jnp.fft.irfft2(z, size, axes=(1, 2), norm='ortho'), _fft_radius
  ),
}
TRANSFORMS = tuple(_TRANSFORMS)


def _check(transform: str) -> str:
  if transform not in _TRANSFORMS:
    raise UserError(f'transform is {" or ".join(map(repr, TRANSFORMS))}, not {transform!r}')
  return transform


def transform2(x: jax.Array, transform: str = 'dct') -> jax.Array:
  """The orthonormal transform of every plane.

  Args:
    x: floats (B, H, W, C), any sizes.
    transform: 'dct' or 'fft'.

  Returns:
    float32 (B, H, W, C), or complex64 (B, H, W // 2 + 1, C); of float64 twice as wide.

  Raises:
    UserError: not four axes, an empty one, no floats, or an unknown transform.
  """
  return _TRANSFORMS[_check(transform)].forward(x)


def inverse2(z: jax.Array, transform: str, shape: tuple[int, ...]) -> jax.Array:
  """The inverse of `transform2`.

  Args:
    z: coefficients as from there.
    transform: 'dct' or 'fft'.
    shape: (B, H, W, C) of the result: the FFT's coefficients leave open whether W is odd.

  Returns:
    float32 `shape`, of complex128 or float64 float64.

  Raises:
    UserError: an unknown transform, or coefficients of another shape.
  """
  _, height, width, _ = shape
  columns = width if _check(transform) == 'dct' else width // 2 + 1
  if tuple(z.shape) != (shape[0], height, columns, shape[3]):
    raise UserError(
      f'coefficients {tuple(z.shape)} are not those of images {tuple(shape)} under {transform!r}; '
      "give the images' shape as it was in transform2"
    )
  return _TRANSFORMS[transform].inverse(z, (height, width))


def energies(z: jax.Array, masks: np.ndarray, transform: str, width: int) -> jax.Array:
  """Sums of the masked squares of coefficients.

  Args:
    z: (B, H, W', C) from `transform2`.
    masks: float32 (K, H, W') from `radial_bands`.
    transform: 'dct' or 'fft'.
    width: W of the images.

  Returns:
    Floats (B, K, C): sum over the plane of m_k |Z|^2. The sum over k is that of the images'
    squares (Parseval).
  """
  squares = jnp.square(z) if _check(transform) == 'dct' else _squares(z)
  weighted = jnp.asarray(masks * _copies(transform, width), squares.dtype)
  precision = lax.Precision.HIGHEST
  return jnp.einsum('khw,bhwc->bkc', weighted, squares, precision=precision)


def _squares(z: jax.Array) -> jax.Array:
  return jnp.square(jnp.real(z)) + jnp.square(jnp.imag(z))


def _copies(transform: str, width: int) -> np.ndarray:
  """(1, 1, W'): how many coefficients of the whole spectrum each column stands for."""
  if transform == 'dct':
    return np.ones((1, 1, width), np.float32)
  column = np.arange(width // 2 + 1)
  alone = (column == 0) | (2 * column == width)
  return np.where(alone, 1, 2).astype(np.float32)[None, None]


def band_sizes(masks: np.ndarray, transform: str, width: int) -> np.ndarray:
  """Coefficients in each band, those of the whole spectrum; arguments as `energies`.

  Returns:
    float32 (K,); the sum is H W.
  """
  return (masks * _copies(_check(transform), width)).sum((1, 2)).astype(np.float32)


def band_energies(
  x: jax.Array, bands: int = 8, transform: str = 'dct', *, soft: bool = False
) -> jax.Array:
  """The energy in every band.

  Args:
    x: floats (B, H, W, C).
    bands: K.
    transform: 'dct' or 'fft'.
    soft: see `radial_bands`.

  Returns:
    Floats (B, K, C): sums, not means, of m_k |Z|^2; together the sum of the squares of `x`.

  Raises:
    UserError: as `transform2` and `radial_bands`.
  """
  z = transform2(x, transform)
  _, height, width, _ = x.shape
  return energies(z, radial_bands(height, width, bands, transform, soft=soft), transform, width)


def scale_bands(
  x: jax.Array, gains: jax.Array, transform: str = 'dct', *, soft: bool = False
) -> jax.Array:
  """Multiplies every band by a gain: T^-1(sum_k g_k m_k T(x)).

  Computed as x - T^-1(sum_k (1 - g_k) m_k T(x)), so that gains of 1 give `x` to the bit.

  Args:
    x: floats (B, H, W, C).
    gains: floats (B or 1, K, C or 1), any values; K is the number of bands.
    transform: 'dct' or 'fft'.
    soft: see `radial_bands`.

  Returns:
    As `x`; what is shorter than float32 is computed in that.

  Raises:
    UserError: gains of another shape, or as `transform2` and `radial_bands`.
  """
  x = jnp.asarray(x)
  z = transform2(x, transform)
  return x - cut_bands(z, 1 - jnp.asarray(gains), transform, x.shape, soft=soft).astype(x.dtype)


def cut_bands(
  z: jax.Array, shares: jax.Array, transform: str, shape: tuple[int, ...], *, soft: bool = False
) -> jax.Array:
  """T^-1(sum_k s_k m_k z): what `scale_bands` takes away, from coefficients.

  Args:
    z: from `transform2`.
    shares: 1 - gains, floats (B or 1, K, C or 1).
    transform: 'dct' or 'fft'.
    shape: (B, H, W, C) of the images.
    soft: see `radial_bands`.

  Returns:
    float32 `shape`.

  Raises:
    UserError: shares of another shape.
  """
  _check_gains(shares.shape, shape)
  masks = radial_bands(shape[1], shape[2], shares.shape[1], transform, soft=soft)
  real = jnp.real(z).dtype
  factors = jnp.einsum(
    'khw,bkc->bhwc', jnp.asarray(masks, real), shares.astype(real), precision=lax.Precision.HIGHEST
  )
  return inverse2(z * jnp.broadcast_to(factors, z.shape).astype(z.dtype), transform, shape)


def _check_gains(gains: tuple[int, ...], shape: tuple[int, ...]) -> None:
  if len(gains) != 3 or gains[0] not in (1, shape[0]) or gains[2] not in (1, shape[3]):
    raise UserError(
      f'gains of {tuple(shape)} are (B or 1, bands, C or 1), got {tuple(gains)}; reshape them'
    )
