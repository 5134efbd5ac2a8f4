"""A function with another gradient at its ReLUs, by running its jaxpr.

No change to the model is needed, and it need not be a Linen module: what JAX traces of it is run
again equation by equation, and where an equation is a ReLU another one with the guided rule
stands in. Everything else, custom derivatives included, stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from rest_jax.errors import UserError

# Equations that hold one function and run it on their own operands.
_CALLS = {'jit', 'pjit', 'closed_call', 'core_call', 'checkpoint', 'remat', 'remat2'}
_CALLS |= {'custom_jvp_call', 'custom_vjp_call', 'custom_vjp_call_jaxpr'}
# Equations that leave zeros zero; the last two stand before constants inside shard_map.
_KEEP_ZEROS = {'broadcast_in_dim', 'convert_element_type', 'pvary', 'pcast'}


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

  A ReLU is `jax.nn.relu` (also as flax, nnx and Equinox call it), `jax.nn.relu6`, or
  `jnp.maximum(x, 0)` with the zero second: `jnp.maximum(0, x)` is how normalisation layers keep a
  variance from being negative, and is left alone. Inside jit, checkpoint, scan and cond they are
  found too.

  Args:
    function: of arrays, to any pytree of arrays.

  Returns:
    The function to differentiate in reverse mode.

  Raises:
    UserError: when called, if there is no ReLU, or one where it cannot be reached (a while loop).
  """

  def run(*args):
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    if not _has_relu(closed.jaxpr):
      raise UserError(
        'the model has no ReLU (jax.nn.relu or jnp.maximum(x, 0)), so guided backpropagation is '
        'not defined for it; the method gradient is what it would give'
      )
    out = _run(closed.jaxpr, closed.consts, *jax.tree.leaves(args))
    return jax.tree.unflatten(jax.tree.structure(shape), out)

  return run


def _run(jaxpr: core.Jaxpr, consts: Sequence[Any], *args: Any) -> list[Any]:
  values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

  def read(atom):
    return atom.val if isinstance(atom, core.Literal) else values[atom]

  zeros = _zeros(jaxpr)
  for equation in jaxpr.eqns:
    out = _apply(equation, [read(atom) for atom in equation.invars], zeros)
    values.update(zip(equation.outvars, out, strict=True))
  return [read(atom) for atom in jaxpr.outvars]


def _apply(equation: core.JaxprEqn, operands: list[Any], zeros: set[core.Var]) -> list[Any]:
  name = equation.primitive.name
  if _is_relu(equation, zeros):
    return [guided_relu(operands[0])]
  inner = list(_inner(equation))
  if any(_has_relu(jaxpr) for jaxpr, _ in inner):
    if name in _CALLS and len(inner) == 1:
      return _run(*inner[0], *operands)
    if name == 'cond':
      branches = [lambda *x, branch=branch: _run(*branch, *x) for branch in inner]
      return jax.lax.switch(operands[0], branches, *operands[1:])
    if name == 'scan':
      return _scan(equation.params, inner[0], operands)
    raise UserError(f'guided backpropagation does not reach the ReLU inside {name}; unroll it')
  out = equation.primitive.bind(*operands, **equation.primitive.get_bind_params(equation.params))
  return out if equation.primitive.multiple_results else [out]


def _scan(parameters: dict[str, Any], inner, operands: list[Any]) -> list[Any]:
  fixed, carried = parameters['num_consts'], parameters['num_carry']

  def step(carry, x):
    out = _run(*inner, *operands[:fixed], *carry, *x)
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


def _inner(equation: core.JaxprEqn) -> Iterator[tuple[core.Jaxpr, Sequence[Any]]]:
  """The functions that an equation holds, and their constants."""
  for parameter in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
    if isinstance(parameter, core.ClosedJaxpr):
      yield parameter.jaxpr, parameter.consts
    elif isinstance(parameter, core.Jaxpr):
      yield parameter, ()


def _is_jaxpr(x: Any) -> bool:
  return isinstance(x, (core.ClosedJaxpr, core.Jaxpr))


def _has_relu(jaxpr: core.Jaxpr) -> bool:
  zeros = _zeros(jaxpr)
  return any(
    _is_relu(equation, zeros) or any(_has_relu(inner) for inner, _ in _inner(equation))
    for equation in jaxpr.eqns
  )


def _is_relu(equation: core.JaxprEqn, zeros: set[core.Var]) -> bool:
  return equation.primitive.name == 'max' and _is_zero(equation.invars[1], zeros)


def _zeros(jaxpr: core.Jaxpr) -> set[core.Var]:
  """Variables that are arrays of zeros, as `jnp.zeros_like` makes them."""
  zeros: set[core.Var] = set()
  for equation in jaxpr.eqns:
    keeps = equation.primitive.name in _KEEP_ZEROS
    if keeps and _is_zero(equation.invars[0], zeros):
      zeros.add(equation.outvars[0])
  return zeros


def _is_zero(atom: Any, zeros: set[core.Var]) -> bool:
  if isinstance(atom, core.Literal):
    return not np.any(np.asarray(atom.val))
  return atom in zeros
