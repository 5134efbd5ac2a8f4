"""Any function of images as one argument of a compiled function."""

import dataclasses
import functools
import gc
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, struct
from jax.tree_util import Partial, register_dataclass

from rest_jax import attacks
from rest_jax.callables import as_function
from rest_jax.defend.denoise import Denoiser
from rest_jax.defend.protection import protect
from rest_jax.errors import UserError
from rest_jax.recipes import digest


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
  for offset in (1.0, 1.0, 2.0):
    assert run(as_function(Unhashable(offset)), jnp.zeros(2)).tolist() == [offset] * 2
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


class Holder:
  """Holds a number in one of several ways."""

  def __init__(self, held):
    self.held = held

  def __call__(self, x):
    held = self.held
    while not isinstance(held, float | np.number):
      held = held['key'] if isinstance(held, dict) else held[0]
    return x * float(held)

  def again(self, x):
    return self(x)


HELD = {
  'number': float,
  'NumPy scalar': np.float32,
  'list': lambda value: [value],
  'dict': lambda value: {'key': value},
  'nested': lambda value: {'key': [{'key': value}]},
  'integers': lambda value: np.array([int(value)]),
  'many integers': lambda value: np.full(20_000, int(value)),
}
SETTINGS = {'scale': 1.0}
MODELS = {
  'object': lambda holder: holder,
  'bound method': lambda holder: holder.again,
  'closure': lambda holder: lambda x: holder(x),
  'closure of a closure': lambda holder: (lambda inner: lambda x: inner(x))(lambda x: holder(x)),
  'default': lambda holder: lambda x, holder=holder: holder(x),
  'partial': lambda holder: functools.partial(lambda holder, x: holder(x), holder),
  'Partial': lambda holder: Partial(lambda x: holder(x)),
}


@pytest.mark.parametrize('held', HELD)
@pytest.mark.parametrize('form', MODELS)
def test_what_is_changed_in_place_is_another_function(form, held):
  run, traces = counted()
  holder = Holder(HELD[held](1.0))
  model = MODELS[form](holder)
  for value in (1.0, 1.0, -3.0, 0.0, -0.0):  # 0.0 == -0.0
    holder.held = HELD[held](value)
    found = run(as_function(model), jnp.ones(2))
    np.testing.assert_array_equal(found, [value, value])
    if 'integers' not in held:
      assert bool(jnp.signbit(found[0])) == bool(np.signbit(value))
  assert len(traces) <= 4  # the same value twice compiles once


def test_items_of_a_container_that_are_set_are_seen():
  run, _ = counted()
  scales = [1.0]
  for model, place, key in (
    (lambda x: x * SETTINGS['scale'], SETTINGS, 'scale'),
    (lambda x: x * scales[0], scales, 0),
  ):
    for value in (1.0, 2.0, 1.0):
      place[key] = value
      assert run(as_function(model), jnp.ones(2)).tolist() == [value, value]


def test_what_a_function_writes_itself_compiles_it_no_second_time():
  run, traces = counted()
  seen, counts = [], {'calls': 0}

  class Counting:
    def __init__(self):
      self.calls = 0

    def __call__(self, x):
      self.calls += 1
      return x

  def appends(x):
    seen.append(x.shape)
    return x

  def counts_up(x):
    counts['calls'] += 1
    return x

  for model in (Counting(), appends, counts_up):
    traces.clear()
    for _ in range(3):
      run(as_function(model), jnp.ones(2))
    assert len(traces) == 1


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


STEP = 2.0
DIGESTS = """
import functools, types
from jax.tree_util import Partial
from rest_jax import attacks
from rest_jax.recipes import digest

STEP = 2.0


class Mine:
  def __init__(self, rate, seen):
    self.rate, self.seen = rate, seen

  def __call__(self, x):
    return x * self.rate if 'a' in {'a', 'b', 'c', 'd'} else x


def steps(count):
  return lambda x: x * count * STEP


print(digest(Mine(0.1, {'one': 1, 'two': [2]})))
print(digest(steps(3)))
print(digest(functools.partial(steps, count=3)))
print(digest(attacks.bpda(steps(3), steps(4))))
print(digest({'node': Partial(steps(5), {'inside': Partial(steps(6))})}))
"""


