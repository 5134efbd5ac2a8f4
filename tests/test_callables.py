"""Any function of images as one argument of a compiled function."""

import dataclasses
import functools
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial, register_dataclass

from rest_jax.callables import as_function
from rest_jax.errors import UserError


@register_dataclass
@dataclasses.dataclass
class Scaled:
  scale: jax.Array

  def __call__(self, x):
    return x * self.scale


@dataclasses.dataclass  # compares by value, so it has no hash
class Unhashable:
  offset: float

  def __call__(self, x):
    return x + self.offset


def counted():
  traces = []

  @jax.jit
  def run(function, x):
    traces.append(1)
    return function(x)

  return run, traces


def test_weights_of_a_pytree_are_data():
  run, traces = counted()
  x = jnp.ones(3)
  assert run(as_function(Scaled(jnp.full(3, 2.0))), x).tolist() == [2.0] * 3
  assert run(as_function(Scaled(jnp.full(3, 5.0))), x).tolist() == [5.0] * 3
  assert len(traces) == 1


def test_same_function_compiles_once():
  run, traces = counted()
  for function in (jnp.sin, jnp.sin, jnp.cos):
    run(as_function(function), jnp.zeros(2))
  assert len(traces) == 2


def test_object_without_hash():
  run, traces = counted()
  first, second = Unhashable(1.0), Unhashable(1.0)
  for model in (first, first, second):
    assert run(as_function(model), jnp.zeros(2)).tolist() == [1.0, 1.0]
  assert len(traces) == 2


def test_partial_stays():
  partial = Partial(jnp.add, jnp.ones(2))
  assert as_function(partial) is partial


def test_not_callable():
  with pytest.raises(UserError, match='not ndarray'):
    as_function(np.zeros(3))


WEIGHTS = jnp.ones(2)  # a global, as in a script


def by_global(x):
  return x * WEIGHTS


class Plain:
  """An object that is no pytree."""

  def __init__(self, weights):
    self.weights = weights

  def __call__(self, x):
    return self.logits(x)

  def logits(self, x):
    return x * self.weights


class Net(nnx.Module):
  """A mutable module."""

  def __init__(self, value):
    self.scale = nnx.Param(jnp.asarray(value))

  def __call__(self, x):
    return x * self.scale[...]


def by_cell(weights):
  return lambda x: x * weights


def by_function_in_cell(weights):
  inner = by_cell(weights)
  return lambda x: inner(x)


FORMS = {
  'cell': by_cell,
  'numpy': lambda w: by_cell(np.asarray(w)),
  'tree': lambda w: (lambda tree: lambda x: x * tree['w'])({'w': w}),
  'default': lambda w: lambda x, w=w: x * w,
  'function in a cell': by_function_in_cell,
  'partial': lambda w: functools.partial(lambda x, y, name: y * x, w, name='no array'),
  'jax partial of a cell': lambda w: Partial(lambda a, x: x * w * a, jnp.float32(1)),
  'bound method of a pytree': lambda w: Scaled(w).__call__,
  'object': Plain,
  'bound method of an object': lambda w: Plain(w).logits,
  'nnx': Net,
  'nnx method': lambda w: Net(w).__call__,
  'nnx argument': lambda w: functools.partial(lambda net, x: net(x), Net(w)),
}


@pytest.mark.parametrize('form', FORMS)
def test_weights_are_data_wherever_they_stand(form):
  run, traces = counted()
  for value in (2.0, 3.0):
    model = as_function(FORMS[form](jnp.full(2, value)))
    assert run(model, jnp.ones(2)).tolist() == [value, value]
    assert len(jax.tree.leaves(model)) >= 1
  assert len(traces) == 1  # other weights compile nothing anew


def test_what_is_changed_later_is_seen(monkeypatch):
  run, _ = counted()
  net, plain, scaled, factor = Net(jnp.ones(2)), Plain(jnp.ones(2)), Scaled(jnp.ones(2)), 1.0
  functions = [
    net.__call__,
    net,
    plain,
    plain.logits,
    scaled.__call__,
    by_global,
    lambda x: x * factor,
  ]
  for function in functions:
    assert run(as_function(function), jnp.ones(2)).tolist() == [1, 1]
  net.scale[...] = jnp.full(2, 4.0)
  plain.weights = scaled.scale = jnp.full(2, 4.0)
  monkeypatch.setitem(globals(), 'WEIGHTS', jnp.full(2, 4.0))
  factor = 4.0
  for function in functions:
    assert run(as_function(function), jnp.ones(2)).tolist() == [4, 4]


@pytest.mark.parametrize(
  'hide',
  [
    lambda net: lambda x: net(x),
    lambda net: lambda x, net=net: net(x),
    lambda net: (lambda nets: lambda x: nets[0](x))([net]),
    lambda net: (lambda inner: lambda x: inner(x))(lambda x: net(x)),
    lambda net: functools.partial(lambda scale, x: net(x) * scale, 1.0),
    lambda net: Partial(lambda scale, x: net(x) * scale, jnp.ones(2)),
    lambda net: jax.jit(lambda x: net(x)),
  ],
)
def test_a_mutable_module_in_a_closure_is_refused_with_what_to_write(hide):
  with pytest.raises(
    UserError, match=r'mutable module .*jax.tree_util.Partial\(lambda net'
  ) as caught:
    as_function(hide(Net(jnp.ones(2))))
  assert '\n' not in str(caught.value)


def test_what_a_function_writes_stays_its_own():
  calls = 0

  def counting(x):
    nonlocal calls
    calls += 1
    return x

  run, _ = counted()
  run(as_function(counting), jnp.ones(2))
  assert calls == 1


def test_compiled_programs_keep_no_model_alive():
  run, _ = counted()
  gc.collect()
  before = sum(a.nbytes for a in jax.live_arrays())
  for i in range(5):
    run(as_function(by_cell(jnp.full((1 << 18,), float(i)))), jnp.ones(1 << 18))
  gc.collect()
  assert sum(a.nbytes for a in jax.live_arrays()) - before < 1 << 20


def test_functions_of_equal_code_and_values_compile_once():
  run, traces = counted()
  for factor in (2, 2, 3):
    assert (
      run(as_function((lambda f: lambda x: x * f)(factor)), jnp.ones(2)).tolist() == [factor] * 2
    )
  assert len(traces) == 2
