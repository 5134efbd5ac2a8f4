"""The order of a map's pixels: by saliency, ties without a pattern and the same everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest_jax import UserError
from rest_jax.explain.figures import insertion_frames
from rest_jax.explain.metrics import pointing_game
from rest_jax.explain.metrics.order import mixed_pixels, ranks


@given(st.integers(0, 999), st.integers(1, 5), st.integers(1, 9), st.integers(1, 7))
def test_higher_goes_first_and_ties_by_one_permutation(seed, levels, height, width):
  maps = np.random.default_rng(seed).integers(0, levels, (2, height, width)) - 1.0
  got = ranks(maps)
  assert got.dtype == np.int32
  tie = np.empty(height * width, int)
  tie[mixed_pixels(height * width)] = np.arange(height * width)
  for one, places in zip(maps.reshape(2, -1), got.reshape(2, -1), strict=True):
    expected = sorted(range(len(one)), key=lambda i: (-one[i], tie[i]))
    assert np.argsort(places).tolist() == expected


def test_the_order_is_that_of_exact_integers():
  """Python's own, so that no processor and no library has a say."""

  def mixed(number):
    mask = 2**64 - 1
    z = number * 0x9E3779B97F4A7C15 & mask
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
    return z ^ (z >> 31)

  assert mixed_pixels(300).tolist() == sorted(range(300), key=lambda i: mixed(i + 1))


def test_ties_are_spread_over_the_picture():
  """Of a constant map the first half of the pixels is half of every part."""
  first = ranks(np.zeros((1, 64, 64)))[0] < 2048
  for part in (first[:32], first[32:], first[:, :32], first[:, 32:], first[::2], first[:, ::2]):
    assert abs(part.mean() - 0.5) < 0.05
  runs = np.abs(np.diff(first.ravel().astype(int))).mean()  # how often neighbours differ
  assert 0.45 < runs < 0.55


@pytest.mark.parametrize('dtype', [np.float32, np.float64, np.uint8, np.int64, bool, np.float16])
def test_any_kind_of_number(dtype):
  maps = np.array([[[0, 1, 0], [1, 1, 0]]]).astype(dtype)
  first = ranks(maps)[0] < 3
  np.testing.assert_array_equal(first, maps[0].astype(bool))


def test_minus_zero_is_zero_and_jit_makes_no_difference():
  maps = np.zeros((2, 5, 6), np.float32)
  maps[1] = -maps[0]
  maps[:, 2, 3] = 1
  got = ranks(maps)
  np.testing.assert_array_equal(got[0], got[1])
  np.testing.assert_array_equal(jax.jit(ranks)(jnp.asarray(maps)), got)


def test_the_animation_goes_in_the_same_order():
  pixels, maps = np.ones((4, 5, 3), np.float32), np.zeros((4, 5))
  frames = insertion_frames(pixels, 0 * pixels, maps, 7)
  shown = [np.asarray(frame)[..., 0] > 0 for frame in frames]
  places = ranks(maps[None])[0]
  for n, now in enumerate(shown):
    np.testing.assert_array_equal(now, places < 7 * n)


def test_not_finite_has_no_order():
  for bad in (np.nan, np.inf):
    with pytest.raises(UserError, match='map 1 is not finite'):
      ranks(np.array([0, bad]).reshape(2, 1, 1))


def test_pointing_at_one_of_several_maxima_has_no_favourite_place():
  """One of two maxima lies on the object: over many places half of them hit."""
  rng = np.random.default_rng(0)
  maps, masks = np.zeros((400, 16, 16)), np.zeros((400, 16, 16), bool)
  for plane, mask in zip(maps, masks, strict=True):
    places = rng.choice(256, 2, replace=False)
    plane.ravel()[places] = 1
    mask.ravel()[places.min()] = True  # the one that comes first in reading order
  assert 0.4 < pointing_game(maps, masks, tolerance=0).mean() < 0.6
