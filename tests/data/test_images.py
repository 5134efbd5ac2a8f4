"""Decoding: every kind of image becomes RGB, and what is none is named."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from rest_jax.data.images import EncodedImage, ImageError, decode_image, read_image
from rest_jax.errors import UserError


def encoded(image: Image.Image, kind: str = 'png', **options) -> bytes:
  file = io.BytesIO()
  image.save(file, format=kind, **options)
  return file.getvalue()


def grey_ramp() -> np.ndarray:
  return np.arange(24, dtype=np.uint8).reshape(4, 6) * np.uint8(10)


def test_rgb_is_kept():
  pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
  decoded = decode_image(encoded(Image.fromarray(pixels)), 'x')
  assert decoded.dtype == np.uint8 and (decoded == pixels).all()


@pytest.mark.parametrize('mode', ['L', 'LA', '1', 'P', 'RGBA', 'I;16', 'CMYK'])
def test_every_mode_becomes_rgb(mode):
  ramp = grey_ramp()
  if mode == 'I;16':
    content = encoded(Image.fromarray(ramp.astype(np.uint16) * 257))
  elif mode == 'CMYK':
    content = encoded(Image.fromarray(ramp).convert('RGB').convert('CMYK'), 'tiff')
  elif mode == 'P':
    content = encoded(Image.fromarray(ramp).convert('P'), transparency=bytes([0] * 256))
  elif mode == '1':
    ramp = (ramp > 100).astype(np.uint8) * np.uint8(255)
    content = encoded(Image.fromarray(ramp > 0))
  else:
    content = encoded(Image.fromarray(ramp).convert(mode))
  assert (decode_image(content, 'x') == ramp[..., None]).all()


@pytest.mark.parametrize(
  ('content', 'reason'),
  [(b'', 'it is empty'), (b'hello, world', 'it is not an image')],
)
def test_what_is_no_image_is_named(content, reason):
  with pytest.raises(UserError, match=f'cannot read the image the place: {reason}'):
    decode_image(content, 'the place')


def test_a_truncated_file_is_named(tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
  for kind in ('png', 'jpeg'):
    path = tmp_path / f'half.{kind}'
    path.write_bytes(encoded(Image.fromarray(pixels), kind)[:1500])
    with pytest.raises(UserError, match=f'half.{kind}'):
      read_image(path)


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(UserError, match=r'none\.png: No such file'):
    read_image(tmp_path / 'none.png')


def photograph(height: int, width: int) -> bytes:
  """A smooth picture with some texture, as a JPEG of the usual quality and subsampling."""
  rng = np.random.default_rng(0)
  coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
  pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
  grain = rng.normal(0, 4, pixels.shape)
  picture = Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))
  return encoded(picture, 'jpeg', quality=90)


@pytest.mark.parametrize('kind', ['jpeg', 'png'])
def test_the_size_is_known_before_decoding(kind):
  image = EncodedImage(encoded(Image.new('RGB', (7, 5)), kind), 'x')
  assert image.size == (5, 7) and not image._decoded
  assert image.picture() is image.picture()


@pytest.mark.parametrize(
  ('side', 'scale'), [(32, 1), (63, 1), (64, 2), (127, 2), (128, 4), (200, 4), (256, 8), (300, 8)]
)
def test_a_crop_keeps_the_size_of_the_result(side, scale):
  height, width = 301, 303
  image = EncodedImage(photograph(height, width), 'x')
  picture, box = image.region((2, 1, 2 + side, 1 + min(side, 300)), 32)
  assert picture.size == (-(-width // scale), -(-height // scale))
  np.testing.assert_allclose(box, np.array([2, 1, 2 + side, 1 + min(side, 300)]) / scale)
  assert min(box[2] - box[0], box[3] - box[1]) >= 32

  # Full size is exact; smaller ones stay near it once both are at the size of the result.
  def resized(source, part):
    return np.asarray(source.resize((32, 32), Image.Resampling.BICUBIC, box=part), np.int16)

  off = np.abs(resized(picture, box) - resized(image.picture(), tuple(e * scale for e in box)))
  assert off.max() == 0 if scale == 1 else off.mean() < 1.5


def test_other_formats_have_one_scale():
  pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
  picture, box = EncodedImage(encoded(Image.fromarray(pixels)), 'x').region((0, 0, 64, 64), 8)
  assert box == (0, 0, 64, 64) and (np.asarray(picture) == pixels).all()


def test_a_small_scale_still_finds_damage():
  content = photograph(256, 256)
  image = EncodedImage(content[: len(content) // 2], 'half.jpg')
  for size in (256, 16):
    with pytest.raises(ImageError, match=r'cannot read the image half\.jpg: .*truncated'):
      image.region((0, 0, 256, 256), size)


KINDS = {
  'usual': {},
  '4:4:4': {'subsampling': 0},
  'progressive': {'progressive': True},
  'restarts': {'restart_marker_rows': 1},
  'grey': {},
  'png': {},
}


@pytest.mark.parametrize('kind', KINDS)
def test_the_upper_part_is_that_of_the_whole_image(kind):
  picture = decode_image(photograph(150, 121), 'x')
  image = Image.fromarray(picture).convert('L' if kind == 'grey' else 'RGB')
  content = encoded(image, 'png' if kind == 'png' else 'jpeg', **KINDS[kind])
  whole = decode_image(content, 'x')
  for bottom, size in ((20, 20), (77, 30), (100, 224), (133, 90), (149, 8)):
    box = (3, bottom - 20, 100, bottom)
    upper = EncodedImage(content, 'x').upper(box, size)
    for filter_ in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC):
      wanted = Image.fromarray(whole).resize((size, size), filter_, box)
      np.testing.assert_array_equal(np.asarray(upper.resize((size, size), filter_, box)), wanted)
    early = kind in ('usual', '4:4:4') and bottom <= 133
    assert (np.asarray(upper)[-8:].max() == 0) == early


def test_a_reused_image_is_decoded_once():
  image = EncodedImage(photograph(100, 100), 'x')
  image.reused = True
  assert image.upper((0, 0, 20, 20), 20) is image.upper((0, 0, 90, 90), 20) is image.picture()


def test_an_image_that_is_black_above_is_whole():
  pixels = np.zeros((96, 64, 3), np.uint8)
  pixels[64:] = 200
  image = EncodedImage(encoded(Image.fromarray(pixels), 'jpeg'), 'x')
  upper = np.asarray(image.upper((0, 0, 30, 30), 30))
  np.testing.assert_array_equal(upper, np.asarray(image.picture()))
  assert upper[:48].max() == 0 and upper[80:].min() > 190


@pytest.mark.parametrize('share', [0.3, 0.9, 0.999])
def test_the_upper_part_finds_what_damage_the_whole_image_has(share):
  content = bytearray(photograph(200, 200))
  place = int(share * len(content)) - 2
  content[place : place + 2] = b'\xff\xc0'  # the start of another image, amid the data
  for damaged in (bytes(content), bytes(content[:place])):
    for rows in (20, 100, 199):
      with pytest.raises(ImageError, match=r'cannot read the image x\.jpg'):
        EncodedImage(damaged, 'x.jpg').upper((0, 0, rows, rows), rows)
