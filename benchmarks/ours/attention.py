"""The attention of ResT by itself, and plain multi-head self-attention."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.ours.models import weights
from benchmarks.ours.programs import program
from benchmarks.work import Work
from rest_jax.models.emsa import EMSA


def attention(
  batch: int, side: int, width: int, heads: int, reduction: int, mix: bool, backward: bool = False
) -> Work:
  """A layer on a map (batch, side, side, width): EMSA, or with reduction 1 and no mixing MSA.

  Args:
    batch: maps.
    side: of a map, in tokens.
    width: channels.
    heads: attention heads.
    reduction: s of the keys' windows.
    mix: whether heads are mixed and normalised.
    backward: the gradient of parameters and map too.
  """
  layer = EMSA(heads, reduction, mix_heads=mix)
  variables = weights(layer, 1, side, side, width, train=False)
  rng = np.random.default_rng(1)
  x = jnp.asarray(rng.standard_normal((batch, side, side, width), np.float32))

  def forward(v, x) -> Any:
    return layer.apply(v, x, train=False)

  if not backward:
    return program(forward, variables, x)
  return program(jax.grad(lambda v, x: jnp.sum(forward(v, x) ** 2), argnums=(0, 1)), variables, x)
