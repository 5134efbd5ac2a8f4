"""What modules a model runs, their outputs' shapes, and which one to explain by default."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend.core import get_opaque_trace_state
from jax.tree_util import Partial

from rest_jax.errors import UserError, did_you_mean

# Below this a map is a handful of numbers: the published maps are 7 x 7 and 14 x 14.
MIN_GRID = 7


@dataclasses.dataclass(frozen=True)
class Survey:
  """What one pass of a model showed.

  Attributes:
    layers: output shape of every module that gives one array, in the order in which they end
      (for the last of several calls).
    calls: how often each of them is called.
    hidden: modules inside a transformation of the model's own (jit, remat, scan, vmap).
    logits: shape of the model's result.
  """

  layers: dict[str, tuple[int, ...]]
  calls: dict[str, int]
  hidden: frozenset[str]
  logits: tuple[int, ...]


def path_of(context: nn.module.InterceptorContext) -> str | None:
  """'stage4/block1' for the `__call__` of that module, None for other methods and the root."""
  if context.method_name != '__call__':
    return None
  return '/'.join(context.module.path) or None


def survey(function: Partial, image_shape: tuple[int, ...]) -> Survey:
  """Runs a model on shapes alone.

  Args:
    function: images -> logits.
    image_shape: (B, H, W, C).

  Returns:
    What it ran; the same call again costs nothing.
  """
  leaves, tree = jax.tree.flatten(function)
  shapes = tuple((tuple(leaf.shape), jnp.dtype(leaf.dtype)) for leaf in leaves)
  return _survey(tree, shapes, tuple(image_shape))


class _Watch:
  """An interceptor that writes down what modules give."""

  def __init__(self):
    self.outputs: dict[str, tuple[int, ...]] = {}
    self.calls: dict[str, int] = {}
    self.hidden: set[str] = set()
    self.state = get_opaque_trace_state()

  def __call__(self, next_fun, args, kwargs, context):
    out = next_fun(*args, **kwargs)
    path = path_of(context)
    if path is None or not isinstance(out, jax.Array):
      return out
    if get_opaque_trace_state() != self.state:
      self.hidden.add(path)
      return out
    self.outputs.pop(path, None)  # so that the order is that of the last calls
    self.outputs[path] = tuple(out.shape)
    self.calls[path] = self.calls.get(path, 0) + 1
    return out


@functools.lru_cache(maxsize=64)
def _survey(tree: Any, shapes: tuple[Any, ...], image_shape: tuple[int, ...]) -> Survey:
  watches = []

  def run(leaves, images):
    watches.append(_Watch())
    with nn.intercept_methods(watches[-1]):
      return jax.tree.unflatten(tree, leaves)(images)

  structs = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
  result = jax.eval_shape(run, structs, jax.ShapeDtypeStruct(image_shape, jnp.float32))
  if not hasattr(result, 'shape'):
    raise UserError(f'a model gives one array of logits (B, K), not {type(result).__name__}')
  logits = tuple(result.shape)
  if len(logits) != 2 or logits[0] != image_shape[0]:
    raise UserError(f'a model gives logits ({image_shape[0]}, K), got an array of shape {logits}')
  seen = watches[-1]
  return Survey(seen.outputs, seen.calls, frozenset(seen.hidden - set(seen.outputs)), logits)


def check_layer(name: str, seen: Survey) -> None:
  """Raises `UserError`, with the near names, where there is no such layer to tap."""
  if name in seen.layers:
    return
  if name in seen.hidden:
    raise UserError(
      f'layer {name!r} runs inside jit, remat, scan or vmap of the model itself, where it cannot '
      'be tapped; tap the module around it, or build the model without that transformation'
    )
  if not seen.layers:
    raise UserError(
      'no Linen module was seen running in this model (one that is jitted inside is not seen); '
      'give it as a pair (features_fn, head_fn) with head_fn(features_fn(images)) = logits'
    )
  hint = did_you_mean(name, seen.layers, list(_planes(seen.layers))[:8], cutoff=0.4)
  raise UserError(f'there is no layer {name!r}; {hint}')


def default_layer(
  seen: Survey, image_shape: tuple[int, ...], is_plane: Callable[[tuple[int, ...]], bool] | None
) -> str:
  """The layer to explain when none is named.

  Of the modules made of modules (stages, blocks; single layers where there are none), those whose
  map is smaller than the image: the smallest map of 7 x 7 or more, or the largest one where all
  are smaller; among equals the outermost module, and of these the last one.

  Args:
    seen: what the model ran.
    image_shape: (B, H, W, C).
    is_plane: whether tokens of a shape (B, N, C) lie on the grid given; None without one.

  Returns:
    Its path.

  Raises:
    UserError: no module gives a map.
  """
  layers = _planes(seen.layers)
  tokens = {n: s for n, s in seen.layers.items() if len(s) == 3}
  if is_plane is not None:
    tokens = {n: s for n, s in tokens.items() if is_plane(s)}
    composite = {n: s for n, s in tokens.items() if _is_composite(n, seen)}
    if tokens:
      return _outermost_last(composite or tokens)
  elif tokens and not any(_is_composite(n, seen) for n in layers):
    raise UserError(
      'this model works on tokens (B, N, C): say layer=... and grid=(rows, columns); '
      f'its layers: {", ".join(_some(tokens))}'
    )
  if not layers:
    check_layer('', seen)  # nothing ran, or
    raise UserError(f'no layer gives a map (B, h, w, C); there are: {_some(seen.layers)}')
  return _by_grid(layers, seen, image_shape)


def _by_grid(layers, seen: Survey, image_shape: tuple[int, ...]) -> str:
  pool = {n: s for n, s in layers.items() if _is_composite(n, seen)} or layers
  image = image_shape[1] * image_shape[2]
  pool = {n: s for n, s in pool.items() if s[1] * s[2] < image} or pool
  large = [s[1] * s[2] for s in pool.values() if min(s[1:3]) >= MIN_GRID]
  area = min(large) if large else max(s[1] * s[2] for s in pool.values())
  return _outermost_last({n: s for n, s in pool.items() if s[1] * s[2] == area})


def _outermost_last(pool) -> str:
  return max(enumerate(pool), key=lambda item: (-item[1].count('/'), item[0]))[1]


def _is_composite(name: str, seen: Survey) -> bool:
  return any(other.startswith(name + '/') for other in (*seen.layers, *seen.hidden))


def _planes(layers):
  return {name: shape for name, shape in layers.items() if len(shape) == 4}


def _some(layers, most: int = 6) -> str:
  names = [f'{name} {shape}' for name, shape in list(layers.items())[-most:]]
  return ', '.join(names) or 'none'
