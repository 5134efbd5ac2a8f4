"""Sanity checks: does a map change when the model's weights are random, and how alike are two?

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
from jax.core import Tracer

from rest_jax.callables import as_function
from rest_jax.errors import UserError
from rest_jax.explain.maps import constant_maps
from rest_jax.explain.methods import explain
from rest_jax.explain.metrics.order import check_finite_maps, check_unit_maps
from rest_jax.explain.queries import check_images
from rest_jax.layers import survey
from rest_jax.ops.platform import jit

MODES = ('cascading', 'independent')
_WINDOW, _SIGMA = 11, 1.5  # Wang et al. 2004, section III-C
_K1, _K2 = 0.01, 0.03


class SanityRow(NamedTuple):
  """One step of the check.

  Attributes:
    layer: the module that was re-initialised in this step.
    maps: float32 (B, H, W) of the model so far.
    rank_correlation: float64 (B,), Spearman's with the original maps; not a number where either
      is constant: a map that says nothing is neither alike nor changed.
    ssim: float64 (B,), structural similarity to the original maps; not a number likewise.
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
  # An empty map is unlike any other, which is the best that the check can find.
  ssim = np.where(np.isnan(correlation), np.nan, ssim)
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


@functools.partial(jit, static_argnums=(0, 1))
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


def rank_correlation(
  first: jax.Array | np.ndarray, second: jax.Array | np.ndarray, absolute: bool = True
) -> np.ndarray:
  """Spearman's rank correlation of each pair of maps.

  Args:
    first: (B, H, W).
    second: the same shape.
    absolute: of the absolute values, as Adebayo et al. (2018, section 3.2) compare maps with a
      sign; nothing changes for maps in [0, 1].

  Returns:
    float64 (B,) in [-1, 1]; tied pixels share their mean rank. A constant map has no ranks, and
    its correlation is not a number: leave it out of means (0 would be the best of all values).

  Raises:
    UserError: maps of other or different shapes, or not finite; inside jit.
  """
  a, b = _pair(first, second)
  if absolute:
    a, b = np.abs(a), np.abs(b)
  x, y = (np.stack([_mean_ranks(m) for m in maps.reshape(len(maps), -1)]) for maps in (a, b))
  x, y = (r - r.mean(1, keepdims=True) for r in (x, y))
  norm = np.sqrt((x**2).sum(1) * (y**2).sum(1))
  return np.where(norm > 0, (x * y).sum(1) / np.where(norm > 0, norm, 1), np.nan)


def structural_similarity(
  first: jax.Array | np.ndarray, second: jax.Array | np.ndarray
) -> np.ndarray:
  """Mean SSIM of each pair of maps (Wang et al. 2004, equations 13-17).

  Gaussian windows of 11 px and sigma 1.5 that lie wholly within the map, constants 0.01 and 0.03,
  data range 1. A map with a side under 11 px gets the largest odd window that fits.

  Args:
    first: (B, H, W) in [0, 1].
    second: the same shape.

  Returns:
    float64 (B,), 1 for equal maps.

  Raises:
    UserError: maps of other or different shapes, not finite or beyond [0, 1], where the constants
      have no meaning; inside jit.
  """
  a, b = _pair(first, second)
  for maps in (a, b):
    check_unit_maps(maps)
  mean_a, mean_b = _smooth(a), _smooth(b)
  var_a, var_b = _smooth(a * a) - mean_a**2, _smooth(b * b) - mean_b**2
  covariance = _smooth(a * b) - mean_a * mean_b
  c1, c2 = _K1**2, _K2**2
  top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
  bottom = (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
  return (top / bottom).mean((1, 2))


def _mean_ranks(values: np.ndarray) -> np.ndarray:
  """Places from the smallest, float64 (n,); equal values share the mean of theirs."""
  _, of, counts = np.unique(values, return_inverse=True, return_counts=True)
  return (np.cumsum(counts) - (counts - 1) / 2)[of]


def _smooth(maps: np.ndarray) -> np.ndarray:
  for axis in (1, 2):
    side = maps.shape[axis]
    size = min(_WINDOW, side if side % 2 else side - 1)
    taps = np.exp(-0.5 * ((np.arange(size) - size // 2) / _SIGMA) ** 2)
    windows = np.lib.stride_tricks.sliding_window_view(maps, size, axis)
    maps = windows @ (taps / taps.sum())
  return maps


def _pair(first, second) -> tuple[np.ndarray, np.ndarray]:
  if isinstance(first, Tracer) or isinstance(second, Tracer):
    raise UserError('this measure runs on the host, so not inside jit; give it arrays')
  a, b = (np.asarray(jax.device_get(m), np.float64) for m in (first, second))
  if a.ndim != 3 or a.shape != b.shape or not a.size:
    raise UserError(f'two batches of maps (B, H, W) are compared, got {a.shape} and {b.shape}')
  for maps in (a, b):
    check_finite_maps(maps)
  return a, b
