"""The shifted depthwise convolution against XLA's own, in values and gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_jax import ops


@st.composite
def problems(draw):
  """(x, kernel, stride, padding) of a convolution that has an output."""
  kernel_size = draw(st.integers(1, 4))
  padding = draw(st.integers(0, 3))
  low = max(1, kernel_size - 2 * padding)
  height, width = (draw(st.integers(low, 9)) for _ in range(2))
  channels, multiplier = draw(st.integers(1, 3)), draw(st.integers(1, 3))
  rng = np.random.default_rng(draw(st.integers(0, 99)))
  x = rng.normal(size=(draw(st.integers(1, 2)), height, width, channels))
  kernel = rng.normal(size=(kernel_size, kernel_size, 1, channels * multiplier))
  return x, kernel, draw(st.integers(1, 3)), padding


def run(name, x, kernel, stride, padding):
  """Value and both gradients of a form, with a cotangent that is not constant."""
  with ops.use_form(name):

    def convolve(x, kernel):
      return ops.depthwise_conv(x, kernel, stride=stride, padding=padding)

    @jax.jit
    def everything(x, kernel):
      out, vjp = jax.vjp(convolve, x, kernel)
      cotangent = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
      return (out, *vjp(cotangent.astype(out.dtype)))

    return everything(x, kernel)


@given(problems())
def test_fast_form_is_the_plain_form(problem):
  x, kernel, stride, padding = problem
  x, kernel = jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)
  fast, plain = (run(name, x, kernel, stride, padding) for name in ('fast', 'plain'))
  chex.assert_trees_all_equal_shapes_and_dtypes(fast, plain)
  chex.assert_trees_all_close(fast, plain, atol=2e-5, rtol=2e-5)


@settings(max_examples=6)
@given(problems())
def test_bfloat16_is_as_exact_as_its_rounding(problem):
  x, kernel, stride, padding = problem
  x, kernel = jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel, jnp.bfloat16)
  fast = run('fast', x, kernel, stride, padding)
  wide = run('plain', x.astype(jnp.float32), kernel.astype(jnp.float32), stride, padding)
  for got, want in zip(fast, wide, strict=True):
    assert got.dtype == jnp.bfloat16
    # One rounding of the result (2^-9), and one of the cotangent that the exact run did not have.
    limit = 2**-7 * (jnp.abs(want).max() + 1)
    assert jnp.abs(got.astype(jnp.float32) - want).max() <= limit


@pytest.mark.parametrize(('kernel_size', 'stride'), [(9, 8), (5, 4)])
def test_kernels_of_the_papers(kernel_size, stride):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(1, 19, 24, 2)), jnp.float32)
  kernel = jnp.asarray(rng.normal(size=(kernel_size, kernel_size, 1, 2)), jnp.float32)
  fast, plain = (run(name, x, kernel, stride, kernel_size // 2) for name in ('fast', 'plain'))
  chex.assert_trees_all_close(fast, plain, atol=5e-5, rtol=2e-5)


def test_by_hand():
  x = jnp.arange(9.0).reshape(1, 3, 3, 1)
  kernel = jnp.zeros((3, 3, 1, 1)).at[0, 1].set(1.0)  # the pixel above
  out = ops.depthwise_conv(x, kernel, padding=1)
  np.testing.assert_array_equal(out[0, :, :, 0], [[0, 0, 0], [0, 1, 2], [3, 4, 5]])


def test_output_channel_reads_its_group():
  x = jnp.stack([jnp.ones((2, 2)), 10 * jnp.ones((2, 2))], axis=-1)[None]
  out = ops.depthwise_conv(x, jnp.arange(1.0, 5.0).reshape(1, 1, 1, 4))
  np.testing.assert_array_equal(out[0, 0, 0], [1, 2, 30, 40])


@pytest.mark.parametrize('form', ['fast', 'plain'])
def test_vmap_and_jit(form):
  x = jax.random.normal(jax.random.key(0), (3, 2, 5, 5, 2))
  kernel = jax.random.normal(jax.random.key(1), (3, 3, 1, 2))

  def loss(x):
    return jnp.sum(ops.depthwise_conv(x, kernel, stride=2, padding=1) ** 2)

  with ops.use_form(form):
    together = jax.jit(jax.vmap(jax.grad(loss)))(x)
    alone = jax.jit(jax.grad(loss))
    one_by_one = jnp.stack([alone(image) for image in x])
  np.testing.assert_allclose(together, one_by_one, atol=1e-5)


def test_second_derivative_agrees():
  x = jax.random.normal(jax.random.key(0), (1, 4, 4, 2))
  kernel = jax.random.normal(jax.random.key(1), (3, 3, 1, 2))

  def penalty(x, kernel):
    grad = jax.grad(lambda x: jnp.sum(jnp.sin(ops.depthwise_conv(x, kernel, padding=1))))(x)
    return jnp.sum(grad**2)

  results = []
  for form in ('fast', 'plain'):
    with ops.use_form(form):
      # A function of its own: what is compiled knows nothing of the form.
      second = jax.jit(jax.grad(lambda x, k: penalty(x, k), argnums=(0, 1)))
      results.append(second(x, kernel))
  chex.assert_trees_all_close(*results, atol=1e-4)


@pytest.mark.parametrize(
  ('x_shape', 'k_shape', 'match'),
  [
    ((1, 4, 4, 2), (3, 3, 1, 3), 'does not fit 2 channels'),
    ((1, 4, 4, 2), (3, 3, 2, 2), 'does not fit 2 channels'),
    ((1, 2, 4, 2), (3, 3, 1, 2), 'exceeds the image'),
  ],
)
def test_refuses(x_shape, k_shape, match):
  with pytest.raises(ValueError, match=match):
    ops.depthwise_conv(jnp.zeros(x_shape), jnp.zeros(k_shape))


def test_unknown_form():
  with pytest.raises(ValueError, match="'fast' or 'plain'"), ops.use_form('quick'):  # type: ignore[arg-type]
    pass


def test_form_is_restored_after_an_error():
  before = ops.form()
  with pytest.raises(RuntimeError), ops.use_form('plain'):
    raise RuntimeError
  assert ops.form() == before
