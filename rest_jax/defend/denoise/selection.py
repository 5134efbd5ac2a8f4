"""Medians without sorting, which XLA's CPU backend does slowly."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def nonzero_median(values: jax.Array) -> jax.Array:
  """Median of those that are not 0; of an even number, the mean of the two in the middle.

  Args:
    values: float32 (..., N) from 0.

  Returns:
    (...); 0 where all are 0. The derivative is that of the values in the middle, in equal parts to
    equal ones.
  """
  # The bit patterns of floats from 0 have the order of their values.
  bits = lax.bitcast_convert_type(lax.stop_gradient(values), jnp.int32)
  zeros = jnp.sum(bits == 0, axis=-1, dtype=jnp.int32)
  count = bits.shape[-1] - zeros
  lower = _of_rank(bits, zeros + (count - 1) // 2)
  upper = _of_rank(bits, zeros + count // 2)
  return 0.5 * (_mean_of_equal(values, bits, lower) + _mean_of_equal(values, bits, upper))


def _of_rank(bits: jax.Array, rank: jax.Array) -> jax.Array:
  """The pattern with `rank` smaller ones before it, (...): 31 halvings."""

  def halve(_, ends):
    low, high = ends
    middle = low + (high - low) // 2
    enough = jnp.sum(bits <= middle[..., None], axis=-1, dtype=jnp.int32) > rank
    return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

  ends = jnp.zeros_like(rank), jnp.full_like(rank, jnp.iinfo(jnp.int32).max)
  return lax.fori_loop(0, 31, halve, ends)[0]


def _mean_of_equal(values: jax.Array, bits: jax.Array, pattern: jax.Array) -> jax.Array:
  equal = bits == pattern[..., None]
  count = jnp.sum(equal, axis=-1, dtype=jnp.int32).astype(values.dtype)
  # Dividing first would round: of one value the mean is the value.
  return jnp.sum(jnp.where(equal, values, 0.0), axis=-1) / jnp.maximum(count, 1.0)
