"""A hash of a model: tells whether results on disk are those of the same weights."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def weights_hash(model: Any) -> str | None:
  """A hash of a pytree's arrays, their names, types and shapes; None where it holds none."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(model)
  leaves = [(path, leaf) for path, leaf in leaves if hasattr(leaf, 'dtype')]
  if not leaves:
    return None
  found = hashlib.sha256()
  for path, leaf in leaves:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    array = np.ascontiguousarray(leaf)
    found.update(f'{jax.tree_util.keystr(path)} {array.dtype} {array.shape}'.encode())
    found.update(array.tobytes())
  return found.hexdigest()
