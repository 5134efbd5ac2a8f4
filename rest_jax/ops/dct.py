"""The orthonormal 2-D DCT-II and its inverse, of a whole plane and of blocks.

DCT-II of n samples: Z_k = s_k sum_j x_j cos(pi k (2j + 1) / 2n), s_0 = sqrt(1/n), s_k = sqrt(2/n)
otherwise (`scipy.fft.dctn(norm='ortho')`). Orthonormal: the inverse is the transpose, and the sum
of squares stays what it is. Any real values; all functions are linear and have derivatives of both
modes. Computed in float32, of float64 in float64; XLA has no FFT of shorter floats.

References: Ahmed, Natarajan and Rao, "Discrete Cosine Transform", 1974; the FFT form is that of
Makhoul, "A Fast Cosine Transform in One and Two Dimensions", 1980.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rest_jax.errors import UserError

# Longest axis that is transformed by a matrix product. On a CPU both forms take as long at 128
# samples and 3 channels (1.5 ms for 8 images); at 56 samples and 64 channels the product takes
# half of the FFT's time, at 224 and 3 the FFT half of the product's.
MATRIX_LIMIT = 128


def dct2(x: jax.Array) -> jax.Array:
  """Orthonormal 2-D DCT-II of every plane.

  Args:
    x: floats (B, H, W, C), any sizes.

  Returns:
    (B, H, W, C): coefficient (0, 0) is the plane's mean times sqrt(H W).

  Raises:
    UserError: not four axes, an empty one, or no floats.
  """
  x = check_planes(x, 'dct2')
  return _dct(_dct(x, 2), 1)


def idct2(x: jax.Array) -> jax.Array:
  """The inverse of `dct2`; arguments and errors likewise."""
  x = check_planes(x, 'idct2')
  return _idct(_idct(x, 2), 1)


def block_dct2(x: jax.Array, size: int = 8) -> jax.Array:
  """Orthonormal 2-D DCT-II of every block of size x size pixels, JPEG's transform.

  A side that is no multiple of `size` is filled up with its last row or column.

  Args:
    x: floats (B, H, W, C).
    size: pixels a block's side.

  Returns:
    (B, ceil(H / size), ceil(W / size), size, size, C): the fourth and fifth axis are the vertical
    and the horizontal frequency.

  Raises:
    UserError: not four axes, an empty one, no floats, or a size under 1.
  """
  x = check_planes(x, 'block_dct2')
  _check_size(size)
  batch, height, width, channels = x.shape
  x = jnp.pad(x, ((0, 0), (0, -height % size), (0, -width % size), (0, 0)), mode='edge')
  x = x.reshape(batch, x.shape[1] // size, size, x.shape[2] // size, size, channels)
  return _on_blocks(x.transpose(0, 1, 3, 2, 4, 5), _block_matrix(size))


def block_idct2(z: jax.Array, size: int, shape: tuple[int, ...]) -> jax.Array:
  """The inverse of `block_dct2`.

  Args:
    z: (B, h, w, size, size, C), as from there.
    size: pixels a block's side.
    shape: (B, H, W, C) of the images; what was filled up is cut off.

  Returns:
    `shape`.

  Raises:
    UserError: shapes that do not belong together.
  """
  _check_size(size)
  z, (batch, height, width, channels) = jnp.asarray(z), shape
  rows, columns = -(-height // size), -(-width // size)
  if z.shape != (batch, rows, columns, size, size, channels):
    raise UserError(
      f'coefficients {z.shape} are not those of images {tuple(shape)} in blocks of {size}; '
      'give size and shape as they were in block_dct2'
    )
  x = _on_blocks(z, _block_matrix(size).T).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(batch, rows * size, columns * size, channels)[:, :height, :width]


def check_planes(x: jax.Array, name: str) -> jax.Array:
  """Floats (B, H, W, C) in a type that XLA transforms; `name` is the function, for the error."""
  x = jnp.asarray(x)
  if x.ndim != 4 or 0 in x.shape or not jnp.issubdtype(x.dtype, jnp.floating):
    raise UserError(
      f'{name} takes floats (B, H, W, C), no axis empty, not {x.dtype} {x.shape}; '
      'convert the array, or add a leading axis'
    )
  return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def _check_size(size: int) -> None:
  if size < 1:
    raise UserError(f'a block has a side of 1 pixel or more, not {size}; JPEG has 8')


def _dct(x: jax.Array, axis: int) -> jax.Array:
  if x.shape[axis] <= MATRIX_LIMIT:
    return _product(dct_matrix(x.shape[axis]), x, axis)
  return _dct_by_fft(x, axis)


def _idct(x: jax.Array, axis: int) -> jax.Array:
  if x.shape[axis] <= MATRIX_LIMIT:
    return _product(dct_matrix(x.shape[axis]).T, x, axis)
  return _idct_by_fft(x, axis)


@functools.lru_cache(maxsize=64)
def dct_matrix(n: int) -> np.ndarray:
  """(n, n) float64, orthonormal: row k is the cosine of frequency k."""
  # The angle modulo a full turn, in whole numbers: exact for every k and j.
  turns = np.arange(n)[:, None] * (2 * np.arange(n) + 1) % (4 * n)
  matrix = _scales(n)[:, None] * np.cos(np.pi * turns / (2 * n))
  matrix.setflags(write=False)
  return matrix


def _scales(n: int) -> np.ndarray:
  return np.sqrt(np.where(np.arange(n) == 0, 1, 2) / n)


def _product(matrix: np.ndarray, x: jax.Array, axis: int) -> jax.Array:
  # Tensor cores and TPUs would round float32 factors to 10 or 8 bits.
  sum_over = 'kh,bhwc->bkwc' if axis == 1 else 'kw,bhwc->bhkc'
  return jnp.einsum(sum_over, jnp.asarray(matrix, x.dtype), x, precision=lax.Precision.HIGHEST)


def _dct_by_fft(x: jax.Array, axis: int) -> jax.Array:
  """A real FFT of the even samples and then the odd ones backwards, turned by half a sample."""
  n, x = x.shape[axis], jnp.moveaxis(x, axis, -1)
  shuffled = jnp.concatenate([x[..., ::2], x[..., 1::2][..., ::-1]], axis=-1)
  spectrum = jnp.fft.rfft(shuffled)
  turned = spectrum * _turns(n, -1, spectrum.dtype, x.ndim)
  high = -jnp.imag(turned)[..., 1 : (n + 1) // 2][..., ::-1]
  z = jnp.concatenate([jnp.real(turned), high], axis=-1)
  return jnp.moveaxis(z * _last_axis(_scales(n), z.dtype, z.ndim), -1, axis)


def _idct_by_fft(z: jax.Array, axis: int) -> jax.Array:
  n, z = z.shape[axis], jnp.moveaxis(z, axis, -1)
  z = z * _last_axis(1 / _scales(n), z.dtype, z.ndim)
  # The partner of Z_k is Z_(n-k); that of Z_0, which there is none of, counts as 0.
  back = jnp.concatenate([jnp.zeros_like(z[..., :1]), z[..., :0:-1]], axis=-1)[..., : n // 2 + 1]
  turned = lax.complex(z[..., : n // 2 + 1], -back)
  x = jnp.fft.irfft(turned * _turns(n, 1, turned.dtype, z.ndim), n)
  even, odd = x[..., : (n + 1) // 2], x[..., (n + 1) // 2 :][..., ::-1]
  odd = jnp.pad(odd, [(0, 0)] * (odd.ndim - 1) + [(0, n % 2)])
  woven = jnp.stack([even, odd], axis=-1).reshape(*x.shape[:-1], -1)[..., :n]
  return jnp.moveaxis(woven, -1, axis)


def _turns(n: int, sign: int, dtype, ndim: int) -> jax.Array:
  """exp(sign i pi k / 2n) for k = 0..n // 2."""
  return _last_axis(np.exp(sign * 1j * np.pi * np.arange(n // 2 + 1) / (2 * n)), dtype, ndim)


def _last_axis(values: np.ndarray, dtype, ndim: int) -> jax.Array:
  return jnp.asarray(values, dtype).reshape((1,) * (ndim - 1) + (-1,))


@functools.lru_cache(maxsize=8)
def _block_matrix(size: int) -> np.ndarray:
  """(size^2, size^2): both directions at once, faster than two small products."""
  return np.kron(dct_matrix(size), dct_matrix(size))


def _on_blocks(x: jax.Array, matrix: np.ndarray) -> jax.Array:
  """The product with every block of (B, h, w, size, size, C)."""
  flat = x.reshape(-1, len(matrix), x.shape[-1])
  out = jnp.einsum(
    'kp,npc->nkc', jnp.asarray(matrix, x.dtype), flat, precision=lax.Precision.HIGHEST
  )
  return out.reshape(x.shape)
