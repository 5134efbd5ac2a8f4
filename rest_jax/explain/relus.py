"""A function with another gradient at its ReLUs, by running its jaxpr.

No change to the model is needed, and it need not be a Linen module: what JAX traces of it is run
again equation by equation, and where an equation is a ReLU another one with the guided rule
stands in. Everything else, custom derivatives included, stays as it is.

Which equations are a ReLU, however it was written: `jnp.maximum(x, 0)`, `jnp.maximum(0, x)`,
`jnp.clip(x, 0, ...)`, `jax.lax.clamp(0, x, ...)`, `jnp.where(x > 0, x, 0)` and `x * (x > 0)` are
one function. To see it, what is known of each value is carried from equation to equation and into
the functions that they call: that it is zero, or that it marks where another value is positive.
`jnp.maximum(0, variance)`, as normalisation layers have it, is none: what only goes into a root is
left alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from rest_jax.errors import UserError

# Equations that hold one function and run it on their own operands.
CALLS = {'jit', 'pjit', 'closed_call', 'core_call', 'checkpoint', 'remat', 'remat2'}
CALLS |= {'custom_jvp_call', 'custom_vjp_call', 'custom_vjp_call_jaxpr'}
# Equations that leave what is known of a value; the last two stand before constants in shard_map.
_KEEP = {'broadcast_in_dim', 'convert_element_type', 'copy', 'pvary', 'pcast'}
_TO_A_ROOT = _KEEP | {'add', 'reshape', 'squeeze', 'expand_dims', 'max'}
_ROOTS = {'rsqrt', 'sqrt', 'pow', 'integer_pow', 'log'}


@jax.custom_vjp
def guided_relu(x: jax.Array) -> jax.Array:
  """max(x, 0), whose gradient passes where both x and the gradient from above are positive."""
  return jnp.maximum(x, 0)


guided_relu.defvjp(
  lambda x: (jnp.maximum(x, 0), x > 0),
  lambda positive, g: (jnp.where(positive & (g > 0), g, 0),),
)


def guided(function: Callable[..., Any]) -> Callable[..., Any]:
  """Gives every ReLU of a function the guided rule; its values stay the same.

  A ReLU is `jax.nn.relu` (also as flax, nnx and Equinox call it), `jax.nn.relu6`, and whatever
  else takes 0 for what is negative, see above; not the maximum of 0 and a variance in a
  normalisation layer. Inside jit, checkpoint, scan and cond they are found too.

  Args:
    function: of arrays, to any pytree of arrays.

  Returns:
    The function to differentiate in reverse mode.

  Raises:
    UserError: when called, if no ReLU is seen, or one where it cannot be reached (a while loop).
  """

  def run(*args):
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    given = unknown(len(closed.jaxpr.invars))
    if not has_relu(closed.jaxpr, given):
      raise UserError(
        'no ReLU is seen in the model (jax.nn.relu, jnp.maximum(x, 0), jnp.where(x > 0, x, 0) or '
        'the like), so guided backpropagation is not defined for it; the method gradient is what '
        'it would give'
      )
    out = _run(closed.jaxpr, closed.consts, given, *jax.tree.leaves(args))
    return jax.tree.unflatten(jax.tree.structure(shape), out)

  return run


def _run(jaxpr: core.Jaxpr, consts: Sequence[Any], given: Sequence[Fact], *args: Any) -> list[Any]:
  values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

  def read(atom):
    return atom.val if isinstance(atom, core.Literal) else values[atom]

  facts, relus = facts_of(jaxpr, given)
  for number, equation in enumerate(jaxpr.eqns):
    operands, of_them = (
      [read(atom) for atom in equation.invars],
      operand_facts(equation, facts),
    )
    if number in relus:
      out = [_guide(equation, operands, of_them)]
    else:
      out = _apply(equation, operands, of_them)
    values.update(zip(equation.outvars, out, strict=True))
  return [read(atom) for atom in jaxpr.outvars]


def _guide(equation: core.JaxprEqn, operands: list[Any], facts: Sequence[Fact]) -> Any:
  place = relu_operand(equation, facts)
  assert place is not None
  shape = equation.outvars[0].aval.shape  # pyright: ignore[reportAttributeAccessIssue]
  x = guided_relu(jnp.broadcast_to(operands[place], shape))
  return jnp.minimum(x, operands[2]) if equation.primitive.name == 'clamp' else x


def _apply(equation: core.JaxprEqn, operands: list[Any], facts: Sequence[Fact]) -> list[Any]:
  name = equation.primitive.name
  if calls_relu(equation, facts):
    inner = list(inner_programs(equation))
    if name in CALLS and len(inner) == 1:
      return _run(*inner[0], facts, *operands)
    if name == 'cond':
      branches = [lambda *x, branch=branch: _inside(branch, *x) for branch in inner]
      return jax.lax.switch(operands[0], branches, *operands[1:])
    if name == 'scan':
      return _scan(equation.params, inner[0], operands)
    raise UserError(f'guided backpropagation does not reach the ReLU inside {name}; unroll it')
  out = equation.primitive.bind(*operands, **equation.primitive.get_bind_params(equation.params))
  return out if equation.primitive.multiple_results else [out]


def _inside(inner, *operands: Any) -> list[Any]:
  return _run(*inner, unknown(len(operands)), *operands)


def _scan(parameters: dict[str, Any], inner, operands: list[Any]) -> list[Any]:
  fixed, carried = parameters['num_consts'], parameters['num_carry']

  def step(carry, x):
    out = _inside(inner, *operands[:fixed], *carry, *x)
    return out[:carried], out[carried:]

  carry, stacked = jax.lax.scan(
    step,
    operands[fixed : fixed + carried],
    operands[fixed + carried :],
    length=parameters['length'],
    reverse=parameters['reverse'],
    unroll=parameters['unroll'],
  )
  return [*carry, *stacked]


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
  return any(
    has_relu(jaxpr, _given(equation, jaxpr, operands)) for jaxpr, _ in inner_programs(equation)
  )


def inner_programs(equation: core.JaxprEqn) -> Iterator[tuple[core.Jaxpr, Sequence[Any]]]:
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
  held = list(inner_programs(equation))
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
