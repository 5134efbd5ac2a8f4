"""Any JAX function with this library's convolutions in place of XLA's, for a CPU.

A stranger's model calls `lax.conv_general_dilated`, directly or through Flax, Equinox or Haiku. On
XLA's CPU backend its gradient is slow inside a loop (`ops.canonical`) and its depthwise
convolutions are slow everywhere (`ops.depthwise`). `fast_convolutions` traces the function and
evaluates what it found with the quick forms instead; everything else stays as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.extend.core import primitives
from jax.tree_util import Partial

from rest_jax.ops.canonical import Window, canonical_conv
from rest_jax.ops.depthwise import depthwise_conv
from rest_jax.ops.platform import form, jit

# Primitives whose inner programs are looked into. Those with a derivative rule of their own keep
# it: what stands inside it is not touched.
_CONTROL = ('scan', 'while', 'cond', 'remat2', 'checkpoint', 'remat')


def fast_convolutions(function: Callable[..., Any], *, anew: bool = False) -> Callable[..., Any]:
  """The same function, quicker on a CPU.

  Args:
    function: of any pytrees of arrays. A `jax.tree_util.Partial` is traced once for its code and
      for the shapes of its arrays and arguments, whatever programs it becomes a part of; any other
      function at every call.
    anew: trace a `Partial` at every call too.

  Returns:
    A function with the same results up to rounding. Where the form is 'plain' (GPU, TPU,
    `use_form('plain')`) it is the function itself. Like the fast forms of `ops` it has no
    derivative in forward mode.
  """

  @functools.wraps(function)
  def quick(*args, **kwargs):
    if form() == 'plain':
      return function(*args, **kwargs)
    call, values = _Call.of((function, args, kwargs))
    if not (isinstance(function, Partial) and call.has_hash()):
      return _evaluated(call, *values)
    return (_program() if anew else _once)(call, *values)

  return quick


class _Call(NamedTuple):
  """A call without its arrays.

  Attributes:
    tree: structure of the function, its arguments and its keyword arguments.
    rest: the leaves that are no arrays, each with its place and type: 1 is not True.
  """

  tree: Any
  rest: tuple[tuple[int, type, Any], ...]

  @classmethod
  def of(cls, whole: tuple[Any, ...]) -> tuple[_Call, list[Any]]:
    """Takes function, arguments and keyword arguments apart, into a call and its arrays."""
    leaves, tree = jax.tree.flatten(whole)
    rest = tuple((i, type(x), x) for i, x in enumerate(leaves) if not _is_array(x))
    return cls(tree, rest), [leaf for leaf in leaves if _is_array(leaf)]

  def has_hash(self) -> bool:
    """Whether an equal call can be found again."""
    try:
      hash(self)
    except TypeError:
      return False
    return True

  def made(self, values: Any) -> Any:
    """Calls the function, its arrays in place."""
    full = list(values)
    for place, _, value in self.rest:
      full.insert(place, value)
    function, args, kwargs = jax.tree.unflatten(self.tree, full)
    return function(*args, **kwargs)


def _evaluated(call: _Call, *values: Any) -> Any:
  program, shapes = jax.make_jaxpr(lambda *values: call.made(values), return_shape=True)(*values)
  found = evaluate(program.jaxpr, program.consts, values)
  return jax.tree.unflatten(jax.tree.structure(shapes), found)


def _program() -> Callable[..., Any]:
  """`_evaluated` as a part of other programs, which nobody has traced."""
  return jit(functools.partial(_evaluated), static_argnums=0)


_once = _program()


def _is_array(leaf: Any) -> bool:
  return hasattr(leaf, 'shape') and hasattr(leaf, 'dtype')


def evaluate(program: core.Jaxpr, consts: Any, values: Any) -> list[Any]:
  """Evaluates a traced program with the quick convolutions.

  Args:
    program: from `jax.make_jaxpr`.
    consts: what it encloses, one for each of its `constvars`.
    values: its arguments, one for each of its `invars`.

  Returns:
    Its results, one for each of its `outvars`.
  """
  known: dict[Any, Any] = {}

  def read(atom):
    return atom.val if isinstance(atom, core.Literal) else known[atom]

  known.update(zip(program.constvars, consts, strict=True))
  known.update(zip(program.invars, values, strict=True))
  for equation in program.eqns:
    inputs = [read(atom) for atom in equation.invars]
    outputs = _run(equation, inputs)
    known.update(zip(equation.outvars, outputs, strict=True))
  return [read(atom) for atom in program.outvars]


def _run(equation: Any, inputs: list[Any]) -> list[Any]:
  primitive, params = equation.primitive, equation.params
  if primitive is primitives.conv_general_dilated_p:
    x, kernel = inputs
    return [_convolve(x, kernel, equation)]
  if primitive is primitives.jit_p and _has_convolution(params['jaxpr'].jaxpr):
    inner = params['jaxpr']
    return evaluate(inner.jaxpr, inner.consts, inputs)
  if primitive.name in _CONTROL:
    params = {name: _rewritten(value) for name, value in params.items()}
  bound = primitive.get_bind_params(params)
  # Until some version of JAX these were the functions and the rest.
  functions, bound = bound if isinstance(bound, tuple) else ((), bound)
  with equation.ctx.manager:
    found = primitive.bind(*functions, *inputs, **bound)
  return list(found) if primitive.multiple_results else [found]


def _rewritten(value: Any) -> Any:
  """A parameter of a control primitive: its programs are traced anew with the quick forms."""
  if isinstance(value, tuple) and value and all(isinstance(v, core.ClosedJaxpr) for v in value):
    return tuple(_rewritten(v) for v in value)
  if isinstance(value, core.ClosedJaxpr) and _has_convolution(value.jaxpr):
    return _traced(value.jaxpr, value.consts)
  if isinstance(value, core.Jaxpr) and _has_convolution(value) and not value.constvars:
    return _traced(value, ()).jaxpr
  return value


def _traced(program: core.Jaxpr, consts: Any) -> core.ClosedJaxpr:
  shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in program.invars]  # pyright: ignore
  return jax.make_jaxpr(lambda *values: evaluate(program, consts, values))(*shapes)


def _has_convolution(program: core.Jaxpr) -> bool:
  for equation in program.eqns:
    if equation.primitive is primitives.conv_general_dilated_p:
      return True
    if any(_has_convolution(inner) for inner in _programs(equation.params.values())):
      return True
  return False


def _programs(values: Any) -> list[core.Jaxpr]:
  found: list[core.Jaxpr] = []
  for value in values:
    if isinstance(value, core.ClosedJaxpr):
      found.append(value.jaxpr)
    elif isinstance(value, core.Jaxpr):
      found.append(value)
    elif isinstance(value, tuple | list):
      found += _programs(value)
  return found


def _convolve(x: Any, kernel: Any, equation: Any) -> Any:
  params = equation.params
  groups = params['feature_group_count']
  names = params['dimension_numbers']
  x_order = (names.lhs_spec[0], *names.lhs_spec[2:], names.lhs_spec[1])
  kernel_order = (*names.rhs_spec[2:], names.rhs_spec[1], names.rhs_spec[0])
  out_order = (names.out_spec[0], *names.out_spec[2:], names.out_spec[1])
  window = Window(
    tuple(params['window_strides']),
    tuple((int(lo), int(hi)) for lo, hi in params['padding']),
    tuple(params['lhs_dilation']),
    tuple(params['rhs_dilation']),
    params['precision'],
    params['preferred_element_type'],
  )
  if params['batch_group_count'] != 1 or not (
    groups == 1 or _is_depthwise(x, names, window, groups)
  ):
    return equation.primitive.bind(x, kernel, **params)
  x, kernel = jnp.transpose(x, x_order), jnp.transpose(kernel, kernel_order)
  out = canonical_conv(x, kernel, window) if groups == 1 else _depthwise(x, kernel, window)
  return jnp.transpose(out, _inverse(out_order))


def _is_depthwise(x: Any, names: Any, window: Window, groups: int) -> bool:
  return (
    x.ndim == 4
    and x.shape[names.lhs_spec[1]] == groups
    and len(set(window.strides)) == 1
    and set(window.lhs_dilation + window.rhs_dilation) == {1}
    and min(min(pair) for pair in window.padding) >= 0
    and window.preferred_element_type in (None, x.dtype)
  )


def _depthwise(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
  padded = jnp.pad(x, ((0, 0), *window.padding, (0, 0)))
  return depthwise_conv(padded, kernel, stride=window.strides[0])


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
  return tuple(order.index(i) for i in range(len(order)))
