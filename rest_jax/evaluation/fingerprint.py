"""What pins a model in the header of results: are those on disk of the same one?"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rest_jax.recipes import digest

_PROBE_RTOL = 1e-3  # logits of the same weights on another device differ by less


def pin(
  model: Any, *facts: str, probe: np.ndarray | Sequence[float] = (), model_id: str | None = None
) -> dict[str, Any]:
  """What pins a model, for `Records`.

  Args:
    model: a pytree of its weights.
    *facts: what else it is, such as its configuration.
    probe: its logits on fixed images, which a function without weights differs in; any shape.
    model_id: the user's word for it, which then decides alone.

  Returns:
    'weights': a hash, or None of a model without arrays, or `model_id`; 'probe': the logits, None
    where not finite; 'code': a hash of the user's functions in it, for two may have the same values
    and other gradients.
  """
  if model_id is not None:
    return {'weights': f'id {model_id}', 'probe': [], 'code': None}
  values = np.asarray(probe, np.float64).ravel().tolist()
  finite = [value if np.isfinite(value) else None for value in values]
  return {'weights': weights_hash(model, *facts), 'probe': finite, 'code': digest(model)}


def weights_hash(model: Any, *facts: str) -> str | None:
  """A hash of a pytree's arrays, their names, types and shapes; None where it holds none.

  Args:
    model: any pytree.
    *facts: further texts that count.
  """
  leaves, _ = jax.tree_util.tree_flatten_with_path(model)
  leaves = [(path, leaf) for path, leaf in leaves if hasattr(leaf, 'dtype')]
  if not leaves:
    return None
  found = hashlib.sha256(''.join(facts).encode())
  for path, leaf in leaves:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    array = np.ascontiguousarray(leaf)
    found.update(f'{jax.tree_util.keystr(path)} {array.dtype} {array.shape}'.encode())
    found.update(array.tobytes())
  return found.hexdigest()


def same_model(found: Any, wanted: Mapping[str, Any] | None) -> bool:
  """Whether two pins are of one model.

  The weights, what the model answers and its code: the same weights may stand in another function,
  and a function with the same answers may have another gradient, as behind `attacks.bpda`.

  Args:
    found: as it stands on disk.
    wanted: from `pin`; None for an evaluation without a model.
  """
  if wanted is None or not isinstance(found, dict):
    return found is None and wanted is None
  if found.get('weights') != wanted['weights']:
    return False
  codes = [one['code'] for one in (found, wanted) if 'code' in one]  # older results have none
  if len(codes) == 2 and codes[0] != codes[1]:
    return False
  old, new = found.get('probe') or [], wanted['probe']
  scale = max((abs(value) for value in new if value is not None), default=0.0)
  return len(old) == len(new) and all(
    a == b or (None not in (a, b) and abs(a - b) <= _PROBE_RTOL * scale)
    for a, b in zip(old, new, strict=True)
  )
