"""Colour profiles: converted to sRGB, and gone."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from rest_jax.data.images import EncodedImage
from rest_jax.data.picture_files import read_picture
from rest_jax.explain import overlay
from rest_jax.profiles import to_srgb

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()


def swapped():
  """An RGB profile whose red and green are exchanged."""
  profile = bytearray(SRGB)
  count = int.from_bytes(profile[128:132], 'big')
  places = {bytes(profile[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
  red, green = places[b'rXYZ'], places[b'gXYZ']
  profile[red : red + 4], profile[green : green + 4] = b'gXYZ', b'rXYZ'
  # Another name, as what calls itself sRGB is taken for it.
  return (
    bytes(profile).replace(b'sRGB', b'mine').replace('sRGB'.encode('utf-16-be'), b'\0m\0i\0n\0e')
  )


PIXELS = np.zeros((4, 6, 3), np.uint8) + np.array([200, 30, 40], np.uint8)


def test_a_profile_is_converted_and_dropped():
  picture = Image.fromarray(PIXELS)
  picture.info['icc_profile'] = swapped()
  found = to_srgb(picture, swapped())
  assert found.mode == 'RGB' and 'icc_profile' not in found.info
  assert np.abs(np.asarray(found)[0, 0].astype(int) - [30, 200, 40]).max() <= 2


def test_srgb_stays_to_the_bit():
  np.testing.assert_array_equal(to_srgb(Image.fromarray(PIXELS), SRGB), PIXELS)
  np.testing.assert_array_equal(to_srgb(Image.fromarray(PIXELS), None), PIXELS)


@pytest.mark.parametrize('mode', ['L', 'RGB', 'CMYK'])
@pytest.mark.parametrize(
  'profile', [b'', b'nonsense', SRGB[:300], SRGB], ids=['none', 'nonsense', 'cut', 'whole']
)
def test_profiles_that_do_not_fit_count_as_none(mode, profile):
  picture = Image.fromarray(PIXELS).convert(mode)
  found = to_srgb(picture.copy(), profile)
  np.testing.assert_array_equal(np.asarray(found), np.asarray(picture.convert('RGB')))


@pytest.mark.parametrize('mode', ['L', 'RGB', 'CMYK'])
def test_an_overlay_carries_no_profile(tmp_path, mode):
  Image.fromarray(PIXELS).convert(mode).save(tmp_path / 'a.tif', icc_profile=SRGB)
  marked = overlay(read_picture(tmp_path / 'a.tif'), np.ones((2, 2), np.float32))
  file = io.BytesIO()
  marked.save(file, format='png')
  with Image.open(file) as written:
    assert written.mode == 'RGB' and 'icc_profile' not in written.info


def test_training_crops_have_the_colours_of_the_whole_picture():
  """The quick way to a crop, which decodes the rows that it needs, goes by the profile too."""
  rng = np.random.default_rng(0)
  small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
  file = io.BytesIO()
  small.resize((96, 96)).save(file, format='jpeg', quality=90, icc_profile=swapped())
  whole = np.asarray(EncodedImage(file.getvalue(), 'x').picture())
  for read in (EncodedImage.upper, lambda *args: EncodedImage.region(*args)[0]):
    part = np.asarray(read(EncodedImage(file.getvalue(), 'x'), (0, 0, 30, 30), 30))
    np.testing.assert_array_equal(part[:30, :30], whole[:30, :30])
