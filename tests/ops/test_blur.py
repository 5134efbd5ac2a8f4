"""Gaussian blur and bilinear resizing against the authors' values and NumPy's plain forms."""

from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rest_jax import UserError, ops

GOLDEN = Path(__file__).parents[1] / 'golden' / 'groupcam_small_cnn.npz'


def test_blur_of_the_authors_code():
  with np.load(GOLDEN) as golden:
    images, blurred = (golden[name].transpose(0, 2, 3, 1) for name in ('input', 'blurred'))
  np.testing.assert_allclose(ops.gaussian_blur(jnp.asarray(images), 51, 50.0), blurred, atol=1e-6)


def plain_blur(image, size, sigma):
  """Pads and slides the kernel along both axes of (H, W), in float64."""
  taps = np.exp(-0.5 * ((np.arange(size) - size // 2) / sigma) ** 2)
  taps /= taps.sum()
  for axis in (0, 1):
    pad = [(0, 0), (0, 0)]
    pad[axis] = (size // 2, size // 2)
    padded = np.pad(image, pad, mode='reflect')
    image = np.apply_along_axis(lambda row: np.convolve(row, taps, 'valid'), axis, padded)
  return image


@hypothesis.given(
  shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
  size=st.sampled_from([1, 3, 7, 51]),
  sigma=st.floats(0.3, 60),
)
def test_blur_is_numpys_also_where_the_kernel_is_larger_than_the_image(shape, size, sigma):
  image = np.random.default_rng(0).normal(size=shape)
  ours = ops.gaussian_blur(jnp.asarray(image[None, ..., None], jnp.float32), size, sigma)
  np.testing.assert_allclose(ours[0, ..., 0], plain_blur(image, size, sigma), atol=2e-6)


def test_blur_commutes_with_normalisation():
  images = jax.random.uniform(jax.random.key(0), (1, 20, 30, 3))
  normalised = ops.gaussian_blur(images * 4 - 1.5)
  np.testing.assert_allclose(ops.gaussian_blur(images) * 4 - 1.5, normalised, atol=2e-6)


@pytest.mark.parametrize('size, sigma', [(4, 1.0), (0, 1.0), (3, 0.0), (3, float('nan'))])
def test_bad_kernels(size, sigma):
  with pytest.raises(UserError, match='odd size and a positive sigma'):
    ops.gaussian_blur(jnp.zeros((1, 4, 4, 1)), size, sigma)


def test_blur_wants_a_batch():
  with pytest.raises(UserError, match=r'\(4, 4, 1\)'):
    ops.gaussian_blur(jnp.zeros((4, 4, 1)))


@hypothesis.given(st.tuples(*[st.integers(1, 12)] * 4))
def test_resize_is_linear_interpolation_between_half_pixel_centres(sizes):
  h, w, height, width = sizes
  x = np.random.default_rng(1).normal(size=(h, w))
  ours = ops.resize_bilinear(jnp.asarray(x[None, ..., None], jnp.float32), (height, width))

  def along(values, n):  # np.interp stays at the border value beyond the outermost centres
    places = (np.arange(n) + 0.5) / n
    return np.interp(places, (np.arange(len(values)) + 0.5) / len(values), values)

  rows = np.apply_along_axis(along, 0, x, height)
  np.testing.assert_allclose(ours[0, ..., 0], np.apply_along_axis(along, 1, rows, width), atol=1e-5)


def test_resize_keeps_the_dtype_and_refuses_nothing_of_a_size():
  assert ops.resize_bilinear(jnp.ones((1, 2, 2, 1), jnp.bfloat16), (3, 3)).dtype == jnp.bfloat16
  with pytest.raises(UserError, match='positive'):
    ops.resize_bilinear(jnp.ones((1, 2, 2, 1)), (0, 3))
