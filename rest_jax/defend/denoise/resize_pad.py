"""Random resizing and padding as a denoiser."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rest_jax.defend.denoise.denoisers import Denoiser, in_pixels, register, step
from rest_jax.errors import UserError


@register(
  'resize_pad',
  family='spatial',
  strength='least side the picture is shrunk to, from all down to 0.8 of it; 0.9 at 0.5',
  random=True,
  source='Xie et al., "Mitigating adversarial effects through randomization", 2018',
)
def resize_pad(strength: float, smallest: float = 0.8) -> Denoiser:
  """Shrinks a picture to a random size and puts it at a random place on black.

  The paper enlarges 299 pixels to 299-330 and pads to 331: a picture that covers 0.90 to 1 of the
  side of what the model sees. As a denoiser keeps the shape, the same is had here by shrinking:
  the side becomes a whole number of pixels, drawn evenly between 1 - strength * (1 - smallest) of
  it and all of it, for both sides alike; strength 0.5 is the paper's range. Bilinear, half-pixel
  centres, without antialiasing. Linear in the images for given draws.

  Args:
    strength: from 0 to 1.
    smallest: share of the side at strength 1, in (0, 1).

  Raises:
    UserError: another share.
  """
  if isinstance(smallest, bool) or not isinstance(smallest, float) or not 0 < smallest < 1:
    raise UserError(f'smallest is a share of the side between 0 and 1, not {smallest!r}')
  return in_pixels('resize_pad', strength, step(_draw, smallest=smallest), random=True)


def _draw(images: jax.Array, strength: jax.Array, keys: jax.Array, *, smallest: float) -> jax.Array:
  least = 1 - strength * (1 - smallest)
  numbers = jax.vmap(lambda key: jax.random.uniform(key, (3,)))(keys)
  # The size is drawn of the longer side, in whole pixels; the other keeps the aspect.
  longer = max(images.shape[1:3])
  first = jnp.ceil(least * longer - 1e-4)
  share = (first + jnp.floor(numbers[:, 0] * (longer - first + 1))) / longer
  rows, columns = (
    _placed(n, share, numbers[:, axis]) for axis, n in ((1, images.shape[1]), (2, images.shape[2]))
  )
  x = jnp.einsum('bIh,bhwc->bIwc', rows, images, precision='highest')
  return jnp.einsum('bJw,bIwc->bIJc', columns, x, precision='highest')


def _placed(n: int, share: jax.Array, place: jax.Array) -> jax.Array:
  """(B, n, n): weights of n samples at each pixel of a line with the shrunk picture on it."""
  size = jnp.maximum(jnp.round(share * n), 1.0)[:, None]
  start = jnp.floor(place[:, None] * (n - size + 1))
  pixel = jnp.arange(n, dtype=jnp.float32)[None] - start
  position = jnp.clip((pixel + 0.5) * (n / size) - 0.5, 0.0, n - 1.0)
  distance = jnp.abs(position[:, :, None] - jnp.arange(n, dtype=jnp.float32)[None, None])
  inside = (pixel >= 0) & (pixel < size)
  return jnp.where(inside[:, :, None], jnp.maximum(1 - distance, 0.0), 0.0)
