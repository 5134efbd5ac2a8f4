"""Wavelets against PyWavelets: values, round trips, energy, both forms, gradients, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import pywt

from rest_jax.errors import UserError
from rest_jax.ops import dwt2, idwt2, wavedec2, wavelets, waverec2

SIZES = [(1, 2), (7, 9), (16, 5)]


def planes(height, width):
  rng = np.random.default_rng(height + width)
  return rng.uniform(size=(2, height, width, 2)).astype(np.float32)


@pytest.fixture(params=['products', 'shifts'])
def form(request, monkeypatch):
  if request.param == 'shifts':
    monkeypatch.setattr(wavelets, 'MATRIX_LIMIT', 0)
  return request.param


@pytest.mark.parametrize('mode', wavelets.MODES)
@pytest.mark.parametrize('wavelet', ['haar', 'db4'])
def test_one_level_is_pywavelets_and_comes_back(form, wavelet, mode):
  sizes = SIZES if form == 'products' else SIZES[:2]
  for size in sizes:
    x = planes(*size)
    approximation, detail = jax.jit(lambda x: dwt2(x, wavelet, mode))(x)
    expected, rest = pywt.dwt2(x, wavelet, mode, axes=(1, 2))
    for ours, theirs in zip((approximation, *detail), (expected, *rest), strict=True):
      np.testing.assert_allclose(ours, theirs, atol=1e-6)
    inverse = jax.jit(lambda a, d, size=size: idwt2(a, d, wavelet, mode, size))
    back = inverse(approximation, detail)
    np.testing.assert_allclose(back, x, atol=1e-6)


@pytest.mark.parametrize('mode', wavelets.MODES)
def test_several_levels_are_pywavelets_and_come_back(mode):
  x = planes(21, 34)
  approximation, details = jax.jit(lambda x: wavedec2(x, 'db2', mode))(x)
  expected, *rest = pywt.wavedec2(x, 'db2', mode, axes=(1, 2))
  assert len(details) == len(rest) == 2
  np.testing.assert_allclose(approximation, expected, atol=2e-6)
  for ours, theirs in zip(details, rest, strict=True):
    for part, other in zip(ours, theirs, strict=True):
      np.testing.assert_allclose(part, other, atol=2e-6)
  inverse = jax.jit(lambda a, d: waverec2(a, d, 'db2', mode, (21, 34)))
  back = inverse(approximation, details)
  np.testing.assert_allclose(back, x, atol=1e-6)


def test_no_level_is_the_image():
  x = jnp.asarray(planes(5, 4))
  approximation, details = wavedec2(x, levels=0)
  assert details == []
  np.testing.assert_array_equal(waverec2(approximation, details, 'haar', 'symmetric', (5, 4)), x)


@pytest.mark.parametrize('wavelet', wavelets.WAVELETS)
def test_filters_and_levels_are_pywavelets(wavelet):
  taps = wavelets._taps(wavelet, 'symmetric')
  np.testing.assert_allclose(taps, pywt.Wavelet(wavelet).rec_lo, atol=1e-14)
  for size in [(1, 1), (6, 7), (7, 8), (31, 224), (300, 300)]:
    assert wavelets.max_level(size, wavelet) == pywt.dwtn_max_level(size, wavelet)


def test_periodization_of_even_sizes_keeps_the_energy():
  x = jnp.asarray(planes(12, 10))
  approximation, detail = dwt2(x, 'db3', 'periodization')
  energy = sum(float(jnp.sum(part**2)) for part in (approximation, *detail))
  np.testing.assert_allclose(energy, float(jnp.sum(x**2)), rtol=1e-6)


def test_the_derivative_is_the_transpose(form):
  x, direction = jnp.asarray(planes(7, 9)), jnp.asarray(planes(9, 7).swapaxes(1, 2))

  @jax.jit
  def diagonal(x):
    return dwt2(x, 'db2')[1].diagonal

  out, back = jax.vjp(diagonal, x)
  _, change = jax.jvp(diagonal, (x,), (direction,))
  np.testing.assert_allclose(change, diagonal(direction), atol=1e-6)
  np.testing.assert_allclose(
    jnp.sum(back(out)[0] * direction), jnp.sum(out * diagonal(direction)), rtol=1e-4
  )


def test_bad_input():
  x = jnp.zeros((1, 4, 4, 1))
  with pytest.raises(UserError, match='unknown wavelet'):
    dwt2(x, 'db5')
  with pytest.raises(UserError, match='unknown wavelet mode'):
    dwt2(x, 'haar', 'zero')
  with pytest.raises(UserError, match='takes floats'):
    dwt2(x[0])
  with pytest.raises(UserError, match='0 or more'):
    wavedec2(x, levels=-1)
  approximation, detail = dwt2(x)
  with pytest.raises(UserError, match='not those of images'):
    idwt2(approximation, detail, 'haar', 'symmetric', (6, 4))
