"""Denoisers against the libraries that define them, within a grey level; JPEG to the bit."""

import io
import math

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
from PIL import Image
from skimage import data, restoration
from skimage.restoration import _denoise as skimage_denoise

from rest_jax.defend.denoise import denoiser, shifts
from rest_jax.ops import resize_bilinear

LEVEL = 1 / 255
HEIGHT, WIDTH = 27, 37


@pytest.fixture(scope='module')
def pixels():
  """A face, uint8 (27, 37, 3)."""
  return np.ascontiguousarray(data.astronaut()[90 : 90 + HEIGHT, 205 : 205 + WIDTH])


@pytest.fixture(scope='module')
def image(pixels):
  """The same with noise, float32 in [0, 1]."""
  noise = np.random.default_rng(0).normal(0, 0.05, pixels.shape)
  return np.clip(pixels / 255 + noise, 0, 1).astype(np.float32)


def ours(name, image, strength=1.0, key=None, **options):
  return np.asarray(denoiser(name, strength, **options)(jnp.asarray(image)[None], key)[0])


def apart(a, b):
  return float(np.abs(np.asarray(a, np.float64) - b).max())


@pytest.mark.parametrize('strength', [0.05, 0.5, 1.0])
def test_gaussian_is_scipys(image, strength):
  expected = scipy.ndimage.gaussian_filter(image, (2 * strength, 2 * strength, 0))
  assert apart(ours('gaussian', image, strength), expected) < 1e-6


def test_gaussian_of_a_picture_smaller_than_its_kernel(image):
  small = image[:3, :2]
  expected = scipy.ndimage.gaussian_filter(small, (4, 4, 0))
  assert apart(ours('gaussian', small, sigma=4.0), expected) < 1e-6


def test_median_is_scipys_and_mixes_between(image):
  three, five = (scipy.ndimage.median_filter(image, (s, s, 1)) for s in (3, 5))
  np.testing.assert_array_equal(ours('median', image, 0.5), three)
  np.testing.assert_array_equal(ours('median', image, 1.0), five)
  np.testing.assert_array_equal(ours('median', image, 1.0, size=3), three)
  assert apart(ours('median', image, 0.25), (image + three) / 2) < 1e-6
  assert apart(ours('median', image, 0.75), (three + five) / 2) < 1e-6


def test_the_medians_gradient_goes_to_the_pixel_that_is_the_median():
  x = jnp.asarray(np.random.default_rng(0).permutation(72).reshape(1, 9, 8, 1), jnp.float32)
  weights = jnp.asarray(np.random.default_rng(1).normal(size=x.shape), jnp.float32)
  gradient = jax.grad(lambda x: jnp.sum(weights * denoiser('median', 1.0)(x)))(x)
  expected, out = np.zeros(72), scipy.ndimage.median_filter(x[0, :, :, 0], 5)
  order = np.argsort(np.asarray(x).ravel())
  np.add.at(expected, order[out.astype(int).ravel()], np.asarray(weights).ravel())
  np.testing.assert_allclose(np.asarray(gradient).ravel(), expected, atol=1e-5)


def mended_table(win_size, sigma, *, dtype=float):
  """Gaussian of the distance from the middle of a window."""
  place = np.arange(win_size) - win_size // 2
  return np.exp(-0.5 * np.add.outer(place**2, place**2) / sigma**2).astype(dtype).ravel()


@pytest.mark.parametrize(('color', 'spatial'), [(0.1, 1.0), (0.05, 1.5)])
def test_bilateral_is_scikit_images_with_its_table_mended(image, monkeypatch, color, spatial):
  # Of an odd window, scikit-image 0.26 makes a table with a row and a column too many (its
  # `-win_size // 2` is one lower than meant), and reads it as if it had not: weights are skewed.
  window = 2 * math.ceil(3 * spatial) + 1
  if skimage_denoise._compute_spatial_lut(window, spatial).size != window**2:
    monkeypatch.setattr(skimage_denoise, '_compute_spatial_lut', mended_table)
  options = {'sigma_color': color, 'sigma_spatial': spatial}
  expected = restoration.denoise_bilateral(image, mode='symmetric', channel_axis=-1, **options)
  # Its table of colour weights has 10000 entries.
  assert apart(ours('bilateral', image, **options), expected) < 0.1 * LEVEL


def test_bilateral_is_opencvs_on_grey(image):
  grey = image[..., :1]
  expected = cv2.bilateralFilter(grey, 7, 0.1, 1.0, borderType=cv2.BORDER_REFLECT)
  # OpenCV's window is a disc: it leaves the corners out, which weigh 1 % and less.
  assert apart(ours('bilateral', grey, sigma_color=0.1)[..., 0], expected) < LEVEL


