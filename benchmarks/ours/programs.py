"""A function compiled ahead of time, with what XLA says of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from benchmarks.work import Work
from rest_jax.ops.platform import jit


class Program:
  """Compiles at its first call."""

  def __init__(self, function: Any, *args: Any, **static: Any):
    """Takes a function, compiled or not, and its arguments.

    Args:
      function: what `ops.platform.jit` takes or gives.
      *args: arrays.
      **static: static arguments of a compiled function.
    """
    self.jitted = function if hasattr(function, 'lower') else jit(function)
    self.args, self.static = args, static
    self.lowered: Any = None
    self.compiled: Any = None

  def __call__(self) -> None:
    if self.compiled is None:
      self.lowered = self.jitted.lower(*self.args, **self.static)
      self.compiled = self.lowered.compile()
    jax.block_until_ready(self.compiled(*self.args))

  def facts(self) -> dict[str, Any]:
    """Operations as traced; bytes that the compiled program touches, and allocates."""
    found = {'flops': count(self.lowered, 'flops'), 'bytes': count(self.compiled, 'bytes accessed')}
    memory = self.compiled.memory_analysis()
    if memory is not None:
      found['declared'] = memory.temp_size_in_bytes + memory.output_size_in_bytes
    found['loops'] = 'stablehlo.while' in self.lowered.as_text()
    return found


def count(stage: Any, what: str) -> float:
  """A figure of XLA's cost analysis; the body of a loop counts once."""
  found = stage.cost_analysis()
  found = found[0] if isinstance(found, list) else found
  return float((found or {}).get(what, 0.0))


def program(function: Callable[..., Any], *args: Any, **static: Any) -> Work:
  """The work of calling a function with the same arguments again and again."""
  made = Program(function, *args, **static)
  return Work(made, made.facts)
