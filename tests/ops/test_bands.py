"""Radial bands: NumPy's FFT, a partition of unity, Parseval, gains as filters."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest_jax.errors import UserError
from rest_jax.ops import band_energies, bands, inverse2, radial_bands, scale_bands, transform2

sides = st.integers(1, 34)
few = hypothesis.settings(max_examples=3)  # each of these compiles a lot
transforms = st.sampled_from(bands.TRANSFORMS)


def planes(height, width, batch=2, channels=3):
  rng = np.random.default_rng(height * 100 + width)
  return jnp.asarray(rng.normal(size=(batch, height, width, channels)), jnp.float32)


@few
@given(sides, sides)
def test_the_fft_is_numpys(height, width):
  x = planes(height, width)
  z = transform2(x, 'fft')
  np.testing.assert_allclose(z, np.fft.rfft2(x, axes=(1, 2), norm='ortho'), rtol=0, atol=3e-6)
  np.testing.assert_allclose(inverse2(z, 'fft', x.shape), x, rtol=0, atol=1e-6)


@given(sides, sides, st.integers(1, 12), transforms, st.booleans())
def test_a_partition_of_unity(height, width, count, transform, soft):
  masks = radial_bands(height, width, count, transform, soft=soft)
  columns = width if transform == 'dct' else width // 2 + 1
  assert masks.shape == (count, height, columns) and masks.dtype == np.float32
  assert masks.min() >= 0
  np.testing.assert_allclose(masks.sum(0), 1, rtol=0, atol=1.2e-7)
  assert soft or set(np.unique(masks)) <= {0, 1}
  assert masks[0, 0, 0] == 1  # the mean


def test_where_bands_are():
  """Both transforms put the same frequency into the same band; radii by hand."""
  masks = radial_bands(8, 8, 4, 'dct')
  # v = 5/8 along one axis: r = 5/8 / sqrt 2 = 0.44, in the second quarter.
  assert masks[:, 5, 0].tolist() == masks[:, 0, 5].tolist() == [0, 1, 0, 0]
  assert masks[:, 4, 4].tolist() == [0, 0, 1, 0]  # r = 1/2, the border, belongs above
  fft = radial_bands(16, 16, 4, 'fft')
  for u in range(8):
    np.testing.assert_array_equal(fft[:, u, :8], masks[:, u])
  np.testing.assert_array_equal(fft[:, 9:], fft[:, 7:0:-1])  # negative frequencies mirror
  soft = radial_bands(8, 8, 4, 'dct', soft=True)
  assert soft[:, 4, 4].tolist() == [0, 0.5, 0.5, 0]  # halfway between two middles
  assert soft[:, 7, 7].tolist() == [0, 0, 0, 1]


@few
@given(sides, sides, st.integers(1, 9), transforms, st.booleans())
def test_parseval(height, width, count, transform, soft):
  x = planes(height, width)
  found = band_energies(x, count, transform, soft=soft)
  assert found.shape == (2, count, 3)
  np.testing.assert_allclose(found.sum(1), np.square(x).sum((1, 2)), rtol=2e-5)


@few
@given(sides, sides, transforms)
def test_energies_are_those_of_the_filtered_planes(height, width, transform):
  x = planes(height, width)
  one_band = np.eye(4, dtype=np.float32)[:, None, :, None]
  filtered = jax.jit(lambda x, gains: scale_bands(x, gains, transform))
  parts = [filtered(x, gains) for gains in one_band]
  direct = np.stack([np.square(part).sum((1, 2)) for part in parts], axis=1)
  np.testing.assert_allclose(band_energies(x, 4, transform), direct, rtol=1e-3, atol=1e-5)
  np.testing.assert_allclose(sum(parts), x, atol=3e-6)


@few
@given(sides, sides, transforms, st.booleans())
def test_gains(height, width, transform, soft):
  x = planes(height, width)
  ones = jnp.ones((1, 5, 1))
  np.testing.assert_array_equal(scale_bands(x, ones, transform, soft=soft), x)
  np.testing.assert_allclose(scale_bands(x, 0.3 * ones, transform, soft=soft), 0.3 * x, atol=2e-6)


def test_gains_by_image_and_channel():
  x = planes(9, 6)
  gains = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 3, 3)), jnp.float32)
  for transform in bands.TRANSFORMS:
    masks = radial_bands(9, 6, 3, transform)
    factors = np.einsum('khw,bkc->bhwc', masks, gains)
    z = transform2(x, transform)
    expected = inverse2(jnp.asarray(factors * np.asarray(z)), transform, x.shape)
    np.testing.assert_allclose(scale_bands(x, gains, transform), expected, atol=2e-6)


@pytest.mark.parametrize('transform', bands.TRANSFORMS)
def test_gradients(transform):
  """A real gain on each coefficient is a symmetric map: its gradient is itself."""
  x, w = planes(6, 5), planes(5, 6).reshape(2, 6, 5, 3)
  gains = jnp.asarray([[[0.2], [0.9], [0.0]]])
  filtered = lambda v: scale_bands(v, gains, transform)  # noqa: E731
  back = jax.jit(lambda x, w: jax.vjp(filtered, x)[1](w)[0])(x, w)
  np.testing.assert_allclose(back, jax.jit(filtered)(w), atol=2e-6)
  # d/dg_k of half the squares of the result is g_k times the energy of band k.
  grad = jax.jit(jax.grad(lambda g: jnp.square(scale_bands(x, g, transform)).sum() / 2))(gains)
  expected = gains[0, :, 0] * band_energies(x, 3, transform).sum((0, 2))
  np.testing.assert_allclose(grad[0, :, 0], expected, rtol=1e-4, atol=1e-4)


def test_shorter_floats():
  x = planes(8, 8).astype(jnp.bfloat16)
  out = scale_bands(x, jnp.full((1, 2, 1), 0.5), 'dct')
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(out.astype(np.float32), 0.5 * np.asarray(x, np.float32), rtol=1e-2)


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda x: transform2(x, 'dst'), "transform is 'dct' or 'fft', not 'dst'"),
    (lambda x: transform2(x[0], 'fft'), r'takes floats \(B, H, W, C\)'),
    (lambda x: radial_bands(4, 4, 0), 'got 0 of 4x4'),
    (lambda x: scale_bands(x, jnp.ones((3,))), r'gains of .* are \(B or 1, bands, C or 1\)'),
    (lambda x: scale_bands(x, jnp.ones((3, 2, 1))), r'got \(3, 2, 1\)'),
    (lambda x: inverse2(transform2(x, 'fft'), 'fft', (2, 4, 6, 3)), 'not those of images'),
  ],
)
def test_bad_input(call, message):
  with pytest.raises(UserError, match=message) as error:
    call(planes(4, 4))
  assert '\n' not in str(error.value)
