"""JPEG compression as a denoiser, and a differentiable one near it for attacks.

Encoded and decoded without the entropy coding between, to the bit of libjpeg-turbo: baseline JPEG
(ITU-T T.81) with the tables of its annex K, in the integer arithmetic of the Independent JPEG
Group's library that Pillow and most others use: colours by 16-bit fixed point, the "islow"
transform with its two roundings, quantisation half away from zero, chroma of half the size by the
mean of 2x2 pixels and back by a triangle filter. All of that is int32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rest_jax.defend.denoise.denoisers import Denoiser, in_pixels, register, step
from rest_jax.errors import UserError
from rest_jax.inputs import check_choice
from rest_jax.ops.dct import block_dct2, block_idct2
from rest_jax.ops.resize import resize_bilinear

SUBSAMPLING = ('4:2:0', '4:4:4')
ROUNDING = ('cubic', 'straight_through')

_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))
# T.81, tables K.1 and K.2, row by row.
LUMA = np.array(
  [
    [16, 11, 10, 16, 24, 40, 51, 61],
    [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77],
    [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
  ],
  np.int32,
)
CHROMA = np.full((8, 8), 99, np.int32)
CHROMA[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]

# 2^13 sqrt(8) times the orthonormal DCT's rows, of whose symmetry the first four columns tell all.
# Sums of rounded constants, as the library's fast algorithm makes them, which is why two entries
# that should be equal differ by 1.
_HALF = np.array(
  [
    [8192, 8192, 8192, 8192],
    [11363, 9633, 6437, 2260],
    [10703, 4433, -4433, -10703],
    [9633, -2259, -11362, -6436],
    [8192, -8192, -8192, 8192],
    [6437, -11362, 2261, 9633],
    [4433, -10704, 10704, -4433],
    [2260, -6436, 9633, -11363],
  ],
  np.int32,
)
_DCT = np.hstack([_HALF, _HALF[:, ::-1] * np.array([[1], [-1]] * 4, np.int32)])


@register(
  'jpeg',
  family='frequency',
  strength='quality, from 100 down to 10; 55 at 0.5',
  differentiable=False,
  source='Das et al., "Shield: fast, practical defense and vaccination for deep learning using '
  'JPEG compression", 2018; Pillow with libjpeg-turbo',
)
def jpeg(
  strength: float,
  quality: int = 10,
  subsampling: str = '4:2:0',
  rounding: str = 'cubic',
) -> Denoiser:
  """JPEG at the whole quality nearest to 100 - strength * (100 - quality).

  Images are clipped to [0, 1] and rounded to 8 bits first. Equal to Pillow's encoding and decoding
  at that quality to the bit. Three channels are red, green and blue; of any other number each is
  coded as a grey image.

  The rounding has no derivative: an attack goes by `surrogate`, the same steps in floats (colours,
  subsampling, DCT of 8x8 blocks, quantisation by the same tables) with a rounding that has one.

  Args:
    strength: from 0 to 1.
    quality: at strength 1, from 1 to 99.
    subsampling: of the chroma, '4:2:0' (Pillow's default) or '4:4:4'.
    rounding: of the surrogate: 'cubic', round(x) + (x - round(x))^3 (Shin and Song, "JPEG-resistant
      adversarial images", 2017), or 'straight_through', a derivative of 1. The first knows which
      coefficients become 0, and PGD through it is the stronger attack on `digit_scenes`.

  Raises:
    UserError: an option out of range.
  """
  if isinstance(quality, bool) or not isinstance(quality, int) or not 1 <= quality <= 99:
    raise UserError(f'the quality of JPEG is a whole number from 1 to 99, not {quality!r}')
  check_choice('subsampling', subsampling, SUBSAMPLING)
  check_choice('rounding', rounding, ROUNDING)
  options = {'quality': quality, 'half': subsampling == '4:2:0'}
  compress = step(_code, **options)
  surrogate = step(_code_smoothly, rounding=rounding, **options)
  return in_pixels('jpeg', strength, compress, surrogate=surrogate, differentiable=False)


def _quality(strength: jax.Array, quality: int) -> jax.Array:
  return jnp.round(100 - strength * (100 - quality)).astype(jnp.int32)


def _code(images: jax.Array, strength: jax.Array, *, quality: int, half: bool) -> jax.Array:
  pixels = jnp.round(jnp.clip(images, 0.0, 1.0) * 255).astype(jnp.int32)
  return code_image(pixels, _quality(strength, quality), half).astype(jnp.float32) / 255


def _code_smoothly(
  images: jax.Array, strength: jax.Array, *, quality: int, half: bool, rounding: str
) -> jax.Array:
  tables = [t.astype(jnp.float32) for t in quality_tables(_quality(strength, quality))]
  x = images * 255
  if x.shape[-1] != 3:
    return jnp.clip(_code_plane(x, tables[0], rounding), 0.0, 255.0) / 255
  x = _colours(x, _TO_YCC)
  luma, chroma = x[..., :1], x[..., 1:] + 128
  size = x.shape[1], x.shape[2]
  if half:
    chroma = resize_bilinear(_code_plane(_halve(chroma), tables[1], rounding), _even(size))
    chroma = chroma[:, : size[0], : size[1]]
  else:
    chroma = _code_plane(chroma, tables[1], rounding)
  luma = _code_plane(luma, tables[0], rounding)
  x = _colours(jnp.concatenate([luma, chroma - 128], axis=-1), _TO_RGB)
  return jnp.clip(x, 0.0, 255.0) / 255


def _code_plane(x: jax.Array, table: jax.Array, rounding: str) -> jax.Array:
  """Quantises blocks of every channel: floats (B, H, W, C) in 0..255."""
  z = block_dct2(x - 128)
  table = jnp.broadcast_to(table[:, :, None], z.shape)
  return block_idct2(_round(z / table, rounding) * table, 8, x.shape) + 128


def _round(x: jax.Array, rounding: str) -> jax.Array:
  whole = lax.stop_gradient(jnp.round(x))
  return whole + (x - whole) ** 3 if rounding == 'cubic' else x + lax.stop_gradient(whole - x)


def _colours(x: jax.Array, matrix: tuple[tuple[float, ...], ...]) -> jax.Array:
  return jnp.einsum('dc,bhwc->bhwd', jnp.asarray(matrix), x, precision='highest')


def _even(size: tuple[int, int]) -> tuple[int, int]:
  return size[0] + size[0] % 2, size[1] + size[1] % 2


def _halve(x: jax.Array) -> jax.Array:
  """Means of 2x2 pixels; odd sides are filled up with the last row or column."""
  batch, height, width, channels = x.shape
  x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode='edge')
  return x.reshape(batch, x.shape[1] // 2, 2, x.shape[2] // 2, 2, channels).mean(axis=(2, 4))


def quality_tables(quality: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The two quantisation tables, int32 (8, 8) in 1..255, of a quality, int32 in 1..100."""
  scale = jnp.where(quality < 50, 5000 // quality, 200 - 2 * quality)
  luma, chroma = (
    jnp.clip((jnp.asarray(table) * scale + 50) // 100, 1, 255) for table in (LUMA, CHROMA)
  )
  return luma, chroma


def code_image(pixels: jax.Array, quality: jax.Array, subsampled: bool) -> jax.Array:
  """Encodes and decodes.

  Args:
    pixels: int32 (B, H, W, C) in 0..255: three channels are red, green and blue, of any other
      number each is coded as a grey image.
    quality: int32 in 1..100.
    subsampled: chroma at half the size (4:2:0), or in full (4:4:4).

  Returns:
    int32 (B, H, W, C) in 0..255.
  """
  luma, chroma = quality_tables(quality)
  planes = [pixels[..., c] for c in range(pixels.shape[-1])]
  if len(planes) != 3:
    return jnp.stack([code_plane(plane, luma) for plane in planes], axis=-1)
  y, cb, cr = _to_ycc(*planes)
  code = _code_half if subsampled else code_plane
  # As one batch: the program is smaller.
  cb, cr = jnp.split(code(jnp.concatenate([cb, cr]), chroma), 2)
  return jnp.stack(_to_rgb(code_plane(y, luma), cb, cr), axis=-1)


def code_plane(plane: jax.Array, table: jax.Array) -> jax.Array:
  """Transforms, quantises and transforms back blocks of 8x8: int32 (B, H, W) in 0..255."""
  batch, height, width = plane.shape
  plane = jnp.pad(plane, ((0, 0), (0, -height % 8), (0, -width % 8)), mode='edge')
  rows, columns = plane.shape[1] // 8, plane.shape[2] // 8
  # The place within a block first: every step is then a sum of whole arrays.
  blocks = plane.reshape(batch, rows, 8, columns, 8).transpose(2, 4, 0, 1, 3).reshape(8, 8, -1)
  out = _inverse(_quantise(_forward(blocks - 128), table[:, :, None])) + 128
  out = jnp.clip(out, 0, 255).reshape(8, 8, batch, rows, columns).transpose(2, 3, 0, 4, 1)
  return out.reshape(plane.shape)[:, :height, :width]


def _forward(x: jax.Array) -> jax.Array:
  """(8, 8, N): 8 times the orthonormal transform, along rows and then columns."""
  rows = _descale(jnp.einsum('kj,ijn->ikn', jnp.asarray(_DCT), x), 11)
  return _descale(jnp.einsum('ki,ijn->kjn', jnp.asarray(_DCT), rows), 15)


def _inverse(z: jax.Array) -> jax.Array:
  columns = _descale(jnp.einsum('ki,kjn->ijn', jnp.asarray(_DCT), z), 11)
  return _descale(jnp.einsum('kj,ikn->ijn', jnp.asarray(_DCT), columns), 18)


def _descale(x: jax.Array, shift: int) -> jax.Array:
  """Division by 2^shift, rounded half up."""
  return (x + (1 << shift >> 1)) >> shift


def _quantise(z: jax.Array, table: jax.Array) -> jax.Array:
  """Rounds 8-fold coefficients to multiples of the table, half away from zero, and gives those."""
  # In floats, because processors divide no vectors of integers. The half that is added changes no
  # floor of a quotient of integers, and keeps whole quotients off the edge: XLA may multiply by a
  # rounded reciprocal.
  divisor = (8 * table).astype(jnp.float32)
  steps = jnp.floor((jnp.abs(z).astype(jnp.float32) + 0.5 * divisor + 0.5) / divisor)
  return jnp.sign(z) * steps.astype(jnp.int32) * table


def _to_ycc(red: jax.Array, green: jax.Array, blue: jax.Array) -> tuple[jax.Array, ...]:
  """JFIF's luma and chroma in 0..255, by constants of 16 bits."""
  half, middle = 1 << 15, 128 << 16
  return (
    (19595 * red + 38470 * green + 7471 * blue + half) >> 16,
    (32768 * blue - 11059 * red - 21709 * green + middle + half - 1) >> 16,
    (32768 * red - 27439 * green - 5329 * blue + middle + half - 1) >> 16,
  )


def _to_rgb(y: jax.Array, cb: jax.Array, cr: jax.Array) -> list[jax.Array]:
  cb, cr = cb - 128, cr - 128
  red = y + _descale(91881 * cr, 16)
  green = y + _descale(-22554 * cb - 46802 * cr, 16)
  blue = y + _descale(116130 * cb, 16)
  return [jnp.clip(colour, 0, 255) for colour in (red, green, blue)]


def _code_half(plane: jax.Array, table: jax.Array) -> jax.Array:
  """Codes a plane of half the size."""
  _, height, width = plane.shape
  # To the right pixels are repeated up to whole blocks before they are averaged, below only up to
  # whole pairs: beyond, `code_plane` repeats what was averaged.
  plane = jnp.pad(plane, ((0, 0), (0, height % 2), (0, -width % 16)), mode='edge')
  small = code_plane(_halve_whole(plane), table)
  return _double(small[:, :, : (width + 1) // 2])[:, :height, :width]


def _halve_whole(plane: jax.Array) -> jax.Array:
  """Means of 2x2 pixels, rounded down and up by turns."""
  pairs = plane[:, 0::2] + plane[:, 1::2]
  added = pairs[:, :, 0::2] + pairs[:, :, 1::2]
  turn = jnp.broadcast_to(jnp.arange(added.shape[2], dtype=jnp.int32) % 2, added.shape)
  return (added + 1 + turn) >> 2


def _double(plane: jax.Array) -> jax.Array:
  """Triangle filter: 3/4 of the nearer and 1/4 of the farther sample along each axis.

  A plane of one or two columns is repeated instead, as the library does.
  """
  if plane.shape[2] <= 2:
    return jnp.repeat(jnp.repeat(plane, 2, axis=1), 2, axis=2)
  near = jnp.pad(plane, ((0, 0), (1, 1), (0, 0)), mode='edge')
  tall = _weave(3 * plane + near[:, :-2], 3 * plane + near[:, 2:], 1)
  near = jnp.pad(tall, ((0, 0), (0, 0), (1, 1)), mode='edge')
  # In sixteenths; the two roundings differ so that halves do not all go up.
  return _weave((3 * tall + near[:, :, :-2] + 8) >> 4, (3 * tall + near[:, :, 2:] + 7) >> 4, 2)


def _weave(first: jax.Array, second: jax.Array, axis: int) -> jax.Array:
  shape = [(2 if a == axis else 1) * n for a, n in enumerate(first.shape)]
  return jnp.stack([first, second], axis=axis + 1).reshape(shape)
