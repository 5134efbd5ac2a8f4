"""From stored pixels to what a network reads."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def to_unit(images: jax.Array) -> jax.Array:
  """Scales uint8 images to float32 in [0, 1]."""
  return images.astype(jnp.float32) / 255.0


def normalise(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
  """Removes the channel means and divides by the channel standard deviations.

  Args:
    images: float32 (B, H, W, 3) in [0, 1].
    mean: three channel means.
    std: three channel standard deviations.

  Returns:
    float32 (B, H, W, 3).
  """
  shape = (1, 1, 1, 3)
  centred = images - jnp.asarray(mean, jnp.float32).reshape(shape)
  return centred / jnp.asarray(std, jnp.float32).reshape(shape)
