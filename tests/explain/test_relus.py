"""Guided backpropagation: the rule at every ReLU of any function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from rest_jax import UserError
from rest_jax.explain.gradients import guided_backprop
from rest_jax.explain.relus import guided

RELUS = {
  'jax.nn.relu': jax.nn.relu,
  'maximum': lambda x: jnp.maximum(x, 0),
  'maximum, zero first': lambda x: jnp.maximum(0, x),
  'where': lambda x: jnp.where(x > 0, x, 0),
  'where, not negative': lambda x: jnp.where(x >= 0, x, jnp.zeros_like(x)),
  'where, turned round': lambda x: jnp.where(x <= 0, 0.0, x),
  'where, zero first': lambda x: jnp.where(x > 0, x, 0),
  'where not': lambda x: jnp.where(~(x > 0), 0, x),
  'where of a jitted mask': lambda x: jnp.where(jax.jit(lambda x: x > 0)(x), x, 0),
  'select': lambda x: jax.lax.select(x > 0, x, jnp.zeros_like(x)),
  'times its mask': lambda x: x * (x > 0).astype(x.dtype),
  'clip': lambda x: jnp.clip(x, 0, None),
  'clip, both ends': lambda x: jnp.clip(x, 0, 1e6),
  'clamp': lambda x: jax.lax.clamp(0.0, x, 1e6),
  'relu6': lambda x: 1e6 * jax.nn.relu6(x / 1e6),
  'zeros_like': lambda x: jnp.maximum(x, jnp.zeros_like(x)),
  'jit': jax.jit(jax.nn.relu),
  'checkpoint': jax.checkpoint(jax.nn.relu),
  'scan': lambda x: jax.lax.scan(lambda c, w: (jax.nn.relu(c) * w, None), x, jnp.ones(1))[0],
  'cond': lambda x: jax.lax.cond(jnp.sum(x) < 1e9, jax.nn.relu, lambda x: x, x),
}


def by_hand(weights, x):
  """Gradient of sum(w2 relu(w1 x)) with the rule, layer by layer."""
  w1, w2 = weights
  hidden = x @ w1
  above = np.broadcast_to(w2.sum(1), hidden.shape)
  return np.where((hidden > 0) & (above > 0), above, 0) @ w1.T


@pytest.fixture
def weights():
  rng = np.random.default_rng(0)
  return rng.normal(size=(5, 7)).astype(np.float32), rng.normal(size=(7, 3)).astype(np.float32)


@pytest.mark.parametrize('name', RELUS)
def test_rule_wherever_the_relu_stands(name, weights):
  x = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)

  def network(x):
    return RELUS[name](x @ weights[0]) @ weights[1]

  got = jax.grad(lambda x: guided(network)(x).sum())(x)
  np.testing.assert_allclose(got, by_hand(weights, x), rtol=1e-5, atol=1e-5)
  plain = jax.grad(lambda x: network(x).sum())(x)
  assert np.abs(got - plain).max() > 0.1
  # One program and several: their sums are rounded differently, on some processors.
  np.testing.assert_allclose(guided(network)(x), network(x), rtol=1e-6, atol=1e-6)


def test_relu6_is_guided_below_its_ceiling():
  x, slopes = jnp.array([-1.0, 2.0, 3.0, 8.0]), jnp.array([1.0, 1.0, -1.0, 1.0])
  gradient = jax.grad(lambda x: jnp.sum(slopes * guided(jax.nn.relu6)(x)))(x)
  assert gradient.tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize('norm', [nn.LayerNorm, lambda: nn.GroupNorm(2), nn.RMSNorm])
def test_the_variance_of_a_norm_is_no_relu(norm):
  x = jax.random.normal(jax.random.key(0), (2, 3, 3, 4))
  variables = norm().init(jax.random.key(1), x)

  def model(x):
    return jax.nn.gelu(norm().apply(variables, x)).mean((1, 2))

  with pytest.raises(UserError, match='no ReLU is seen'):
    guided(model)(x)


NO_RELUS = {
  'leaky': lambda x: jnp.where(x > 0, x, 0.1 * x),
  'elu': jax.nn.elu,
  'mask of another value': lambda x: jnp.where(x[::-1] > 0, x, 0),
  'the negative part': lambda x: jnp.where(x > 0, 0, x),
  'a softmax': jax.nn.softmax,
  'the larger of two': lambda x: jnp.maximum(x, x[::-1]),
  'a floor': lambda x: jnp.maximum(x, 1e-6),
}


@pytest.mark.parametrize('name', NO_RELUS)
def test_what_is_no_relu(name):
  with pytest.raises(UserError, match='no ReLU is seen'):
    guided(NO_RELUS[name])(jnp.arange(-2.0, 2.0))


def test_custom_derivatives_and_variances_stay():
  @jax.custom_vjp
  def doubled(x):
    return x

  doubled.defvjp(lambda x: (x, None), lambda _, g: (2 * g,))

  def network(x):
    root = jnp.sqrt(jnp.maximum(0.0, jnp.var(x)) + 1e-5)
    return doubled(jax.nn.relu(x)) - root

  x = jnp.array([1.0, 2.0, -3.0])
  got = jax.grad(lambda x: guided(network)(x).sum())(x)
  root = jax.grad(lambda x: -3 * jnp.sqrt(jnp.var(x) + 1e-5))(x)
  np.testing.assert_allclose(got, jnp.array([2.0, 2.0, 0.0]) + root, rtol=1e-6)


def test_no_relu_is_said():
  def model(x):
    return jax.nn.gelu(x).mean((1, 2))

  with pytest.raises(UserError, match='no ReLU is seen'):
    guided_backprop(model, jnp.ones((1, 4, 4, 3)))


def test_relu_in_a_while_loop_is_said():
  def network(x):
    return jax.lax.while_loop(lambda x: jnp.sum(x) < 0, jax.nn.relu, x)

  with pytest.raises(UserError, match='inside while'):
    guided(network)(jnp.ones(3))


def test_maps_of_a_convolutional_network(weights):
  x = np.random.default_rng(2).uniform(size=(3, 4, 4, 5)).astype(np.float32)

  def model(images):
    return jnp.mean(jax.nn.relu(images @ weights[0]), (1, 2)) @ weights[1]

  targets = np.asarray(model(x)).argmax(1)
  want = []
  for image, target in zip(x, targets, strict=True):
    above = np.broadcast_to(weights[1][:, target] / 16, (4, 4, 7))
    hidden = image @ weights[0]
    gradient = np.abs(np.where((hidden > 0) & (above > 0), above, 0) @ weights[0].T).max(-1)
    want.append((gradient - gradient.min()) / (gradient.max() - gradient.min()))
  for batch in (2, 64):
    got = guided_backprop(model, x, query_batch=batch)
    np.testing.assert_allclose(got, want, atol=1e-5)
