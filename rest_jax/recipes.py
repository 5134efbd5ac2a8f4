"""Callables taken apart into code and arrays, and put together again with other arrays.

A recipe is what is left of a value when its arrays are taken out: hashable, and equal to that of
another value of the same code. `recipe.join(leaves)` makes the value anew, inside a compiled
function with traced arrays in the places of the real ones.
"""

from __future__ import annotations

import dataclasses
import dis
import functools
import sys
import types
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

# Objects of other packages are not looked into: what they mean by their attributes is not known.
_LIBRARIES = frozenset({'flax', 'jax', 'jaxlib', 'numpy', 'optax', 'orbax', 'torch', 'tensorflow'})
_SMALL = 1 << 16  # bytes of an array that is compared by its values
_DUNDERS = ('__builtins__', '__name__', '__package__', '__spec__')


class Recipe:
  """A value without its arrays.

  Attributes:
    count: how many arrays were taken out.
    constant: whether it is the value itself, which cannot change.
  """

  count: int = 0
  constant: bool = False

  def join(self, leaves: list[Any]) -> Any:
    """The value, with other arrays."""
    raise NotImplementedError


class _Leaf(Recipe):
  """An array."""

  count = 1

  def join(self, leaves: list[Any]) -> Any:
    return leaves[0]

  def __eq__(self, other: object) -> bool:
    return isinstance(other, _Leaf)

  def __hash__(self) -> int:
    return 1


class _Constant(Recipe):
  """What is code: compared by value where it has a hash, by identity where it has none."""

  constant = True

  def __init__(self, value: Any, key: Any = None):
    self.value, self._key = value, _key_of(value) if key is None else key

  def join(self, leaves: list[Any]) -> Any:
    return self.value

  def __eq__(self, other: object) -> bool:
    return isinstance(other, _Constant) and self._key == other._key

  def __hash__(self) -> int:
    return hash(self._key)


def _key_of(value: Any) -> Any:
  if isinstance(value, np.ndarray) and value.nbytes <= _SMALL and value.dtype != object:
    return 'array', value.shape, str(value.dtype), value.tobytes()
  try:
    hash(value)
  except TypeError:
    return 'object', id(value)
  # 1, 1.0 and True are equal.
  return type(value), value


