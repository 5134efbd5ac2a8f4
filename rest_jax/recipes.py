"""Callables taken apart into code and arrays, and put together again with other arrays.

A recipe is what is left of a value when its arrays are taken out: hashable, and equal to that of
another value of the same code. `recipe.join(leaves)` makes the value anew, inside a compiled
function with traced arrays in the places of the real ones.
"""

from __future__ import annotations

import dataclasses
import dis
import functools
import hashlib
import inspect
import re
import sys
import types
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

# Objects of other packages are not looked into: what they mean by their attributes is not known.
_LIBRARIES = frozenset({'flax', 'jax', 'jaxlib', 'numpy', 'optax', 'orbax', 'torch', 'tensorflow'})
_SMALL = 1 << 16  # bytes of an array that is kept to be compared, and not its hash
_MOST = 10_000  # values of a list or dictionary that are looked at
# What a function calls to write to a list or dictionary. `add` and `set` are those of `x.at`, too.
_WRITERS = {'append', 'appendleft', 'extend', 'insert', 'pop', 'popleft', 'remove', 'clear'}
_WRITERS |= {'setdefault', 'update', 'discard'}
_WRITTEN = 'written'  # stands for what a function itself writes to
_OUTER = ('LOAD_GLOBAL', 'LOAD_NAME', 'LOAD_DEREF')
_DUNDERS = ('__builtins__', '__name__', '__package__', '__spec__')


class Recipe:
  """A value without its arrays.

  Attributes:
    count: how many arrays were taken out.
    constant: whether it is the value itself, which cannot change.
    opaque: whether it is one that was not looked into.
  """

  count: int = 0
  constant: bool = False
  opaque: bool = False

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
  """What is code: compared by what it is made of, else by its hash, else by identity."""

  constant = True

  def __init__(self, value: Any, key: Any = None):
    self.value, self.key = value, _key_of(value) if key is None else key
    self.opaque = key is None

  def join(self, leaves: list[Any]) -> Any:
    return self.value

  def __eq__(self, other: object) -> bool:
    return isinstance(other, _Constant) and self.key == other.key

  def __hash__(self) -> int:
    return hash(self.key)


def _key_of(value: Any) -> Any:
  if isinstance(value, np.ndarray) and value.dtype != object:
    held = value.tobytes() if value.nbytes <= _SMALL else hashlib.sha256(value.tobytes()).digest()
    return 'array', value.shape, str(value.dtype), held
  if not has_hash(value):
    return 'object', id(value)
  # 1, 1.0 and True are equal, and so are 0.0 and -0.0; nan is not even nan.
  number = isinstance(value, float | complex | np.inexact)
  return type(value), repr(value) if number else value


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
  if isinstance(glue, _Object) and not leaves and _is_ours(glue.kind):
    return _Constant(value), []  # frozen, and compared as it says
  if isinstance(glue, _Function | _Object):
    recipes = _without_written(value, glue, parts, recipes)
  if not leaves and not (isinstance(glue, _Function) and _varies(glue, recipes)):
    return _Constant(value, (glue, tuple(recipes))), []
  return _Parts(tuple(recipes), glue), leaves


def is_code(recipe: Recipe) -> bool:
  """Whether a value is code alone: nothing that it holds can become another thing."""
  if not isinstance(recipe, _Constant) or recipe.opaque:
    return recipe.constant
  glue, parts = recipe.key
  return isinstance(glue, _Function) and all(map(is_code, parts))


def _without_written(
  value: Any, glue: _Function | _Object, parts: list[Any], recipes: list[Recipe]
) -> list[Recipe]:
  """What a function itself writes to, such as a list of its calls, counts by identity; in an object
  by that of the object.
  """
  found = list(recipes)
  for at in _written_parts(glue):
    if recipes[at].count == 0:
      owner = value if isinstance(glue, _Object) else parts[at]
      found[at] = _Constant(parts[at], (_WRITTEN, id(owner)))
  return found


def _written_parts(glue: Any) -> list[int]:
  """Which parts are written to by what they are the parts of."""
  if isinstance(glue, _Object):
    written, names = _written_to_itself(glue.kind), glue.names
  elif isinstance(glue, _Function):
    written = _written_by(glue.code)
    unnamed = glue.defaults + len(glue.keywords)
    names = (*glue.code.co_freevars, *[''] * unnamed, *glue.names)
  else:
    return []
  return [at for at, name in enumerate(names) if name in written]


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
    return (_Tree(structure), leaves) if len(leaves) <= _MOST and has_hash(structure) else None
  return _split_object(value)


def _split_function(function: types.FunctionType) -> tuple[Any, list[Any]] | None:
  read, writes = names_of(function.__code__)
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
def names_of(code: types.CodeType) -> tuple[tuple[str, ...], bool]:
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


@functools.lru_cache(maxsize=512)
def _written_by(code: types.CodeType) -> frozenset[str]:
  """Names of outer values, and of attributes, whose items a code sets or whose writers it calls."""
  found = set()
  for part in _codes(code):
    steps = [step for step in dis.get_instructions(part) if step.opname != 'PUSH_NULL']
    for step, after, third in zip(steps, steps[1:], steps[2:], strict=False):
      calls = after.opname in ('LOAD_ATTR', 'LOAD_METHOD') and after.argval in _WRITERS
      sets = third.opname in ('STORE_SUBSCR', 'DELETE_SUBSCR', 'COPY')
      if step.opname in (*_OUTER, 'LOAD_ATTR') and (calls or sets or after.opname == 'STORE_ATTR'):
        found.add(step.argval)
  return frozenset(found)


