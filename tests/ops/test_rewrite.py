"""Strangers' functions with our convolutions: the same values and gradients, in quick forms."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from rest_jax import ops
from rest_jax.attacks import queries
from rest_jax.callables import as_function
from rest_jax.ops.rewrite import fast_convolutions

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(2, 9, 11, 4)), jnp.float32)
W = jnp.asarray(RNG.normal(size=(3, 3, 4, 4)) * 0.3, jnp.float32)
NHWC = ('NHWC', 'HWIO', 'NHWC')


def same(x, w=W, strides=(1, 1)):
  return lax.conv_general_dilated(x, w, strides, 'SAME', dimension_numbers=NHWC)


def nchw(x):
  y = lax.conv_general_dilated(
    x.transpose(0, 3, 1, 2), W.transpose(3, 2, 0, 1), (2, 1), [(0, 1), (2, 0)]
  )
  return y.transpose(0, 2, 3, 1)


def scanned(x):
  return lax.scan(lambda c, w: (nn.relu(same(c, w)), None), x, jnp.stack([W, W * 0.5]))[0]


def looped(x):
  return lax.fori_loop(0, 2, lambda _, c: jnp.tanh(same(c)), x)


def branched(x):
  return lax.cond(jnp.sum(x) > 1e6, lambda c: c, lambda c: same(c), x)


def depthwise(x):
  w = W[:, :, :1]
  return lax.conv_general_dilated(
    x, w, (2, 2), 'SAME', dimension_numbers=NHWC, feature_group_count=4
  )


def grouped(x):
  return lax.conv_general_dilated(
    x, W[:, :, :2], (1, 1), 'SAME', dimension_numbers=NHWC, feature_group_count=2
  )


def dilated(x):
  return lax.conv_general_dilated(
    x, W, (1, 1), [(1, 0), (0, 2)], lhs_dilation=(2, 2), rhs_dilation=(1, 2), dimension_numbers=NHWC
  )


def one_dimensional(x):
  return lax.conv_general_dilated(
    x[:, :, 0], W[0], (2,), 'SAME', dimension_numbers=('NWC', 'WIO', 'NWC')
  )


class Block(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Conv(4, (3, 3), strides=2)(nn.silu(nn.GroupNorm(2)(x)))


def linen(x):
  block = nn.remat(Block)()
  variables = block.init(jax.random.key(0), x)
  return block.apply(variables, x)


CASES = (
  same, nchw, scanned, branched, depthwise, grouped, dilated, one_dimensional, linen,
  jax.jit(same), jax.checkpoint(same), lambda x: jax.vmap(lambda y: same(y[None])[0])(x),
)  # fmt: skip


@pytest.mark.parametrize('function', CASES)
def test_values_and_gradients_stay(function):
  results = []
  with ops.use_form('fast'):
    for f in (function, fast_convolutions(function)):

      @jax.jit
      def both(x, f=f):
        out, vjp = jax.vjp(f, x)
        return out, vjp(jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape))[0]

      results.append(both(X))
  chex.assert_trees_all_equal_shapes_and_dtypes(*results)
  chex.assert_trees_all_close(*results, atol=2e-5, rtol=2e-5)


def test_a_loop_that_only_goes_forward():
  with ops.use_form('fast'):
    found = jax.jit(fast_convolutions(looped))(X)
  np.testing.assert_allclose(found, jax.jit(looped)(X), atol=1e-5)


def test_trees_and_what_is_no_array_pass_through():
  def function(batch, scale, *, flip):
    out = same(batch['x']) * scale
    return {'out': jnp.flip(out, 1) if flip else out, 'n': 3}

  with ops.use_form('fast'):
    found = fast_convolutions(function)({'x': X}, 2.0, flip=True)
  np.testing.assert_allclose(found['out'], jnp.flip(same(X) * 2, 1), atol=1e-5)
  assert found['n'] == 3


@pytest.mark.parametrize('function', [same, nchw, depthwise])
def test_no_convolution_in_a_loop_has_a_slow_layout(function):
  def loop(x):
    gradient = jax.grad(lambda x: jnp.sum(fast_convolutions(function)(x) ** 2))
    return lax.fori_loop(0, 2, lambda _, x: x - gradient(x), x)

  with ops.use_form('fast'):
    text = jax.jit(loop).lower(X).compile().as_text()
  assert set(re.findall(r'dim_labels=(\S+?),', text)) <= {'b01f_01io->b01f'}


def test_on_an_accelerator_it_is_the_function_itself():
  with ops.use_form('plain'):
    text = str(jax.make_jaxpr(fast_convolutions(same))(X))
  assert 'custom_vjp' not in text


def test_attacks_ask_a_strangers_model_so():
  def model(x):
    return jnp.mean(same(x), (1, 2))

  def loop(x):
    ce = lambda logits: -jax.nn.log_softmax(logits)[:, 0]  # noqa: E731
    step = lambda _, x: x + queries.ask(as_function(model), x, ce).gradient  # noqa: E731
    return lax.fori_loop(0, 2, step, x)

  with ops.use_form('fast'):
    text = jax.jit(loop).lower(X).compile().as_text()
  assert set(re.findall(r'dim_labels=(\S+?),', text)) == {'b01f_01io->b01f'}
