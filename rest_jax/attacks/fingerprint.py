"""Tells whether results on disk are those of the same model."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

from rest_jax.attacks.queries import image_keys, logits_once
from rest_jax.evaluation.fingerprint import weights_hash

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
