"""Decoding: every kind of image becomes RGB, and what is none is named."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from rest_jax.data.images import decode_image, read_image
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