@pytest.mark.parametrize('h', [0.05, 0.1])
def test_non_local_means_is_scikit_images(image, h):
  expected = restoration.denoise_nl_means(image, 5, 5, h, fast_mode=False, channel_axis=-1)
  off = np.abs(ours('non_local_means', image, h=h) - expected)
  # It leaves distances beyond 5 out only where they are so before the last row of the patch, and
  # approximates the exponential: a few pixels are up to two levels off.
  assert np.mean(off > LEVEL) < 0.01 and off.max() < 2 * LEVEL and off.mean() < 0.15 * LEVEL


def test_total_variation_is_scikit_images(image):
  for strength, weight in ((1.0, 0.2), (0.3, 0.06)):
    expected = restoration.denoise_tv_chambolle(
      image, weight, eps=0, max_num_iter=50, channel_axis=-1
    )
    assert apart(ours('total_variation', image, strength), expected) < 1e-6
  # With few and with its own number of iterations, which it stops early by a rule on the energy.
  expected = restoration.denoise_tv_chambolle(image, 0.1, eps=0, max_num_iter=3, channel_axis=-1)
  assert apart(ours('total_variation', image, weight=0.1, iterations=3), expected) < 1e-6


@pytest.mark.parametrize('sigma', [None, 0.07])
@pytest.mark.parametrize('wavelet', ['haar', 'db2'])
def test_wavelet_is_scikit_images_bayes_shrink(image, wavelet, sigma):
  expected = restoration.denoise_wavelet(
    image,
    sigma=sigma,
    wavelet='db1' if wavelet == 'haar' else wavelet,
    method='BayesShrink',
    mode='soft',
    channel_axis=-1,
    rescale_sigma=True,
  )
  assert apart(ours('wavelet', image, wavelet=wavelet, sigma=sigma), expected) < 0.01 * LEVEL


def pillows(pixels, quality, subsampling):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, 'JPEG', quality=quality, subsampling=subsampling)
  return np.asarray(Image.open(io.BytesIO(file.getvalue())))


@pytest.mark.parametrize('subsampling', ['4:2:0', '4:4:4'])
def test_jpeg_is_pillows_to_the_bit(pixels, subsampling):
  noise = np.random.default_rng(0).integers(0, 256, pixels.shape, np.uint8)
  for picture in (pixels, noise, np.where(noise < 128, np.uint8(0), np.uint8(255))):
    for quality in (1, 10, 50, 75, 95, 99):
      out = ours('jpeg', picture.astype(np.float32) / 255, quality=quality, subsampling=subsampling)
      expected = pillows(picture, quality, subsampling)
      np.testing.assert_array_equal(np.round(out * 255).astype(np.uint8), expected)


def test_jpeg_of_narrow_and_grey_pictures(pixels):
  for part in (pixels[:5, :3], pixels[:9, :5]):
    out = ours('jpeg', part.astype(np.float32) / 255, quality=30)
    np.testing.assert_array_equal(np.round(out * 255).astype(np.uint8), pillows(part, 30, '4:2:0'))
  file = io.BytesIO()
  Image.fromarray(pixels[..., 0]).save(file, 'JPEG', quality=30)
  out = ours('jpeg', pixels[..., :1].astype(np.float32) / 255, quality=30)[..., 0]
  np.testing.assert_array_equal(np.round(out * 255).astype(np.uint8), np.asarray(Image.open(file)))


@pytest.mark.parametrize(
  ('rounding', 'subsampling'), [('straight_through', '4:2:0'), ('cubic', '4:4:4')]
)
def test_jpegs_surrogate_is_near_and_has_a_gradient(pixels, rounding, subsampling):
  x = jnp.asarray(pixels, jnp.float32)[None] / 255
  one = denoiser('jpeg', 0.7, rounding=rounding, subsampling=subsampling)

  @jax.jit
  def run(near, x):
    out, back = jax.vjp(near, x)
    return out, back(2 * out)[0]

  real, (near, gradient) = one(x), run(one.near(), x)
  moved = float(jnp.mean(jnp.abs(real - x)))
  assert float(jnp.mean(jnp.abs(real - near))) < 0.3 * moved
  assert np.isfinite(gradient).all() and float(jnp.abs(gradient).max()) > 0.1
  np.testing.assert_array_equal(run(one.with_strength(0.0).near(), x)[0], x)


