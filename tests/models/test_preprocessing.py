"""From pictures of any size and mode to the array a classifier was evaluated on."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rest_jax.errors import UserError
from rest_jax.models.predictions import preprocess, to_rgb

EIGHT_BITS = ('L', 'LA', 'RGB', 'RGBA', 'RGBX', 'CMYK', 'YCbCr', 'HSV', 'LAB')
DITHERED = ('1', 'P')
WIDE = ('I', 'I;16', 'I;16B')


def picture(width, height, seed=0):
  pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
  return Image.fromarray(pixels)


@settings(max_examples=60)
@given(
  width=st.integers(1, 200),
  height=st.integers(1, 200),
  mode=st.sampled_from((*EIGHT_BITS, *DITHERED, *WIDE)),
  size=st.integers(1, 40),
  resize=st.sampled_from(['squash', 'resize_crop']),
  crop_pct=st.floats(0.3, 1),
  interpolation=st.sampled_from(['bicubic', 'bilinear']),
)
def test_any_picture_becomes_a_batch_of_one(width, height, mode, size, **options):
  image = Image.new('RGB', (width, height), (128, 128, 128))
  image = (
    Image.new('I', (width, height), 30000).convert(mode) if mode in WIDE else (image.convert(mode))
  )
  out = preprocess(image, size=size, **options)
  assert out.shape == (1, size, size, 3) and out.dtype == np.float32
  assert out.min() >= 0 and out.max() <= 1
  # A picture of one colour keeps it, whatever the filter.
  assert mode in DITHERED or np.ptp(out.reshape(-1, 3), axis=0).max() <= 1 / 255 + 1e-6


@pytest.mark.parametrize('mode, plain', [('La', 'LA'), ('RGBa', 'RGBA'), ('PA', 'P')])
def test_a_mode_that_pillow_converts_by_another_is_read(mode, plain):
  image = picture(9, 7).convert(plain)
  np.testing.assert_array_equal(to_rgb(image.convert(mode)), to_rgb(image))


def test_right_size_is_left_alone():
  image = picture(24, 24)
  for resize in ('squash', 'resize_crop'):
    out = preprocess(image, size=24, resize=resize, crop_pct=1.0)
    np.testing.assert_array_equal(out[0], np.asarray(image, np.float32) / np.float32(255))


@pytest.mark.parametrize('width, height', [(300, 200), (201, 333), (256, 256), (64, 50)])
def test_resize_crop_is_the_papers(width, height):
  """Shorter side to 256 for 224 at 0.875, the longer one rounded down, then the centre."""
  image = picture(width, height)
  shorter = min(width, height)
  whole = image.resize(
    (int(256 * width / shorter), int(256 * height / shorter)), Image.Resampling.BICUBIC
  )
  left, top = round((whole.width - 224) / 2), round((whole.height - 224) / 2)
  expected = np.asarray(whole, np.float32)[top : top + 224, left : left + 224] / np.float32(255)
  out = preprocess(image, size=224, resize='resize_crop', crop_pct=0.875)
  np.testing.assert_array_equal(out[0], expected)


def test_squash_keeps_the_border():
  pixels = np.zeros((60, 90, 3), np.uint8)
  pixels[:, :30] = 255
  out = preprocess(pixels, size=30, resize='squash', interpolation='bilinear')[0]
  np.testing.assert_array_equal(out[:, :9], 1)
  np.testing.assert_array_equal(out[:, 12:], 0)


def test_arrays():
  grey = np.random.default_rng(0).integers(0, 256, (9, 7), np.uint8)
  expected = preprocess(Image.fromarray(grey), size=7, resize='squash')
  for array in (grey, grey[:, :, None], np.stack([grey] * 3, -1)):
    np.testing.assert_array_equal(preprocess(array, size=7, resize='squash'), expected)


@pytest.mark.parametrize(
  'array',
  [
    np.zeros((4, 4, 3), np.float32),
    np.zeros((4, 4, 2), np.uint8),
    np.zeros((1, 4, 4, 3), np.uint8),
    np.zeros(4, np.uint8),
    np.zeros((0, 4, 3), np.uint8),
    'photo.jpg',
    None,
  ],
)
def test_what_is_no_image_is_refused(array):
  with pytest.raises(UserError, match='image'):
    preprocess(array, size=8)


def test_sixteen_bits_keep_their_range():
  ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
  for image in (Image.fromarray(ramp), Image.fromarray(ramp.astype(np.int32))):
    np.testing.assert_array_equal(np.asarray(to_rgb(image))[..., 0], ramp // 256)


def test_transparent_palettes_keep_their_colours():
  image = Image.fromarray(np.zeros((4, 4), np.uint8)).convert('P')
  image.putpalette([10, 200, 30] + [0] * 765)
  image.info['transparency'] = bytes([128] + [255] * 255)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    assert to_rgb(image).getpixel((0, 0)) == (10, 200, 30)


def test_floats_of_unknown_range_are_refused():
  with pytest.raises(UserError, match="mode 'F'"):
    to_rgb(Image.new('F', (4, 4)))


def test_a_cut_file_is_told(tmp_path):
  path = tmp_path / 'cut.png'
  picture(64, 64).save(path)
  path.write_bytes(path.read_bytes()[:2000])
  with Image.open(path) as cut, pytest.raises(UserError, match='cannot be read'):
    to_rgb(cut)


def test_too_elongated():
  with pytest.raises(UserError, match='too elongated'):
    preprocess(Image.new('RGB', (9000, 1)), size=224)
  assert preprocess(Image.new('RGB', (9000, 1)), size=64, resize='squash').shape == (1, 64, 64, 3)
