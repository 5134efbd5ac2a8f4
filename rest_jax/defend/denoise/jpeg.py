"""JPEG compression as a denoiser, and a differentiable one near it for attacks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from rest_jax.attacks.threat import check_choice
from rest_jax.defend.denoise.denoiser import Denoiser, in_pixels, step
from rest_jax.defend.denoise.jpeg_codec import code_image, quality_tables
from rest_jax.defend.denoise.registry import register
from rest_jax.errors import UserError
from rest_jax.ops.dct import block_dct2, block_idct2
from rest_jax.ops.resize import resize_bilinear

SUBSAMPLING = ('4:2:0', '4:4:4')
ROUNDING = ('cubic', 'straight_through')

_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


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
