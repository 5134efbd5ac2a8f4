"""The denoisers of the registry."""

from __future__ import annotations

import jax

from benchmarks.ours.cams import pictures
from benchmarks.work import Work
from rest_jax.defend.denoise import denoiser


def denoise(name: str, batch: int, size: int) -> Work:
  """A denoiser at half of its strength."""
  subject, images, key = denoiser(name, 0.5), pictures(batch, size), jax.random.key(0)
  return Work(lambda: jax.block_until_ready(subject(images, key)))
