"""Random starts for a batch of images, one key an image.

The keys are JAX's; a hash of each value's place takes the place of Threefry, whose code takes
XLA:CPU most of a second to compile in every program that draws an array (measured; this takes a
tenth of it). It has the quality that a starting point needs, not more.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def uniform(keys: jax.Array, shape: tuple[int, ...], skip: int = 0) -> jax.Array:
  """Values between -1 and 1, the ends excluded, after the first `skip`: (B, *shape), keys (B,)."""
  # 2^24 values at odd multiples of 2^-24, so symmetric about 0.
  steps = (_bits(keys, shape, skip) >> 8).astype(jnp.int32) * 2 + (1 - 2**24)
  return steps.astype(jnp.float32) * np.float32(2.0**-24)


def normal(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Standard normal values: (B, *shape) for keys (B,)."""
  return np.float32(math.sqrt(2)) * lax.erf_inv(uniform(keys, shape))


def laplace(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Values of the standard Laplace distribution: (B, *shape) for keys (B,)."""
  x = uniform(keys, shape)
  return -jnp.sign(x) * jnp.log1p(-jnp.abs(x))


def _bits(keys: jax.Array, shape: tuple[int, ...], skip: int) -> jax.Array:
  place = lax.iota(jnp.uint32, math.prod(shape)).reshape(1, *shape) + np.uint32(skip)
  for seed in jnp.moveaxis(jax.random.key_data(keys).astype(jnp.uint32), -1, 0)[:2]:
    place = _mix(place ^ seed.reshape(-1, *(1,) * len(shape)))
  return place


def _mix(x: jax.Array) -> jax.Array:
  """A bijection of 32 bits; the constants are the ones of C. Wellons' search, "lowbias32"."""
  x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
  return x ^ (x >> 16)
