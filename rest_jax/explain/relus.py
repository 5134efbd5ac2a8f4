"""Which equations of a jaxpr are a ReLU, however it was written.

`jnp.maximum(x, 0)`, `jnp.maximum(0, x)`, `jnp.clip(x, 0, ...)`, `jax.lax.clamp(0, x, ...)`,
`jnp.where(x > 0, x, 0)` and `x * (x > 0)` are one function. To see it, what is known of each value
is carried from equation to equation and into the functions that they call: that it is zero, or
that it marks where another value is positive.

`jnp.maximum(0, variance)`, as normalisation layers have it, is none: what only goes into a root is
left alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

# Equations that hold one function and run it on their own operands.
CALLS = {'jit', 'pjit', 'closed_call', 'core_call', 'checkpoint', 'remat', 'remat2'}
CALLS |= {'custom_jvp_call', 'custom_vjp_call', 'custom_vjp_call_jaxpr'}
# Equations that leave what is known of a value; the last two stand before constants in shard_map.
_KEEP = {'broadcast_in_dim', 'convert_element_type', 'copy', 'pvary', 'pcast'}
_TO_A_ROOT = _KEEP | {'add', 'reshape', 'squeeze', 'expand_dims', 'max'}
_ROOTS = {'rsqrt', 'sqrt', 'pow', 'integer_pow', 'log'}


@dataclasses.dataclass(frozen=True)
class Fact:
  """What is known of a value.

  Attributes:
    value: stands for it: equal ones are the same value, up to its shape.
    zero: it is an array of zeros.
    marks: the value that it is true (or 1) for where that is positive, false (or 0) elsewhere.
    spares: the same with true and false exchanged.
  """

  value: object
  zero: bool = False
  marks: object = None
  spares: object = None


Facts = dict[Any, Fact]


def facts_of(jaxpr: core.Jaxpr, given: Sequence[Fact]) -> tuple[Facts, set[int]]:
  """Goes through a jaxpr.

  Args:
    jaxpr: of a function.
    given: what is known of its arguments, as many as `jaxpr.invars`.

  Returns:
    What is known of each variable, and the numbers of the equations that are a ReLU.
  """
  facts: Facts = dict(zip(jaxpr.invars, given, strict=True))
  relus = set()
  for number, equation in enumerate(jaxpr.eqns):
    operands = operand_facts(equation, facts)
    if relu_operand(equation, operands) is not None and not _before_a_root(equation, jaxpr):
      relus.add(number)
    facts |= zip(equation.outvars, _result(equation, operands), strict=True)
  return facts, relus


def operand_facts(equation: core.JaxprEqn, facts: Facts) -> list[Fact]:
  """What is known of an equation's operands."""
  return [fact_of(atom, facts) for atom in equation.invars]


def fact_of(atom: Any, facts: Facts) -> Fact:
  """What is known of a variable or a literal."""
  if isinstance(atom, core.Literal):
    return Fact(object(), zero=not np.any(np.asarray(atom.val)))
  return facts.setdefault(atom, Fact(object()))


def unknown(count: int) -> list[Fact]:
  """Facts of so many values of which nothing is known."""
  return [Fact(object()) for _ in range(count)]


def has_relu(jaxpr: core.Jaxpr, given: Sequence[Fact] | None = None) -> bool:
  """Whether a ReLU is in a function, or in one that it calls."""
  facts, relus = facts_of(jaxpr, unknown(len(jaxpr.invars)) if given is None else given)
  return bool(relus) or any(calls_relu(e, operand_facts(e, facts)) for e in jaxpr.eqns)


def calls_relu(equation: core.JaxprEqn, operands: Sequence[Fact]) -> bool:
  """Whether a ReLU is in a function that an equation calls."""
  return any(has_relu(jaxpr, _given(equation, jaxpr, operands)) for jaxpr, _ in inner(equation))


def inner(equation: core.JaxprEqn) -> Iterator[tuple[core.Jaxpr, Sequence[Any]]]:
  """The functions that an equation holds, and their constants."""
  for parameter in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
    if isinstance(parameter, core.ClosedJaxpr):
      yield parameter.jaxpr, parameter.consts
    elif isinstance(parameter, core.Jaxpr):
      yield parameter, ()


def relu_operand(equation: core.JaxprEqn, operands: Sequence[Fact]) -> int | None:
  """Which operand the equation gives where it is positive, and 0 elsewhere; None if no ReLU."""
  dtype = getattr(equation.outvars[0].aval, 'dtype', None) if equation.outvars else None
  if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
    return None
  name = equation.primitive.name
  if name == 'max':
    zeros = [fact.zero for fact in operands]
    return zeros.index(False) if sorted(zeros) == [False, True] else None
  if name == 'clamp':
    return 1 if operands[0].zero else None
  if name == 'mul':
    for place, (x, mask) in enumerate((operands, operands[::-1])):
      if mask.marks is not None and mask.marks is x.value:
        return place
  if name == 'select_n' and len(operands) == 3:
    pred, false, true = operands
    if false.zero and pred.marks is not None and pred.marks is true.value:
      return 2
    if true.zero and pred.spares is not None and pred.spares is false.value:
      return 1
  return None


def _result(equation: core.JaxprEqn, operands: Sequence[Fact]) -> list[Fact]:
  """What is known of an equation's results."""
  name, fresh = equation.primitive.name, unknown(len(equation.outvars))
  if name in _KEEP:
    return [operands[0]]
  if name in ('gt', 'ge', 'lt', 'le'):
    return [_comparison(name, *operands)]
  if name == 'not':
    return [Fact(object(), marks=operands[0].spares, spares=operands[0].marks)]
  held = list(inner(equation))
  if name in CALLS and len(held) == 1:
    jaxpr = held[0][0]
    facts, _ = facts_of(jaxpr, _given(equation, jaxpr, operands))
    return [fact_of(atom, facts) for atom in jaxpr.outvars]
  return fresh


def _comparison(name: str, a: Fact, b: Fact) -> Fact:
  more = name in ('gt', 'ge')
  if b.zero:
    return Fact(object(), marks=a.value) if more else Fact(object(), spares=a.value)
  if a.zero:
    return Fact(object(), spares=b.value) if more else Fact(object(), marks=b.value)
  return Fact(object())


def _given(equation: core.JaxprEqn, jaxpr: core.Jaxpr, operands: Sequence[Fact]) -> list[Fact]:
  count = len(jaxpr.invars)
  is_call = equation.primitive.name in CALLS and count == len(operands)
  return list(operands) if is_call else unknown(count)


def _before_a_root(equation: core.JaxprEqn, jaxpr: core.Jaxpr) -> bool:
  """Whether a result only goes into roots, perhaps after something was added: a variance."""
  if equation.primitive.name != 'max':
    return False
  waiting, seen_a_root = list(equation.outvars), False
  while waiting:
    variable = waiting.pop()
    users = [e for e in jaxpr.eqns if any(atom is variable for atom in e.invars)]
    if not users or any(atom is variable for atom in jaxpr.outvars):
      return False
    for user in users:
      if user.primitive.name in _ROOTS:
        seen_a_root = True
      elif user.primitive.name in _TO_A_ROOT:
        waiting += user.outvars
      else:
        return False
  return seen_a_root


def _is_jaxpr(x: Any) -> bool:
  return isinstance(x, (core.ClosedJaxpr, core.Jaxpr))
