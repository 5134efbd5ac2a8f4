"""NNX modules that a function hides: what is compiled of it would not see their later changes."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Iterator
from typing import Any

from rest_jax.recipes import names_of


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
  for name in names_of(code)[0]:
    held = home.get(name)
    if not isinstance(held, types.FunctionType) or held.__globals__ is home:
      yield name, held


def _items(value: Any) -> list[Any]:
  """A value, or what stands in a list, tuple or dictionary."""
  if isinstance(value, dict):
    return list(value.values())
  return list(value) if isinstance(value, list | tuple) else [value]
