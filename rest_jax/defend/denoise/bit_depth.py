"""Fewer grey levels as a denoiser."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rest_jax.defend.denoise.denoisers import Denoiser, in_pixels, register, step
from rest_jax.errors import UserError

_PIXEL_BITS = 8


@register(
  'bit_depth',
  family='spatial',
  strength='bits a channel, from 8 down to 2; 5 at 0.5',
  differentiable=False,
  source='Xu et al., "Feature squeezing", 2018, section 3.1',
)
def bit_depth(strength: float, bits: int = 2) -> Denoiser:
  """Rounds every channel to 2^b equal steps from 0 to 1, b = 8 - strength * (8 - bits).

  Where b is no whole number, the number of levels is the whole number nearest to 2^b. Clips to
  [0, 1]. Piecewise constant: the derivative is 0, and an attack goes by the identity instead.

  Args:
    strength: from 0 to 1.
    bits: a channel at strength 1, from 1 to 7.

  Raises:
    UserError: other bits.
  """
  if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits < _PIXEL_BITS:
    raise UserError(f'bits of the bit depth are a whole number from 1 to 7, not {bits!r}')
  return in_pixels('bit_depth', strength, step(_round, bits=bits), differentiable=False)


def _round(images: jax.Array, strength: jax.Array, *, bits: int) -> jax.Array:
  depth = _PIXEL_BITS - strength * (_PIXEL_BITS - bits)
  # exp2 may miss a power of two by an ulp, which the rounding mends.
  steps = jnp.round(jnp.exp2(depth)) - 1
  return jnp.round(jnp.clip(images, 0.0, 1.0) * steps) / steps
