"""Padding of images to sides that a network divides."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def pad_to_multiple(x: jax.Array, multiple: int = 32) -> jax.Array:
  """Adds zeros below and to the right, (B, H, W, C), until `multiple` divides both sides."""
  height, width = (-side % multiple for side in x.shape[1:3])
  if not height and not width:
    return x
  return jnp.pad(x, ((0, 0), (0, height), (0, width), (0, 0)))
