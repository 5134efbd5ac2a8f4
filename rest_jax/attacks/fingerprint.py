"""Tells whether results on disk are those of the same model."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from rest_jax.attacks.health_probe import logits_once
from rest_jax.attacks.queries import image_keys

_PROBES = 4  # images


def fingerprint(
  model: Partial, shape: tuple[int, ...], batch_size: int, model_id: str | None
) -> dict[str, Any]:
  """What pins a model in the header of its results.

  Args:
    model: images to logits.
    shape: of one image.
    batch_size: images to ask for at a time; the answer does not hang on it.
    model_id: the user's word for it, which then decides alone.

  Returns:
    'weights': a hash, None for a function that holds none as arguments, or `model_id`; 'probe': the
    logits of some images of noise, null where not finite.
  """
  if model_id is not None:
    return {'weights': f'id {model_id}', 'probe': []}
  noise = np.random.default_rng(0).random((_PROBES, *shape), np.float32)
  keys = image_keys(jax.random.key(0), _PROBES)
  parts = []
  for first in range(0, _PROBES, batch_size):
    # Always the same images, in batches of the one shape that the model is asked with.
    at = np.minimum(np.arange(first, first + batch_size), _PROBES - 1)
    parts.append(np.asarray(logits_once(model, noise[at], keys[at]))[: _PROBES - first])
  probe = np.concatenate(parts).ravel()
  values = [float(value) if np.isfinite(value) else None for value in probe]
  return {'weights': weights_hash(model), 'probe': values}


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