@pytest.mark.parametrize(('strength', 'levels'), [(1.0, 4), (0.5, 32), (2 / 3, 16)])
def test_bit_depth_is_rounding_to_equal_levels(image, strength, levels):
  expected = np.round(image.astype(np.float64) * (levels - 1)) / (levels - 1)
  # A pixel on the edge between two levels may go either way.
  off = np.abs(ours('bit_depth', image, strength) - expected)
  assert np.mean(off > 1e-6) < 1e-3
  assert len(np.unique(ours('bit_depth', image, strength).round(5))) <= levels


@pytest.mark.parametrize('transform', ['dct', 'fft'])
def test_filters_are_masks_of_the_spectrum(image, transform):
  if transform == 'dct':
    forward = lambda x: scipy.fft.dctn(x, axes=(0, 1), norm='ortho')  # noqa: E731
    back = lambda z: scipy.fft.idctn(z, axes=(0, 1), norm='ortho')  # noqa: E731
    rows, columns = np.arange(HEIGHT) / HEIGHT, np.arange(WIDTH) / WIDTH
  else:
    forward = lambda x: np.fft.fft2(x, axes=(0, 1))  # noqa: E731
    back = lambda z: np.fft.ifft2(z, axes=(0, 1)).real  # noqa: E731
    rows, columns = 2 * np.abs(np.fft.fftfreq(HEIGHT)), 2 * np.abs(np.fft.fftfreq(WIDTH))
  radius = np.sqrt((rows[:, None] ** 2 + columns**2) / 2)[..., None]
  z = forward(image.astype(np.float64))
  for name, low, high in (
    ('low_pass', 0, 1 - 0.6 * 0.75),
    ('high_pass', 0.6 * 0.25, 1),
    ('band_pass', 0.6 * 0.05, 1 - 0.6 * 0.5),
  ):
    kept = (radius == 0) | ((radius >= low) & (radius <= high))
    out = ours(name, image, 0.6, transform=transform)
    assert apart(out, back(np.where(kept, z, 0))) < 2e-6


@pytest.mark.parametrize('kind', ['hard', 'soft'])
def test_thresholding_of_blocks_is_scipys(image, kind):
  image = image[:24, :32]
  blocks = image.astype(np.float64).reshape(3, 8, 4, 8, 3)
  z = scipy.fft.dctn(blocks, axes=(1, 3), norm='ortho')
  limit = np.full((1, 8, 1, 8, 1), 0.5 * (0.2 if kind == 'hard' else 0.1))
  limit[:, 0, :, 0] = 0
  if kind == 'hard':
    z = np.where(np.abs(z) > limit, z, 0)
  else:
    z = np.sign(z) * np.maximum(np.abs(z) - limit, 0)
  expected = scipy.fft.idctn(z, axes=(1, 3), norm='ortho').reshape(24, 32, 3)
  assert apart(ours(f'dct_{kind}', image, 0.5), expected) < 2e-6


def test_resize_pad_puts_a_shrunk_picture_on_black(image):
  x = jnp.asarray(image)[None] * 0.9 + 0.1  # no black in the picture
  sizes, corners = set(), set()
  one = denoiser('resize_pad', 1.0)
  for seed in range(40):  # one compilation: keys are data
    out = np.asarray(one(x, jax.random.key(seed)))[0]
    rows, columns = (np.flatnonzero(out.any(axis=(axis, 2))) for axis in (1, 0))
    height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    assert round(0.8 * WIDTH) <= width <= WIDTH and height == round(width / WIDTH * HEIGHT)
    expected = resize_bilinear(x, (int(height), int(width)))[0]
    part = out[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    np.testing.assert_allclose(part, expected, atol=2e-6)
    assert np.count_nonzero(out.any(axis=-1)) == height * width
    sizes.add(int(width))
    corners.add((int(rows[0]), int(columns[0])))
  # ceil(0.8 * 37) = 30 to 37: all eight sizes come up, and many places.
  assert sizes == set(range(30, 38)) and len(corners) > 20


def test_both_forms_of_a_convolution_are_one(monkeypatch):
  planes = jnp.asarray(np.random.default_rng(0).random((2, 9, 12)), jnp.float32)
  taps = (0.1, 0.2, 0.4, 0.2, 0.1)
  product = shifts.convolve_planes(planes, taps)
  monkeypatch.setattr(shifts, 'MATRIX_LIMIT', 0)
  np.testing.assert_allclose(product, shifts.convolve_planes(planes, taps), atol=1e-6)
  expected = scipy.ndimage.convolve(planes, np.multiply.outer(taps, taps)[None])[:, 2:-2, 2:-2]
  np.testing.assert_allclose(product, expected, atol=1e-6)