def _written_to_itself(kind: type) -> frozenset[str]:
  """Names of what objects of a class change when they are called, as one that counts its calls."""
  code = getattr(inspect.getattr_static(kind, '__call__', None), '__code__', None)
  if code is None:
    return frozenset()
  steps = dis.get_instructions(code)
  return _written_by(code) | {step.argval for step in steps if step.opname == 'STORE_ATTR'}


def _is_ours(kind: type) -> bool:
  return kind.__module__.partition('.')[0] == 'rest_jax'


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


def digest(value: Any, arrays: bool = False) -> str:
  """What a value is made of as a hash that other processes find too.

  Functions count by their bytecode, with what they enclose, and so does what is wrapped around one
  and leaves its values as they are, such as another gradient. This library's functions and those
  of other packages count by their names, what a function itself writes to does not count.

  Args:
    value: as `as_recipe` takes it.
    arrays: whether its arrays count.
  """
  recipe, leaves = as_recipe(value)
  texts = _texts(recipe, iter(leaves if arrays else [None] * len(leaves)))
  return hashlib.sha256('\n'.join(texts).encode()).hexdigest()[:32]


def _texts(recipe: Recipe, leaves: Iterator[Any]) -> Iterator[str]:
  if isinstance(recipe, _Parts):
    yield from _texts_of_parts(recipe.glue, recipe.parts, leaves)
  elif not isinstance(recipe, _Constant):
    leaf = next(leaves, None)  # those of a recipe by itself stand elsewhere
    yield 'array' if leaf is None else next(_texts_of_value(np.asarray(leaf)))
  elif recipe.opaque:
    yield from _texts_of_value(recipe.value)
  else:
    glue, parts = recipe.key
    yield from _texts_of_parts(glue, parts, leaves)


def _texts_of_parts(glue: Any, parts: tuple[Recipe, ...], leaves: Iterator[Any]) -> Iterator[str]:
  left_out = set(_written_parts(glue))
  if isinstance(glue, _Function):
    yield _text_of_code(glue.code, str(glue.home.names.get('__name__', '')))
    yield ' '.join((*glue.keywords, *glue.names))
    left_out.add(len(parts) - 1)  # the function's own attributes
  elif isinstance(glue, _Object):
    yield f'{_name_of(glue.kind)} {" ".join(glue.names)} {_text_of_call(glue.kind)}'
  elif isinstance(glue, _Tree) and 'CustomNode' in str(glue):
    yield from _texts_of_nodes(glue.structure)
  else:
    yield re.sub(r'0x[0-9a-f]+', '', str(glue))
  for at, part in enumerate(parts):
    found = list(_texts(part, leaves)) if at not in left_out else _skip(part, leaves)
    yield from found


def _texts_of_nodes(structure: Any) -> Iterator[str]:
  """The types of a pytree's nodes and what they hold beside their leaves, such as functions."""
  if (node := structure.node_data()) is not None:
    yield from (_name_of(node[0]), digest(node[1]))
  for child in structure.children():
    yield from _texts_of_nodes(child)


def _skip(recipe: Recipe, leaves: Iterator[Any]) -> list[str]:
  for _ in range(recipe.count):
    next(leaves, None)
  return []


def _texts_of_value(value: Any) -> Iterator[str]:
  if value is None or isinstance(value, bool | int | float | complex | str | bytes | np.generic):
    yield repr(value)
  elif isinstance(value, np.ndarray) and value.dtype != object:
    yield f'{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}'
  elif isinstance(value, types.FunctionType):
    yield _text_of_code(value.__code__, value.__module__)
  else:
    kind = value if isinstance(value, type) else type(value)
    yield from (_name_of(kind), _text_of_call(kind))
    if _is_ours(kind) and (split := _split_object(value)) is not None:
      for part in split[1]:
        yield digest(part)
    # What is jitted, and gradients that are written by hand.
    for name in ('__wrapped__', 'fwd', 'bwd', 'jvp'):
      inner = getattr(value, name, None)
      if isinstance(inner, types.FunctionType):
        yield digest(inner)


def _text_of_call(kind: type) -> str:
  call = inspect.getattr_static(kind, '__call__', None)
  return _text_of_code(call.__code__, call.__module__) if hasattr(call, '__code__') else ''


def _text_of_code(code: types.CodeType, module: str) -> str:
  root = (module or '').partition('.')[0]
  if root == 'rest_jax' or root in _LIBRARIES or root in sys.stdlib_module_names:
    return f'{module}.{code.co_qualname}'
  found = hashlib.sha256()
  for part in _codes(code):
    plain = [one for one in part.co_consts if not isinstance(one, types.CodeType)]
    held = (part.co_names, part.co_freevars, [_text_of_constant(one) for one in plain])
    found.update(part.co_code + repr(held).encode(errors='surrogatepass'))
  return found.hexdigest()


def _text_of_constant(value: Any) -> str:
  # The order of a set of texts is another one in each process.
  return str(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)


def _name_of(kind: type) -> str:
  return f'{kind.__module__}.{kind.__qualname__}'
