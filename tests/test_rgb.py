"""One reader: every kind of picture is the same RGB picture wherever it is read."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rest_jax import rgb
from rest_jax.data.augmentation import AugmentConfig, augment
from rest_jax.data.images import EncodedImage, ImageError, decode_image
from rest_jax.data.picture_files import read_picture
from rest_jax.errors import UserError
from rest_jax.models.predictions import preprocess

# By hand from the EXIF standard: where row 0 and column 0 of the stored picture are seen.
UPRIGHT = {
  1: lambda x: x,
  2: lambda x: x[:, ::-1],  # top, right
  3: lambda x: x[::-1, ::-1],  # bottom, right
  4: lambda x: x[::-1],  # bottom, left
  5: lambda x: x.swapaxes(0, 1),  # left, top
  6: lambda x: np.rot90(x, -1),  # right, top
  7: lambda x: np.rot90(x, 2).swapaxes(0, 1),  # right, bottom
  8: lambda x: np.rot90(x, 1),  # left, bottom
}
# Exact ones and, with the most that they may differ, lossy ones.
FORMATS = {
  'png': ({}, 0),
  'tiff': ({}, 0),
  'webp': ({'lossless': True}, 0),
  'jpeg': ({'quality': 95, 'subsampling': 0}, 24),
  'mpo': ({'quality': 95, 'subsampling': 0}, 24),
  'avif': ({'quality': 100, 'subsampling': '4:4:4'}, 24),
}


def encoded(image: Image.Image, kind: str = 'png', **options) -> bytes:
  file = io.BytesIO()
  image.save(file, format=kind, **options)
  return file.getvalue()


def tiff(array: np.ndarray, **options) -> bytes:
  file = io.BytesIO()
  tifffile.imwrite(file, array, **options)
  return file.getvalue()


def smooth(height: int, width: int) -> np.ndarray:
  small = np.random.default_rng(1).integers(0, 256, (3, 4, 3), dtype=np.uint8)
  size = (width, height)
  return np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))


def exif(orientation: int) -> Image.Exif:
  found = Image.Exif()
  found[0x0112] = orientation
  return found


def read_everywhere(content: bytes, path) -> list[np.ndarray]:
  """The picture as training, evaluation and explain.py read it."""
  path.write_bytes(content)
  image = EncodedImage(content, 'x')
  height, width = image.size
  whole = np.asarray(image.upper((0, 0, width, height), height))
  part, _ = EncodedImage(content, 'x').region((0, 0, width, height), max(width, height))
  return [decode_image(content, 'x'), whole, np.asarray(part), np.asarray(read_picture(path))]


@pytest.mark.parametrize('kind', FORMATS)
@pytest.mark.parametrize('orientation', UPRIGHT)
def test_pictures_are_upright_everywhere(kind, orientation, tmp_path):
  options, tolerance = FORMATS[kind]
  stored = smooth(20, 32)
  content = encoded(Image.fromarray(stored), kind, exif=exif(orientation), **options)
  wanted = UPRIGHT[orientation](stored).astype(int)
  assert EncodedImage(content, 'x').size == wanted.shape[:2]
  for found in read_everywhere(content, tmp_path / f'a.{kind}'):
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= tolerance


@pytest.mark.parametrize('orientation', UPRIGHT)
@pytest.mark.parametrize('scaled', [False, True])
def test_crops_are_of_the_upright_picture(orientation, scaled):
  """Sides that 8 does not divide: at a smaller scale the last column stands for fewer pixels."""
  stored = smooth(203, 301)
  turned = encoded(Image.fromarray(stored), 'jpeg', quality=95, exif=exif(orientation))
  upright = encoded(Image.fromarray(np.ascontiguousarray(UPRIGHT[orientation](stored))))
  config = AugmentConfig(crop_scale=(0.2, 1.0), scaled_decoding=scaled)
  for seed in range(6):
    views = [
      augment(EncodedImage(content, 'x'), 16, config, np.random.default_rng(seed)).astype(int)
      for content in (turned, upright)
    ]
    assert np.abs(views[0] - views[1]).mean() < 1.5
    assert np.abs(views[0] - views[1]).max() <= 12


@given(
  how=st.integers(1, 8),
  edges=st.tuples(*[st.integers(0, 20)] * 4),
  extra=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_boxes_turn_with_the_picture_and_back(how, edges, extra):
  left, right = sorted(edges[:2])
  top, bottom = sorted(edges[2:])
  box, size = (left, top, right + 1, bottom + 1), (right + extra[0], bottom + extra[1])
  marked = np.zeros((size[1], size[0]), np.uint8)
  marked[box[1] : box[3], box[0] : box[2]] = 1
  turned = np.asarray(rgb.turn(Image.fromarray(marked), how))
  x0, y0, x1, y1 = (int(edge) for edge in rgb.turn_box(box, size, how))
  assert turned[y0:y1, x0:x1].all() and turned.sum() == (y1 - y0) * (x1 - x0)
  assert rgb.turn_box_back((x0, y0, x1, y1), turned.shape[::-1], how) == box


def exif_block(order: str, kind: int, value: int, start: int = 8, entries: int = 1) -> bytes:
  mark = b'II' if order == '<' else b'MM'
  entry = struct.pack(f'{order}HHI', 0x0112, kind, 1)
  entry += struct.pack(f'{order}I', value) if kind == 4 else struct.pack(f'{order}HH', value, 0)
  return mark + struct.pack(f'{order}HIH', 42, start, entries) + entry + bytes(4)


@pytest.mark.parametrize(
  ('block', 'wanted'),
  [
    (exif_block('<', 3, 6), 6),
    (exif_block('>', 3, 6), 6),
    (exif_block('>', 4, 8), 8),
    (b'Exif\x00\x00' + exif_block('<', 3, 3), 3),
    (exif_block('<', 3, 0), 1),
    (exif_block('<', 3, 9), 1),
    (exif_block('<', 3, 6, start=2**31), 1),
    (exif_block('<', 3, 6)[:12], 1),
    (b'', 1),
    (b'XX' + exif_block('<', 3, 6)[2:], 1),
    (b'nonsense', 1),
    ('text', 1),
  ],
)
def test_orientations_as_they_are_written(block, wanted):
  image = Image.new('RGB', (3, 2))
  image.info['exif'] = block
  assert rgb.orientation(image) == wanted


def test_orientation_in_xmp_and_behind_the_pixels():
  image = Image.new('RGB', (3, 2))
  image.info['xmp'] = b'<x tiff:Orientation="6"/>'
  assert rgb.orientation(image) == 6
  content = encoded(Image.fromarray(smooth(2, 3)), exif=exif(6))
  length = struct.unpack('>I', content[33:37])[0]
  assert content[37:41] == b'eXIf'
  chunk, rest = content[33 : 45 + length], content[45 + length :]
  late = content[:33] + rest[:-12] + chunk + rest[-12:]
  assert EncodedImage(late, 'x').size == (3, 2) and decode_image(late, 'x').shape == (3, 2, 3)


RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOURS = np.stack([RAMP, RAMP[::-1], RAMP.T], -1)
WIDE = RAMP.astype(np.uint16) * 257


def known() -> dict[str, tuple[bytes, np.ndarray]]:
  """What can be read, with its pixels."""
  grey = np.repeat(RAMP[..., None], 3, -1)
  palette = Image.fromarray(RAMP).convert('P')
  cmyk = Image.fromarray(COLOURS).convert('CMYK')
  alpha = np.concatenate([COLOURS, RAMP[..., None]], -1)
  twelve = RAMP.astype(np.uint16) << 4
  return {
    'L': (encoded(Image.fromarray(RAMP)), grey),
    'LA': (encoded(Image.fromarray(RAMP).convert('LA')), grey),
    'palette': (encoded(palette), grey),
    'palette, clear': (encoded(palette, transparency=bytes(range(256))), grey),
    'palette, one clear': (encoded(palette, transparency=7), grey),
    'grey, one clear': (encoded(Image.fromarray(RAMP), transparency=7), grey),
    '1 bit': (encoded(Image.fromarray(RAMP > 100)), (grey > 100) * np.uint8(255)),
    'RGB, one clear': (encoded(Image.fromarray(COLOURS), transparency=(0, 240, 0)), COLOURS),
    'RGBA': (encoded(Image.fromarray(alpha)), COLOURS),
    'CMYK': (encoded(cmyk, 'tiff'), COLOURS),
    'gif': (encoded(palette, 'gif'), grey),
    '16 bits': (encoded(Image.fromarray(WIDE)), grey),
    '16 bits, black': (encoded(Image.fromarray(WIDE * 0)), grey * 0),
    '16 bits, TIFF': (tiff(WIDE), grey),
    '16 bits, other end': (tiff(WIDE.astype('>u2'), byteorder='>'), grey),
    '16 bits, colours': (tiff(COLOURS.astype(np.uint16) * 257, photometric='rgb'), COLOURS),
    '16 bits, PGM': (encoded(Image.fromarray(WIDE), 'ppm'), grey),
    '12 bits, PGM': (b'P5 16 16 4095\n' + twelve.astype('>u2').tobytes(), grey),
    '12 bits, TIFF with its largest': (
      tiff(twelve, extratags=[(281, 3, 1, 4095, False)]),
      grey,
    ),
    'dark PGM': (b'P5 16 16 65535\n' + (WIDE // 64).astype('>u2').tobytes(), grey // 64),
  }


@pytest.mark.parametrize('name', known())
def test_what_is_known_is_read_alike(name, tmp_path):
  content, wanted = known()[name]
  for found in read_everywhere(content, tmp_path / 'a'):
    assert found.dtype == np.uint8
    # PGM of fewer bits is scaled by Pillow, which rounds.
    assert np.abs(found.astype(int) - wanted).max() <= ('PGM' in name)
  seen = preprocess(Image.open(io.BytesIO(content)), size=16, resize='squash')[0]
  assert np.abs(seen * 255 - wanted).max() <= 1 + 1e-4


def unknown() -> dict[str, tuple[bytes, str]]:
  """What nobody can know the range of."""
  twelve, colours = WIDE >> 4, (COLOURS.astype(np.uint16) * 257) >> 4
  return {
    '12 bits in 16': (encoded(Image.fromarray(twelve)), 'largest value is 4095 of 65535'),
    '10 bits in 16': (encoded(Image.fromarray(WIDE >> 6)), 'largest value is 1023'),
    '14 bits in 16': (tiff(WIDE >> 2), 'largest value is 16383'),
    '12 bits in 16, TIFF': (tiff(twelve.astype('>u2'), byteorder='>'), 'largest value is 4095'),
    '12 bits in 16, colours': (tiff(colours, photometric='rgb'), '16 bits whose largest'),
    'float 0..1': (tiff(RAMP.astype(np.float32) / 255), "mode 'F'"),
    'float 0..255': (tiff(RAMP.astype(np.float32)), "mode 'F'"),
    '32 bits, few': (tiff(RAMP.astype(np.int32)), '32-bit integers, here 0 to 255'),
    '32 bits, many': (tiff(RAMP.astype(np.uint32) << 20), '32-bit integers'),
    '16 bits with sign': (tiff(RAMP.astype(np.int16) - 100), '32-bit integers, here -100'),
  }


@pytest.mark.parametrize('name', unknown())
def test_what_is_not_known_is_refused_everywhere(name, tmp_path):
  content, words = unknown()[name]
  path = tmp_path / 'a.tif'
  path.write_bytes(content)
  for read, kind in (
    (lambda: decode_image(content, 'a.tif'), ImageError),
    (lambda: EncodedImage(content, 'a.tif').region((0, 0, 16, 16), 4), ImageError),
    (lambda: read_picture(path), UserError),
    (lambda: preprocess(Image.open(path), size=16), UserError),
  ):
    with pytest.raises(kind, match=words) as caught:
      read()
    assert 'save it as 8-bit PNG' in str(caught.value) and '\n' not in str(caught.value)


def test_a_profile_of_other_channels_is_dropped():
  content = encoded(Image.fromarray(COLOURS).convert('CMYK'), 'tiff', icc_profile=b'of CMYK')
  assert 'icc_profile' not in rgb.upright(Image.open(io.BytesIO(content))).info