@dataclasses.dataclass(frozen=True)
class _Parts(Recipe):
  """A value made of others.

  Attributes:
    parts: their recipes.
    glue: says what they are put together to, hashable.
  """

  parts: tuple[Recipe, ...]
  glue: Any

  @property
  def count(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
    return sum(part.count for part in self.parts)

  def join(self, leaves: list[Any]) -> Any:
    values, at = [], 0
    for part in self.parts:
      values.append(part.join(leaves[at : at + part.count]))
      at += part.count
    return self.glue.build(values)


@dataclasses.dataclass(frozen=True)
class _Tree:
  """A pytree by its structure."""

  structure: Any

  def build(self, values: list[Any]) -> Any:
    return jax.tree.unflatten(self.structure, values)


@dataclasses.dataclass(frozen=True)
class _Call:
  """`functools.partial` or `Partial`: the function, positional arguments, those with names."""

  kind: type
  names: tuple[str, ...]

  def build(self, values: list[Any]) -> Any:
    count = len(values) - len(self.names)
    return self.kind(*values[:count], **dict(zip(self.names, values[count:], strict=True)))


@dataclasses.dataclass(frozen=True)
class _Method:
  """A bound method: the function and what it is bound to."""

  def build(self, values: list[Any]) -> Any:
    return types.MethodType(*values)


@dataclasses.dataclass(frozen=True)
class _Object:
  """An object by its class and attributes."""

  kind: type
  names: tuple[str, ...]

  def build(self, values: list[Any]) -> Any:
    made = object.__new__(self.kind)
    made.__dict__.update(zip(self.names, values, strict=True))
    return made


class _Home:
  """The globals of a function, by identity; a constant of a program may not hold them by value."""

  def __init__(self, names: dict[str, Any]):
    self.names = names

  def __eq__(self, other: object) -> bool:
    return isinstance(other, _Home) and self.names is other.names

  def __hash__(self) -> int:
    return id(self.names)


@dataclasses.dataclass(frozen=True)
class _Function:
  """A Python function: cells, defaults, defaults of keywords, globals that it names."""

  code: types.CodeType
  home: _Home
  cells: int
  defaults: int
  keywords: tuple[str, ...]
  names: tuple[str, ...]

  def build(self, values: list[Any]) -> Any:
    given = iter(values)
    cells = tuple(types.CellType(next(given)) for _ in range(self.cells))
    defaults = tuple(next(given) for _ in range(self.defaults))
    keywords = {name: next(given) for name in self.keywords}
    known = {name: self.home.names[name] for name in _DUNDERS if name in self.home.names}
    known |= {name: next(given) for name in self.names}
    made = types.FunctionType(self.code, known, None, defaults or None, cells or None)
    made.__kwdefaults__ = keywords or None
    made.__dict__.update(next(given) or {})
    return made


def as_recipe(value: Any) -> tuple[Recipe, list[Any]]:
  """Takes a value apart.

  Args:
    value: anything; callables, pytrees and objects that hold arrays are taken apart.

  Returns:
    Its recipe and its arrays.
  """
  return _recipe(value, ())


def _recipe(value: Any, within: tuple[int, ...]) -> tuple[Recipe, list[Any]]:
  """As `as_recipe`; `within` are the values that this one is a part of."""
  if isinstance(value, Recipe):
    return value, []
  if isinstance(value, jax.Array) or (
    isinstance(value, np.ndarray) and jax.numpy.issubdtype(value.dtype, np.inexact)
  ):
    return _Leaf(), [value]
  split = None if id(value) in within else _split(value)
  if split is None:
    return _Constant(value), []
  glue, parts = split
  recipes, leaves = [], []
  for part in parts:
    recipe, found = _recipe(part, (*within, id(value)))
    recipes.append(recipe)
    leaves += found
  if not leaves and not (isinstance(glue, _Function) and _varies(glue, recipes)):
    # A list may be there to be written to; a function without variables is its code.
    key = (glue, tuple(recipes)) if isinstance(glue, _Function) else None
    return _Constant(value, key), []
  return _Parts(tuple(recipes), glue), leaves


def _varies(glue: _Function, recipes: list[Recipe]) -> bool:
  """Whether a function without arrays has cells, defaults or globals that can be other ones."""
  if glue.cells or glue.defaults or glue.keywords:
    return True
  return any(not r.constant or not callable(r.join([])) for r in recipes[: len(glue.names)])


def _split(value: Any) -> tuple[Any, list[Any]] | None:
  """What a value is made of, and how; None where it is not looked into."""
  if isinstance(value, type | types.ModuleType):
    return None
  if isinstance(value, types.FunctionType):
    return _split_function(value)
  if isinstance(value, types.MethodType):
    return _Method(), [value.__func__, value.__self__]
  if isinstance(value, functools.partial):
    kind = Partial if isinstance(value, Partial) else functools.partial
    names = tuple(value.keywords)
    return _Call(kind, names), [value.func, *value.args, *value.keywords.values()]
  leaves, structure = jax.tree.flatten(value)
  if not any(leaf is value for leaf in leaves):
    return (_Tree(structure), leaves) if leaves and has_hash(structure) else None
  return _split_object(value)


def _split_function(function: types.FunctionType) -> tuple[Any, list[Any]] | None:
  read, writes = _names_of(function.__code__)
  home = function.__globals__
  try:
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
  except ValueError:
    return None  # a cell that is still empty
  if writes:
    return None  # others read what it writes
  names = tuple(name for name in read if name in home)
  defaults, keywords = function.__defaults__ or (), function.__kwdefaults__ or {}
  glue = _Function(
    function.__code__, _Home(home), len(cells), len(defaults), tuple(keywords), names
  )
  known = [_global(home[name], home) for name in names]
  attributes = _Constant(function.__dict__ or None)
  return glue, [*cells, *defaults, *keywords.values(), *known, attributes]


def _global(value: Any, home: dict[str, Any]) -> Any:
  """Functions of other modules are code, what they name is not looked into."""
  foreign = isinstance(value, types.FunctionType) and value.__globals__ is not home
  return _Constant(value) if foreign else value


@functools.lru_cache(maxsize=512)
def _names_of(code: types.CodeType) -> tuple[tuple[str, ...], bool]:
  """Globals that a code reads, functions within it too, and whether it writes any, or a cell."""
  names: dict[str, None] = {}
  writes = False
  for part in _codes(code):
    for step in dis.get_instructions(part):
      if step.opname in ('LOAD_GLOBAL', 'LOAD_NAME'):
        names[step.argval] = None
      outer = step.opname == 'STORE_DEREF' and step.argval in code.co_freevars
      writes |= outer or step.opname in ('STORE_GLOBAL', 'DELETE_GLOBAL')
  return tuple(names), writes


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
  yield code
  for constant in code.co_consts:
    if isinstance(constant, types.CodeType):
      yield from _codes(constant)


def _split_object(value: Any) -> tuple[Any, list[Any]] | None:
  attributes = getattr(value, '__dict__', None)
  kind = type(value)
  roots = {base.__module__.partition('.')[0] for base in kind.__mro__}
  if not attributes or roots & _LIBRARIES or kind.__module__ in sys.stdlib_module_names:
    return None
  try:
    object.__new__(kind)
  except TypeError:
    return None
  return _Object(kind, tuple(attributes)), list(attributes.values())


def has_hash(value: Any) -> bool:
  """Whether a value can be told from others by a hash."""
  try:
    hash(value)
  except TypeError:
    return False
  return True


def find_module(value: Any, within: tuple[int, ...] = ()) -> str | None:
  """The name under which a function holds an NNX module, which can be changed later; None for none.

  Args:
    value: a callable; what it takes as arguments (a `Partial`'s, a bound method's) is none of it.
    within: the functions that this one was found in.
  """
  value = getattr(value, '__wrapped__', value)  # what is jitted
  if isinstance(value, functools.partial):
    return find_module(value.func, within)
  nnx = sys.modules.get('flax.nnx')
  if nnx is None or not isinstance(value, types.FunctionType) or id(value) in within:
    return None
  for name, held in _held(value):
    if any(isinstance(one, nnx.Module) for one in _items(held)):
      return name
    if isinstance(held, types.FunctionType) or hasattr(held, '__wrapped__'):
      found = find_module(held, (*within, id(value)))
      if found is not None:
        return found
  return None


def _held(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
  """Names and values of what a function encloses, has as defaults or reads of its globals."""
  code = function.__code__
  for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
    try:
      yield name, cell.cell_contents
    except ValueError:
      continue
  defaults = function.__defaults__ or ()
  arguments = code.co_varnames[: code.co_argcount]
  yield from zip(arguments[len(arguments) - len(defaults) :], defaults, strict=True)
  yield from (function.__kwdefaults__ or {}).items()
  home = function.__globals__
  for name in _names_of(code)[0]:
    held = home.get(name)
    if not isinstance(held, types.FunctionType) or held.__globals__ is home:
      yield name, held


def _items(value: Any) -> list[Any]:
  """A value, or what stands in a list, tuple or dictionary."""
  if isinstance(value, dict):
    return list(value.values())
  return list(value) if isinstance(value, list | tuple) else [value]
