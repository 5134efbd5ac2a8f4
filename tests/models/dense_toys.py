"""A backbone without parameters, as golden/make_dense.py has it, and small detectors on it."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

GOLDEN = np.load(Path(__file__).parents[1] / 'golden' / 'dense.npz')
WIDTHS = (6, 6, 9, 12)


class Squares(nn.Module):
  """Map k is the mean over squares of 4, 8, 16 or 32 px, times 1, 2, ..., and its sine."""

  widths: tuple[int, ...] = WIDTHS

  def features(self, x, train: bool = False):
    """Four maps of strides 4, 8, 16, 32."""
    maps = []
    for side, width in zip((4, 8, 16, 32), self.widths, strict=True):
      b, h, w, c = x.shape
      mean = x.reshape(b, h // side, side, w // side, side, c).mean((2, 4))
      maps.append(jnp.sin(jnp.concatenate([mean * (k + 1) for k in range(width // c)], -1)))
    return tuple(maps)


def state(prefix: str) -> dict[str, np.ndarray]:
  """The weights of a golden model, under the names of its library."""
  start = f'{prefix}/state/'
  return {n.removeprefix(start): GOLDEN[n] for n in GOLDEN.files if n.startswith(start)}


def images(prefix: str) -> np.ndarray:
  """Its images, NHWC."""
  return GOLDEN[f'{prefix}/images'].transpose(0, 2, 3, 1)
