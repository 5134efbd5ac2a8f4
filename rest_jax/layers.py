"""A model's layers: their names and shapes, what they give, and a pass with one changed.

`explain` taps a layer, `defend` denoises and measures at one; here is what they share. A layer is
named by the path of its module ('stage4/block1'), and `flax.linen.intercept_methods` sees it run,
so no model is written for this. Modules of NNX and Equinox are seen too (`foreign_layers.py`).
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.extend.core import get_opaque_trace_state
from jax.tree_util import Partial

from rest_jax import foreign_layers
from rest_jax.errors import UserError, did_you_mean

_NORM = re.compile(r'(norm[^/]*|(^|[/_])ln(_?\d+)?(_[^/]*)?)$')

Filter = Callable[[jax.Array], jax.Array]

# Below this a map is a handful of numbers: the published maps are 7 x 7 and 14 x 14.
MIN_GRID = 7


@dataclasses.dataclass(frozen=True)
class Survey:
  """What one pass of a model showed.

  Attributes:
    layers: output shape of every module that gives one array, or several with one map among them
      (`find_plane`), in the order in which they end (for the last of several calls).
    calls: how often each of them is called.
    hidden: modules inside a transformation of the model's own (jit, remat, scan, vmap).
    unclear: what the modules give that give several arrays and not one map.
    norms: those of `layers` that normalise, by their class or name.
    tree: of what the model returns.
    leaves: of the same, shapes in the place of arrays.
  """

  layers: dict[str, tuple[int, ...]]
  calls: dict[str, int]
  hidden: frozenset[str]
  unclear: dict[str, str]
  norms: frozenset[str]
  tree: Any
  leaves: tuple[Any, ...]

  def columns(self, read: Callable[[Any], jax.Array]) -> int:
    """How many columns a function makes of what the model returns; nothing is computed."""
    arrays = [leaf for leaf in self.leaves if isinstance(leaf, jax.ShapeDtypeStruct)]
    return jax.eval_shape(lambda *x: read(self._returned(x)), *arrays).shape[1]

  def _returned(self, arrays: Sequence[jax.Array]) -> Any:
    rest = iter(arrays)
    is_shape = [isinstance(leaf, jax.ShapeDtypeStruct) for leaf in self.leaves]
    filled = [next(rest) if is_ else x for is_, x in zip(is_shape, self.leaves, strict=True)]
    return jax.tree.unflatten(self.tree, filled)


class Call(NamedTuple):
  """One call of a module inside a model.

  Attributes:
    path: 'stage4/block1'.
    module: what ran.
    inputs: its positional arguments; () of an Equinox module under `jax.vmap`.
    output: what it returned.
  """

  path: str
  module: Any
  inputs: tuple[Any, ...]
  output: Any


def run_through(model: Callable[[Any], Any], change: Callable[[Call], Any], images: Any) -> Any:
  """Runs a model and shows every call of a module inside it.

  Args:
    model: images to anything; a function that is jitted itself hides its modules.
    change: a call, of `__call__` alone and not of the outermost module, to what flows on in the
      place of its output.
    images: (B, H, W, C).

  Returns:
    The model's result.
  """

  def intercept(next_fun, args, kwargs, context):
    output = next_fun(*args, **kwargs)
    path = '/'.join(context.module.path)
    if context.method_name != '__call__' or not path:
      return output
    return change(Call(path, context.module, args, output))

  def foreign(path, module, args, output):
    return change(Call(path, module, args, output))

  with nn.intercept_methods(intercept), foreign_layers.watching(foreign, tuple(images.shape)):
    return model(images)


def capture(model: Callable[[Any], Any], layer: str, images: jax.Array) -> list[jax.Array]:
  """The outputs of a layer, one a call; arguments and errors as `with_layer`."""
  outputs: list[jax.Array] = []

  def keep(output):
    outputs.append(output)
    return output

  with_layer(model, layer, keep, images)
  return outputs


def with_layer(
  model: Callable[[Any], Any], layer: str, change: Filter, images: jax.Array
) -> jax.Array:
  """Runs a model with the output of a layer changed, in every call of it.

  Args:
    model: images to logits; a function that is jitted itself hides its modules.
    layer: path of a Linen module.
    change: the layer's output to what flows on in its place.
    images: float32 (B, H, W, C).

  Returns:
    The model's result.

  Raises:
    UserError: it runs no such layer, or none that gives one array; with the names of those.
  """
  seen: dict[str, tuple[int, ...]] = {}

  def at_layer(call: Call) -> Any:
    if not isinstance(call.output, jax.Array):
      return call.output
    seen[call.path] = tuple(call.output.shape)
    return change(call.output) if call.path == layer else call.output

  result = run_through(model, at_layer, images)
  if layer not in seen:
    raise UserError(_missing(layer, seen))
  return result


def _missing(layer: str, seen: dict[str, tuple[int, ...]]) -> str:
  maps = list(_planes(seen))
  if not maps:
    return (
      f'no module was seen running in this model, so there is no layer {layer!r} to denoise; '
      'a function that is jitted itself is not looked into'
    )
  outer = [name for name in maps if '/' not in name]
  hint = did_you_mean(layer, maps, outer or maps[:8], cutoff=0.4)
  return f'there is no layer {layer!r} in this model; {hint}'


def survey(function: Partial, image_shape: tuple[int, ...]) -> Survey:
  """Runs a model on shapes alone.

  Args:
    function: images -> logits.
    image_shape: (B, H, W, C).

  Returns:
    What it ran; the same call again costs nothing.
  """
  leaves, tree = jax.tree.flatten(function)
  # The dtype of a random key, which NNX's modules keep, is none of NumPy's.
  shapes = tuple((tuple(leaf.shape), leaf.dtype) for leaf in leaves)
  return _survey(tree, shapes, tuple(image_shape))


class _Watch:
  """Writes down what modules give, for `run_through`, and changes nothing."""

  def __init__(self):
    self.outputs: dict[str, tuple[int, ...]] = {}
    self.calls: dict[str, int] = {}
    self.hidden: set[str] = set()
    self.unclear: dict[str, str] = {}
    self.norms: set[str] = set()
    self.state = get_opaque_trace_state()

  def __call__(self, call: Call) -> Any:
    path, plane = call.path, find_plane(call.output)
    if not isinstance(plane, jax.Array):
      if len(jax.tree.leaves(call.output)) > 1:
        self.unclear[path] = describe(call.output)
    elif get_opaque_trace_state() != self.state:
      self.hidden.add(path)
    else:
      self.outputs.pop(path, None)  # so that the order is that of the last calls
      self.outputs[path] = tuple(plane.shape)
      self.calls[path] = self.calls.get(path, 0) + 1
      if 'norm' in type(call.module).__name__.lower() or _NORM.search(path.lower()):
        self.norms.add(path)
    return call.output


@functools.lru_cache(maxsize=64)
def _survey(tree: Any, shapes: tuple[Any, ...], image_shape: tuple[int, ...]) -> Survey:
  watches, returned = [], []

  def run(leaves, images):
    watches.append(_Watch())
    out = run_through(jax.tree.unflatten(tree, leaves), watches[-1], images)
    flat, of_out = jax.tree.flatten(out)
    # A name or a number among the outputs is no result of a traced function.
    returned.append((of_out, [None if isinstance(leaf, jax.Array) else leaf for leaf in flat]))
    return [leaf for leaf in flat if isinstance(leaf, jax.Array)]

  structs = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
  result = jax.eval_shape(run, structs, jax.ShapeDtypeStruct(image_shape, jnp.float32))
  seen = watches[-1]
  hidden = frozenset(seen.hidden - set(seen.outputs))
  unclear = {name: what for name, what in seen.unclear.items() if name not in seen.outputs}
  of_out, leaves = returned[-1]
  arrays = iter(result)
  leaves = tuple(next(arrays) if leaf is None else leaf for leaf in leaves)
  norms = frozenset(seen.norms)
  return Survey(seen.outputs, seen.calls, hidden, unclear, norms, of_out, leaves)


def check_layer(name: str, seen: Survey) -> None:
  """Raises `UserError`, with the near names, where there is no such layer to tap."""
  if name in seen.layers:
    return
  if name in seen.hidden:
    raise UserError(
      f'layer {name!r} runs inside jit, remat, scan or vmap of the model itself, where it cannot '
      'be tapped; tap the module around it, or build the model without that transformation'
    )
  if name in seen.unclear:
    raise UserError(
      f'layer {name!r} gives {seen.unclear[name]}, not one map; tap a module inside it, or give '
      'the model as a pair (features_fn, head_fn)'
    )
  if not seen.layers:
    raise UserError(
      'no module of Linen, NNX or Equinox was seen running in this model (one that is jitted '
      'inside is not seen); '
      'give it as a pair (features_fn, head_fn) with head_fn(features_fn(images)) = logits'
    )
  hint = did_you_mean(name, seen.layers, list(_planes(seen.layers))[:8], cutoff=0.4)
  raise UserError(f'there is no layer {name!r}; {hint}')


def default_layer(
  seen: Survey,
  image_shape: tuple[int, ...],
  grid_of: Callable[[tuple[int, ...]], tuple[int, int] | None],
  given: bool = False,
) -> str:
  """The layer to explain when none is named.

  Of the modules made of modules (stages, blocks; single layers where there are none), those whose
  map is smaller than the image: the smallest map of 7 x 7 or more, or the largest one where all
  are smaller; among equals the outermost module, and of these the last one. Of a model that works
  on tokens, the outermost last module made of modules; where class or register tokens go before
  those of the image, what the last block works on (`_before_the_last_block`).

  Args:
    seen: what the model ran.
    image_shape: (B, H, W, C).
    grid_of: the plane (rows, columns) on which tokens of a shape (B, N, C) lie, None where it is
      not known.
    given: whether that plane is the user's word: then the model is taken to work on tokens;
      otherwise where its last module made of modules gives tokens.

  Returns:
    Its path.

  Raises:
    UserError: no module gives a map.
  """
  # What has a row an image: heads of detectors work on regions.
  of_images = {n: s for n, s in seen.layers.items() if s and s[0] == image_shape[0]}
  layers = _planes(of_images)
  tokens = {n: s for n, s in of_images.items() if len(s) == 3}
  on_grid = {n: s for n, s in tokens.items() if grid_of(s)}
  last_map, last_tokens = (_last_composite(pool, seen) for pool in (layers, on_grid or tokens))
  if not given and last_tokens <= last_map:
    on_grid = {} if last_map >= 0 else on_grid
  elif tokens and not on_grid:
    raise UserError(
      'this model works on tokens (B, N, C): say layer=... and grid=(rows, columns); '
      f'its layers: {_some(tokens)}'
    )
  if on_grid:
    return _of_tokens(on_grid, seen, grid_of)
  if not layers:
    check_layer('', seen)  # nothing ran, or
    raise UserError(f'no layer gives a map (B, h, w, C); there are: {_some(seen.layers)}')
  return _by_grid(layers, seen, image_shape)


def _of_tokens(tokens, seen: Survey, grid_of) -> str:
  composite = {n: s for n, s in tokens.items() if _is_composite(n, seen)}
  last = _outermost_last(composite or tokens)
  rows, columns = grid_of(tokens[last])
  if tokens[last][1] == rows * columns:
    return last
  return _before_the_last_block(tokens, seen) or last


def _before_the_last_block(tokens, seen: Survey) -> str | None:
  """Where the image's tokens still reach the class token: what enters the last block's attention.

  After the last block a head that reads the class token has no gradient at the others. The last
  block's first norm is before its attention where it is the first that the block runs; where the
  norm comes after, the block before is taken.
  """
  blocks = [n for n in tokens if any(_parent(m) == n for m in seen.norms)]
  blocks = [n for n in blocks if not any(other.startswith(n + '/') for other in blocks)]
  if not blocks:
    return None
  inside = [n for n in seen.layers if n.startswith(blocks[-1] + '/')]
  if inside[0] in seen.norms and inside[0] in tokens:
    return inside[0]
  return blocks[-2] if len(blocks) > 1 else None


def _last_composite(pool, seen: Survey) -> int:
  order = list(seen.layers)
  return max((order.index(n) for n in pool if _is_composite(n, seen)), default=-1)


def _parent(path: str) -> str:
  return path.rpartition('/')[0]


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


def describe(out: Any) -> str:
  """A line on a tree of arrays: its type and its arrays' shapes."""
  if is_array(out):
    return f'an array {tuple(out.shape)}'
  leaves = jax.tree.leaves(out)
  shapes = [str(tuple(leaf.shape)) if is_array(leaf) else type(leaf).__name__ for leaf in leaves]
  more = ', ...' if len(shapes) > 6 else ''
  return f'a {type(out).__name__} of {", ".join(shapes[:6]) or "nothing"}{more}'


def find_plane(out: Any) -> Any:
  """The map that a layer gives: its one array (B, h, w, C), or else its one array (B, N, C).

  Args:
    out: what a module returned.

  Returns:
    The array, or None where there is none or more than one; an array comes back as it is, and
    the same one twice counts once.
  """
  if is_array(out):
    return out
  leaves = [leaf for leaf in jax.tree.leaves(out) if is_array(leaf)]
  for rank in (4, 3):
    fitting = {id(leaf): leaf for leaf in leaves if leaf.ndim == rank}
    if fitting:
      return next(iter(fitting.values())) if len(fitting) == 1 else None
  return None


def replace_plane(out: Any, plane: jax.Array, new: jax.Array) -> Any:
  """The same tree with another array wherever `plane`, one of its leaves, stands."""
  return jax.tree.map(lambda leaf: new if leaf is plane else leaf, out)


def is_array(x: Any) -> TypeGuard[jax.Array]:
  """Whether it is an array or the shape of one."""
  return isinstance(x, (jax.Array, np.ndarray, jax.ShapeDtypeStruct))
