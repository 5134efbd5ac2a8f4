"""The DCT against SciPy's: values, round trips, energy, both forms, blocks, gradients."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
from hypothesis import given
from hypothesis import strategies as st

from rest_jax.errors import UserError
from rest_jax.ops import block_dct2, block_idct2, dct, dct2, idct2


def planes(height, width, seed=0, batch=2, channels=3):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.uniform(size=(batch, height, width, channels)), jnp.float32)


def reference(x):
  return np.asarray(scipy.fft.dctn(np.asarray(x, np.float64), axes=(1, 2), norm='ortho'))


def both_ways(x):
  z = dct2(x)
  return z, idct2(z)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 9))
def test_scipy_and_round_trip(height, width, seed):
  x = planes(height, width, seed)
  z, back = both_ways(x)
  expected = reference(x)
  assert z.dtype == jnp.float32
  np.testing.assert_allclose(z, expected, rtol=1e-5, atol=3e-6)
  np.testing.assert_allclose(back, x, rtol=0, atol=1e-6)
  energy = np.square(np.asarray(x, np.float64)).sum((1, 2))
  np.testing.assert_allclose(np.square(z).sum((1, 2)), energy, rtol=1e-5)


@pytest.mark.parametrize('size', [(129, 5), (255, 256)])
def test_long_axes_go_through_the_fft(size):
  assert max(size) > dct.MATRIX_LIMIT
  x = planes(*size, batch=1)
  z, back = jax.jit(both_ways)(x)
  expected = reference(x)
  # The mean's coefficient is over 100: its last bit is worth 8e-6.
  np.testing.assert_allclose(z, expected, rtol=2e-7, atol=1e-5)
  np.testing.assert_allclose(back, x, rtol=0, atol=1e-6)


@pytest.mark.parametrize(('n', 'axis'), [(1, 1), (2, 2), (9, 1), (16, 2)])
def test_both_forms_agree(n, axis):
  x = planes(n, n, n)
  matrix = dct.dct_matrix(n)
  np.testing.assert_allclose(matrix @ matrix.T, np.eye(n), atol=1e-13)
  z = dct._product(matrix, x, axis)
  forms = jax.jit(lambda x, z: (dct._dct_by_fft(x, axis), dct._idct_by_fft(z, axis)))
  np.testing.assert_allclose(forms(x, z)[0], z, rtol=0, atol=3e-6)
  np.testing.assert_allclose(forms(x, z)[1], x, rtol=0, atol=1e-6)


@pytest.mark.parametrize('size', [(7, 131)])
def test_the_gradient_is_the_inverse(size):
  """Of an orthonormal map: <grad, v> = <w, T v> with T^T = T^-1; in forward mode T itself."""
  x, w = planes(*size), planes(*size, seed=1)

  @jax.jit
  def derivatives(x, w):
    back = (jax.vjp(function, x)[1](w)[0] for function in (dct2, idct2))
    return *back, jax.jvp(dct2, (x,), (w,))[1], dct2(w), idct2(w)

  of_dct, of_idct, forward, there, inverse = derivatives(x, w)
  np.testing.assert_allclose(of_dct, inverse, atol=2e-6)
  np.testing.assert_allclose(of_idct, there, atol=5e-6)
  np.testing.assert_allclose(forward, there, atol=5e-6)


@hypothesis.settings(max_examples=6)
@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 3, 8]))
def test_blocks(height, width, size):
  x = planes(height, width)
  z = block_dct2(x, size)
  rows, columns = -(-height // size), -(-width // size)
  assert z.shape == (2, rows, columns, size, size, 3)
  filled = np.pad(
    np.asarray(x), ((0, 0), (0, -height % size), (0, -width % size), (0, 0)), mode='edge'
  )
  expected = reference(filled[:, -size:, -size:])
  np.testing.assert_allclose(z[:, -1, -1], expected, rtol=1e-5, atol=2e-6)
  np.testing.assert_allclose(block_idct2(z, size, x.shape), x, rtol=0, atol=1e-6)


def test_shorter_floats_are_computed_in_float32():
  x = planes(5, 4).astype(jnp.bfloat16)
  for transform in (dct2, idct2):
    np.testing.assert_array_equal(transform(x), transform(x.astype(jnp.float32)))


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda x: dct2(x[0]), r'dct2 takes floats \(B, H, W, C\).*float32 \(4, 4, 3\)'),
    (lambda x: idct2(x.astype(jnp.uint8)), 'idct2 takes floats .*uint8'),
    (lambda x: dct2(x[:, :0]), 'no axis empty'),
    (lambda x: block_dct2(x, 0), 'not 0'),
    (lambda x: block_idct2(block_dct2(x, 4), 4, (2, 5, 4, 3)), r'not those of images \(2, 5, 4'),
  ],
)
def test_bad_input(call, message):
  with pytest.raises(UserError, match=message) as error:
    call(planes(4, 4))
  assert '\n' not in str(error.value)
