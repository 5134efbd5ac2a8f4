"""Sums over a path that are refined, image by image, until they are complete.

Completeness (Sundararajan et al. 2017, arXiv 1703.01365, proposition 1): attributions sum to the
score of the image less that of the baseline. What a sum misses of it is the error that counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rest_jax.explain.queries import vary_like

COMPLETE = 0.05  # section 5 of the paper: steps are added until the sum is within 5 %
_SMALL = 0.01  # of the scores: a smaller difference is measured by this share of them


class Integral(NamedTuple):
  """Attributions of images and how far they are from complete.

  Attributes:
    attributions: (B, H, W, C), with their sign.
    delta: (B,), |sum of the attributions - gain| over |gain|; where the gain is under 1 % of the
      scores it comes from, over 1 % of the larger one.
    gain: (B,), the score of the image less that of the baseline.
    steps: int32 (B,), gradients taken along the path.
  """

  attributions: jax.Array
  delta: jax.Array
  gain: jax.Array
  steps: jax.Array


def delta_of(attributions: jax.Array, end: jax.Array, start: jax.Array) -> jax.Array:
  """How far one image's attributions (H, W, C) are from end - start; scalars."""
  size = jnp.maximum(jnp.abs(end), jnp.abs(start))
  size = jnp.maximum(jnp.abs(end - start), _SMALL * size)
  missed = jnp.abs(jnp.sum(attributions) - (end - start))
  return jnp.where(missed == 0, 0, missed / jnp.where(size == 0, 1, size))


def refined(
  integrate: Callable[[jax.Array], tuple[jax.Array, jax.Array, jax.Array]],
  like: jax.Array,
  rounds: int,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """One image's sum with 1, 2, 4, ... times the samples, until it is complete.

  Args:
    integrate: number of parts, int32 () -> (attributions (H, W, C), score at the end, score at the
      start).
    like: the image (H, W, C).
    rounds: how many sums at most; the last one is taken if none is complete.

  Returns:
    Attributions, delta, gain, and the number of parts.
  """

  def going_on(state):
    taken, _, delta, _ = state
    # Not a number is neither: then there is no use in going on.
    return (taken == 0) | ((delta > COMPLETE) & (taken < 2 ** (rounds - 1)))

  def step(state):
    parts = jnp.maximum(2 * state[0], 1)
    attributions, end, start = integrate(parts)
    return parts, attributions, delta_of(attributions, end, start), end - start

  nothing: Any = (jnp.int32(0), jnp.zeros_like(like), jnp.float32(0), jnp.float32(0))
  nothing = jax.tree.map(lambda x: vary_like(x, like), nothing)
  parts, attributions, delta, gain = jax.lax.while_loop(going_on, step, nothing)
  return attributions, delta, gain, parts
