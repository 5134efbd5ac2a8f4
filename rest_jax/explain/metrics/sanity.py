"""Sanity checks: does a map change when the model's weights are random?

Adebayo et al. 2018, "Sanity Checks for Saliency Maps", arXiv 1810.03292, section 3: layers are
re-initialised from the last to the first, all those before staying so (cascading), or one at a
time (independent). A map that stays alike says little about what the model has learned.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from rest_jax.callables import as_function
from rest_jax.errors import UserError
from rest_jax.explain.method import explain
from rest_jax.explain.metrics.similarity import rank_correlation, structural_similarity
from rest_jax.explain.queries import check_images, constant_maps
from rest_jax.layers import survey

MODES = ('cascading', 'independent')


class SanityRow(NamedTuple):
  """One step of the check.

  Attributes:
    layer: the module that was re-initialised in this step.
    maps: float32 (B, H, W) of the model so far.
    rank_correlation: float64 (B,), Spearman's with the original maps; 0 for a constant map.
    ssim: float64 (B,), structural similarity to the original maps.
    constant: bool (B,), maps that are constant.
  """

  layer: str
  maps: jax.Array
  rank_correlation: np.ndarray
  ssim: np.ndarray
  constant: np.ndarray


class SanityCheck(NamedTuple):
  """What a check gives.

  Attributes:
    original: float32 (B, H, W), maps of the model as it is.
    targets: int32 (B,), the class that all maps explain.
    rows: a step each, the model's last layer first.
  """

  original: jax.Array
  targets: jax.Array
  rows: tuple[SanityRow, ...]


def sanity_check(
  model: Any,
  images: jax.Array | np.ndarray,
  method: str = 'group_cam',
  targets: Any = None,
  *,
  mode: str = 'cascading',
  layers: Sequence[str] | None = None,
  fresh: Any = None,
  key: jax.Array | None = None,
  **options: Any,
) -> SanityCheck:
  """Runs a method on a model that forgets layer by layer.

  The model's code is compiled once: weights are data. Parameters and statistics of a module are
  re-initialised together, from one draw for all the steps.

  Args:
    model: a `Classifier`, or a dataclass like it: a pytree that is called with images, with
      `module` (Linen) and `variables`, and `normalise` if the module wants other numbers.
    images: float32 (B, H, W, C).
    method: a name of `list_methods()`.
    targets: class indices, (B,) or one for all; None: the classes that the original predicts.
    mode: 'cascading' or 'independent'.
    layers: paths of modules ('head', 'stage4/block1'), in the order of the steps; by default those
      at the top, from the last that runs to the first.
    fresh: the re-initialised variables; by default `module.init(key, images)`.
    key: of the new weights, and of a random method; jax.random.key(0) by default.
    **options: `layer` and whatever else `explain` and the method take.

  Returns:
    `SanityCheck`.

  Raises:
    UserError: a model without module and variables, an unknown mode, method or layer.
  """
  images = check_images(images)
  if mode not in MODES:
    raise UserError(f"mode is 'cascading' or 'independent', got {mode!r}")
  trained = _variables(model)
  key = jax.random.key(0) if key is None else key
  if fresh is None:
    fresh = initial_variables(model, images, jax.random.fold_in(key, 1))
  names = top_layers(model, images.shape) if layers is None else tuple(layers)
  original = explain(model, images, method, targets, key=key, **options)
  rows = []
  for i, name in enumerate(names):
    forgotten = names[: i + 1] if mode == 'cascading' else (name,)
    other = dataclasses.replace(model, variables=replaced(trained, fresh, forgotten))
    maps = explain(other, images, method, original.targets, key=key, **options).maps
    rows.append(_row(name, original.maps, maps))
  return SanityCheck(original.maps, original.targets, tuple(rows))


def _row(name: str, original: jax.Array, maps: jax.Array) -> SanityRow:
  correlation, ssim = rank_correlation(original, maps), structural_similarity(original, maps)
  return SanityRow(name, maps, correlation, ssim, np.asarray(constant_maps(maps)))


def top_layers(model: Any, image_shape: tuple[int, ...]) -> tuple[str, ...]:
  """Top modules that hold parameters, from the last that ends to the first.

  Parameters that belong to no module seen running (an embedding of the root's own) come last.
  """
  held = {path[0] for path in traverse_util.flatten_dict(_variables(model)['params'])}
  seen = survey(as_function(model), tuple(image_shape)).layers
  order = dict.fromkeys(reversed([path.split('/')[0] for path in seen]))
  return (*(name for name in order if name in held), *sorted(held - set(order)))


def replaced(trained: Any, fresh: Any, names: Sequence[str]) -> dict[str, Any]:
  """Variables with those of some modules, in every collection, from another set.

  Args:
    trained: {collection: {module: ...}}.
    fresh: the same tree.
    names: paths of modules.

  Returns:
    The mixed tree.

  Raises:
    UserError: no parameters under one of the names, or trees that differ.
  """
  flat: dict[str, Any] = traverse_util.flatten_dict(trained, sep='/')  # pyright: ignore
  other: dict[str, Any] = traverse_util.flatten_dict(fresh, sep='/')  # pyright: ignore
  if any(p not in other or np.shape(v) != np.shape(other[p]) for p, v in flat.items()):
    raise UserError('the fresh variables are not of this model: other names or shapes')
  chosen = set()
  for name in names:
    under = {path for path in flat if f'{path}/'.startswith(tuple(f'{c}/{name}/' for c in trained))}
    if not under:
      tops = sorted({path.split('/')[1] for path in flat})
      raise UserError(f'there are no parameters under {name!r}; at the top are {", ".join(tops)}')
    chosen |= under
  mixed = {path: other[path] if path in chosen else value for path, value in flat.items()}
  return traverse_util.unflatten_dict(mixed, sep='/')


def initial_variables(model: Any, images: jax.Array, key: jax.Array) -> Any:
  """Variables as the model's module is initialised for these images, without training."""
  normalise = getattr(model, 'normalise', None)
  sample = jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32)
  sample = jax.eval_shape(normalise, sample) if normalise else sample
  return _init(model.module, sample.shape, key)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _init(module, shape: tuple[int, ...], key: jax.Array) -> Any:
  return module.init(key, jnp.zeros(shape, jnp.float32))


def _variables(model: Any) -> Any:
  if not dataclasses.is_dataclass(model) or not hasattr(model, 'module'):
    raise UserError(
      'a sanity check needs a Classifier, or a dataclass with module and variables like it, '
      f'not {type(model).__name__}'
    )
  variables = getattr(model, 'variables', None)
  if not variables or 'params' not in variables:
    raise UserError('a sanity check needs variables with a collection of params')
  return variables
