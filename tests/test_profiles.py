"""Colour profiles: converted to sRGB, and gone."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from rest_jax.explain.overlay import overlay
from rest_jax.explain.pictures import read_picture
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
@pytest.mark.parametrize('profile', [b'', b'nonsense', SRGB[:300], SRGB])
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
