"""What the device can do at most: a product of matrices, and copying."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from benchmarks.ours.programs import program
from benchmarks.work import Work


def matmul(quick: bool, dtype: str) -> Work:
  """A product of two square matrices."""
  on_cpu = jax.default_backend() == 'cpu'
  size = (768 if quick else 2048) if on_cpu else 8192
  size = size // 2 if on_cpu and dtype != 'float32' else size
  a = jnp.ones((size, size), dtype)
  work = program(jnp.matmul, a, a)
  return Work(work.call, lambda: {'flops': 2.0 * size**3})


def copy(quick: bool, dtype: str) -> Work:
  """Reading an array that no cache holds, and writing it."""
  size = 2**24 if quick else 2**26
  work = program(lambda x: x + 1, jnp.ones(size, dtype))
  return Work(work.call, lambda: {'bytes': 2.0 * size * jnp.dtype(dtype).itemsize})
