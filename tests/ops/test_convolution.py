"""The dense convolution's input gradient for small maps against XLA's own."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rest_jax import ops


@given(
  size=st.tuples(st.integers(3, 8), st.integers(3, 8)),
  kernel_size=st.integers(1, 3),
  stride=st.integers(1, 3),
  padding=st.integers(0, 1),
  seed=st.integers(0, 99),
)
def test_fast_form_is_the_plain_form(size, kernel_size, stride, padding, seed):
  rng = np.random.default_rng(seed)
  x = jnp.asarray(rng.normal(size=(2, *size, 3)), jnp.float32)
  kernel = jnp.asarray(rng.normal(size=(kernel_size, kernel_size, 3, 4)), jnp.float32)
  results = []
  for form in ('fast', 'plain'):
    with ops.use_form(form):

      @jax.jit
      def everything(x, kernel):
        out, vjp = jax.vjp(lambda x, k: ops.conv(x, k, stride=stride, padding=padding), x, kernel)
        return (out, *vjp(jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)))

      results.append(everything(x, kernel))
  chex.assert_trees_all_equal_shapes_and_dtypes(*results)
  chex.assert_trees_all_close(*results, atol=3e-5, rtol=3e-5)


def test_bfloat16():
  x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3), jnp.bfloat16)
  kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 4), jnp.bfloat16)
  with ops.use_form('fast'):
    fast = jax.grad(lambda x: jnp.sum(ops.conv(x, kernel, stride=2, padding=1)))(x)
  with ops.use_form('plain'):
    wide = jax.grad(
      lambda x: jnp.sum(ops.conv(x, kernel.astype(jnp.float32), stride=2, padding=1))
    )(x.astype(jnp.float32))
  assert fast.dtype == jnp.bfloat16
  np.testing.assert_allclose(fast.astype(jnp.float32), wide, atol=0.1)


def test_large_maps_take_the_plain_path():
  x, kernel = jnp.ones((1, 9, 9, 1)), jnp.ones((1, 1, 1, 1))
  with ops.use_form('fast'):
    text = str(jax.make_jaxpr(ops.conv)(x, kernel))
  assert 'custom_vjp' not in text
