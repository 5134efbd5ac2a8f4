"""The dense convolution's input gradient for small maps against XLA's own."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_jax import ops
from rest_jax.ops import canonical
from rest_jax.ops.canonical import Window, canonical_conv


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
    fast = jax.jit(jax.grad(lambda x: jnp.sum(ops.conv(x, kernel, stride=2, padding=1))))(x)
  with ops.use_form('plain'):
    wide = jax.jit(
      jax.grad(lambda x: jnp.sum(ops.conv(x, kernel.astype(jnp.float32), stride=2, padding=1)))
    )(x.astype(jnp.float32))
  assert fast.dtype == jnp.bfloat16
  np.testing.assert_allclose(fast.astype(jnp.float32), wide, atol=0.1)


@settings(max_examples=8, deadline=None)
@given(
  size=st.integers(9, 12),
  kernel_size=st.integers(1, 4),
  stride=st.integers(1, 3),
  padding=st.integers(0, 2),
  seed=st.integers(0, 99),
)
def test_large_maps_too(size, kernel_size, stride, padding, seed):
  test_fast_form_is_the_plain_form.hypothesis.inner_test(
    (size, 17), kernel_size, stride, padding, seed
  )


@settings(max_examples=8, deadline=None)
@given(
  dims=st.integers(1, 3),
  strides=st.lists(st.integers(1, 3), min_size=3, max_size=3),
  padding=st.lists(st.tuples(st.integers(-1, 2), st.integers(0, 2)), min_size=3, max_size=3),
  lhs_dilation=st.lists(st.integers(1, 2), min_size=3, max_size=3),
  rhs_dilation=st.lists(st.integers(1, 2), min_size=3, max_size=3),
  seed=st.integers(0, 99),
)
def test_canonical_is_laxs_for_any_window(dims, strides, padding, lhs_dilation, rhs_dilation, seed):
  rng = np.random.default_rng(seed)
  x = jnp.asarray(rng.normal(size=(2, *rng.integers(5, 8, dims), 3)), jnp.float32)
  kernel = jnp.asarray(rng.normal(size=(*rng.integers(1, 4, dims), 3, 4)), jnp.float32)
  cut = [tuple(values[:dims]) for values in (strides, padding, lhs_dilation, rhs_dilation)]
  spatial = 'HWD'[:dims]

  def plain(x, kernel):
    names = (f'N{spatial}C', f'{spatial}IO', f'N{spatial}C')
    return jax.lax.conv_general_dilated(
      x, kernel, *cut[:2], lhs_dilation=cut[2], rhs_dilation=cut[3], dimension_numbers=names
    )

  results = []
  for conv in (plain, lambda x, k: canonical_conv(x, k, Window(*cut))):

    @jax.jit
    def everything(x, kernel, conv=conv):
      out, vjp = jax.vjp(conv, x, kernel)
      return (out, *vjp(jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)))

    results.append(everything(x, kernel))
  chex.assert_trees_all_equal_shapes_and_dtypes(*results)
  chex.assert_trees_all_close(*results, atol=3e-5, rtol=3e-5)


@pytest.mark.parametrize(
  ('channels', 'kernel_size', 'padding', 'block'),
  [
    ((3, 16), (3, 3), ((1, 1), (1, 1)), (2, 2)),
    ((16, 16), (3, 2), ((1, 1), (0, 1)), (1, 2)),
    ((16, 3), (2, 5), ((0, 1), (3, 1)), (2, 2)),
    ((4, 4), (3, 3), ((0, 0), (1, 1)), (2, 2)),
    ((4, 4), (3, 3), ((1, 1), (1, 0)), (1, 1)),  # an odd number of outputs
    ((32, 3), (3, 3), ((1, 1), (1, 1)), (1, 1)),
    ((4, 4), (1, 1), ((0, 0), (0, 0)), (1, 1)),
  ],
)
def test_of_few_channels_several_outputs_are_computed_at_once(
  channels, kernel_size, padding, block
):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, 6, 8, channels[0])), jnp.float32)
  kernel = jnp.asarray(rng.normal(size=(*kernel_size, *channels)), jnp.float32)
  window = Window((1, 1), padding, (1, 1), (1, 1))
  assert canonical._block(x, kernel, window) == block
  results = []
  for conv in (canonical_conv, canonical._plain):

    @jax.jit
    def everything(x, kernel, conv=conv):
      out, vjp = jax.vjp(lambda x, k: conv(x, k, window), x, kernel)
      return (out, *vjp(jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)))

    results.append(everything(x, kernel))
  chex.assert_trees_all_close(*results, atol=3e-5, rtol=3e-5)


def test_the_gradient_in_a_loop_has_the_layout_that_xla_is_fast_with():
  x, kernel = jnp.ones((2, 12, 12, 3)), jnp.ones((3, 3, 3, 4))

  def loss(x, kernel):
    return jnp.sum(ops.conv(x, kernel, stride=2, padding=1) ** 2)

  def loop(x, kernel):
    return jax.lax.fori_loop(0, 3, lambda _, x: x - jax.grad(loss)(x, kernel), x)

  with ops.use_form('fast'):
    text = jax.jit(loop).lower(x, kernel).compile().as_text()
  layouts = set(re.findall(r'dim_labels=(\S+?),', text))
  assert layouts == {'b01f_01io->b01f'}
