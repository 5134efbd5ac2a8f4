"""Any function of images as one argument of a compiled function."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial, register_dataclass

from rest_jax import UserError
from rest_jax.callables import as_function


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
