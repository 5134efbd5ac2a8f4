"""A function with another gradient at its ReLUs, by running its jaxpr.

No change to the model is needed, and it need not be a Linen module: what JAX traces of it is run
again equation by equation, and where an equation is a ReLU another one with the guided rule
stands in. Everything else, custom derivatives included, stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from rest_jax.errors import UserError
from rest_jax.explain import relus as known


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
  else takes 0 for what is negative, see `relus`; not the maximum of 0 and a variance in a
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
    given = known.unknown(len(closed.jaxpr.invars))
    if not known.has_relu(closed.jaxpr, given):
      raise UserError(
        'no ReLU is seen in the model (jax.nn.relu, jnp.maximum(x, 0), jnp.where(x > 0, x, 0) or '
        'the like), so guided backpropagation is not defined for it; the method gradient is what '
        'it would give'
      )
    out = _run(closed.jaxpr, closed.consts, given, *jax.tree.leaves(args))
    return jax.tree.unflatten(jax.tree.structure(shape), out)

  return run


def _run(
  jaxpr: core.Jaxpr, consts: Sequence[Any], given: Sequence[known.Fact], *args: Any
) -> list[Any]:
  values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

  def read(atom):
    return atom.val if isinstance(atom, core.Literal) else values[atom]

  facts, relus = known.facts_of(jaxpr, given)
  for number, equation in enumerate(jaxpr.eqns):
    operands, of_them = (
      [read(atom) for atom in equation.invars],
      known.operand_facts(equation, facts),
    )
    if number in relus:
      out = [_guide(equation, operands, of_them)]
    else:
      out = _apply(equation, operands, of_them)
    values.update(zip(equation.outvars, out, strict=True))
  return [read(atom) for atom in jaxpr.outvars]


def _guide(equation: core.JaxprEqn, operands: list[Any], facts: Sequence[known.Fact]) -> Any:
  place = known.relu_operand(equation, facts)
  assert place is not None
  shape = equation.outvars[0].aval.shape  # pyright: ignore[reportAttributeAccessIssue]
  x = guided_relu(jnp.broadcast_to(operands[place], shape))
  return jnp.minimum(x, operands[2]) if equation.primitive.name == 'clamp' else x


def _apply(equation: core.JaxprEqn, operands: list[Any], facts: Sequence[known.Fact]) -> list[Any]:
  name = equation.primitive.name
  if known.calls_relu(equation, facts):
    inner = list(known.inner(equation))
    if name in known.CALLS and len(inner) == 1:
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
  return _run(*inner, known.unknown(len(operands)), *operands)


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
