"""Guided backpropagation: the rule at every ReLU of any function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rest_jax import UserError
from rest_jax.explain.guided_backprop import guided_backprop
from rest_jax.explain.guided_relu import guided

RELUS = {
  'jax.nn.relu': jax.nn.relu,
  'maximum': lambda x: jnp.maximum(x, 0),
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
  np.testing.assert_array_equal(guided(network)(x), network(x))


def test_relu6_is_guided_below_its_ceiling():
  x, slopes = jnp.array([-1.0, 2.0, 3.0, 8.0]), jnp.array([1.0, 1.0, -1.0, 1.0])
  gradient = jax.grad(lambda x: jnp.sum(slopes * guided(jax.nn.relu6)(x)))(x)
  assert gradient.tolist() == [0, 1, 0, 0]


def test_custom_derivatives_and_variances_stay():
  @jax.custom_vjp
  def doubled(x):
    return x

  doubled.defvjp(lambda x: (x, None), lambda _, g: (2 * g,))

  def network(x):
    variance = jnp.maximum(0.0, jnp.var(x))
    return doubled(jax.nn.relu(x)) - variance

  x = jnp.array([1.0, 2.0, -3.0])
  got = jax.grad(lambda x: guided(network)(x).sum())(x)
  variance = jax.grad(lambda x: -3 * jnp.var(x))(x)
  np.testing.assert_allclose(got, jnp.array([2.0, 2.0, 0.0]) + variance, rtol=1e-6)


def test_no_relu_is_said():
  def model(x):
    return jax.nn.gelu(x).mean((1, 2))

  with pytest.raises(UserError, match='no ReLU'):
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