def test_a_digest_is_the_same_in_other_processes():
  outs = [
    subprocess.run(
      [sys.executable, '-c', DIGESTS],
      env=os.environ | {'PYTHONHASHSEED': seed},
      capture_output=True,
      text=True,
      check=True,
    ).stdout
    for seed in ('1', '2')
  ]
  assert outs[0] == outs[1] and len(set(outs[0].split())) == 5


@jax.custom_vjp
def straight(x):
  return jnp.round(x)


straight.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))


@jax.custom_vjp
def twice_as_steep(x):
  return jnp.round(x)


twice_as_steep.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (2 * g,))


def test_a_digest_tells_functions_apart_that_differ_in_anything_but_arrays(monkeypatch):
  def power(x, order=2):
    return x**order

  quantise = lambda x: jnp.round(x)  # noqa: E731
  functions = {
    'object': Holder(1.0),
    'attribute': Holder(2.0),
    'nested attribute': Holder([{'key': 2.0}]),
    'method': Holder(1.0).again,
    'partial': functools.partial(power, order=3),
    'other argument': functools.partial(power, order=4),
    'default': lambda x, order=2: x**order,
    'other default': lambda x, order=3: x**order,
    'enclosed': (lambda order: lambda x: x**order)(2),
    'other enclosed': (lambda order: lambda x: x**order)(3),
    'global': lambda x: x * STEP,
    'rounds': quantise,
    'bpda': attacks.bpda(quantise),
    'bpda, other surrogate': attacks.bpda(quantise, power),
    'gradient by hand': straight,
    'other gradient by hand': twice_as_steep,
    'jitted': jax.jit(lambda x: x + 1),
    'jitted, other': jax.jit(lambda x: x + 2),
  }
  found = {name: digest(function) for name, function in functions.items()}
  assert len(set(found.values())) == len(found), found
  assert found == {name: digest(function) for name, function in functions.items()}
  assert digest(as_function(functions['bpda'])) == digest(as_function(attacks.bpda(quantise)))
  monkeypatch.setitem(globals(), 'STEP', 3.0)
  assert digest(functions['global']) != found['global']


@struct.dataclass
class Node:
  weight: jax.Array
  function: Any = struct.field(pytree_node=False)


def test_a_digest_tells_pytrees_apart_by_the_functions_of_their_nodes():
  """A defended model is one, with the user's denoiser in it."""

  def denoising(change):
    return Denoiser('own', jnp.float32(1), *map(Partial, (_same, change, _same)))

  trees = {}
  for name, function in {'round': lambda x, s: jnp.round(x), 'floor': lambda x, s: x // s}.items():
    trees |= {
      f'a dictionary, {name}': {'model': Partial(function)},
      f'deeper, {name}': [0.0, {'model': (Partial(jnp.tanh), [Partial(function)])}],
      f'an argument, {name}': Partial(jnp.tanh, {'model': Partial(function)}),
      f'a field that is no leaf, {name}': Node(jnp.ones(2), function),
      f'a denoiser, {name}': denoising(function),
      f'a defended model, {name}': protect(Partial(Plain(jnp.ones(2))), denoising(function)),
    }
  found = {name: digest(tree) for name, tree in trees.items()}
  assert len(set(found.values())) == len(found), found
  assert digest(Node(jnp.zeros(2), _same)) == digest(Node(jnp.ones(2), _same))


def _same(x, *_):
  return x


def test_a_digest_is_not_one_of_arrays():
  assert digest(Plain(jnp.ones(2))) == digest(Plain(jnp.zeros(2)))
