"""Picture files: found, read in every mode, and where in them the model looked."""

import dataclasses
import io
import struct
import zlib

import jax
import numpy as np
import pytest
from PIL import Image

from rest_jax.data import picture_files
from rest_jax.data.picture_files import find_pictures, read_picture, transparency_note
from rest_jax.errors import UserError
from rest_jax.explain import findings
from rest_jax.models.predictions import Placement, placement, preprocess


def save(path, array, mode=None, **options):
  image = Image.fromarray(array)
  (image.convert(mode) if mode else image).save(path, **options)
  return path


@pytest.fixture
def red(tmp_path):
  """A red picture of 8 x 6 pixels in all modes."""
  pixels = np.zeros((6, 8, 3), np.uint8) + np.array([200, 30, 40], np.uint8)
  return pixels, tmp_path


@pytest.mark.parametrize(
  ('name', 'mode', 'tolerance'),
  [('a.png', 'RGBA', 0), ('a.png', 'P', 60), ('a.jpg', 'CMYK', 4), ('a.bmp', 'RGB', 0)],
)
def test_colour_modes_become_rgb(red, name, mode, tolerance):
  pixels, folder = red
  picture = read_picture(save(folder / name, pixels, mode))
  assert picture.mode == 'RGB' and picture.size == (8, 6)
  assert np.abs(np.asarray(picture).astype(int) - pixels).max() <= tolerance


def test_grey_and_16_bit_grey(tmp_path):
  ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
  eight = np.asarray(read_picture(save(tmp_path / 'a.png', ramp)))
  sixteen = np.asarray(read_picture(save(tmp_path / 'b.png', ramp.astype(np.uint16) * 256)))
  np.testing.assert_array_equal(eight, np.repeat(ramp[..., None], 3, -1))
  np.testing.assert_array_equal(sixteen, eight)


@pytest.mark.parametrize(
  ('orientation', 'undo'),
  [
    (2, lambda x: x[:, ::-1]),
    (3, lambda x: x[::-1, ::-1]),
    (6, lambda x: np.rot90(x, -1)),
    (8, lambda x: np.rot90(x, 1)),
  ],
)
def test_exif_orientation_is_applied(tmp_path, orientation, undo):
  pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
  image, exif = Image.fromarray(pixels), Image.Exif()
  exif[0x0112] = orientation
  image.save(tmp_path / 'a.png', exif=exif)
  np.testing.assert_array_equal(np.asarray(read_picture(tmp_path / 'a.png')), undo(pixels))


def png_of_size(width, height):
  """A PNG header that promises that many pixels, and none of them."""

  def chunk(kind, content):
    body = kind + content
    return struct.pack('>I', len(content)) + body + struct.pack('>I', zlib.crc32(body))

  header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
  return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', b'') + chunk(b'IEND', b'')


def half_a_jpeg():
  file = io.BytesIO()
  noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
  Image.fromarray(noise).save(file, format='jpeg')
  return file.getvalue()[: file.tell() // 2]


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', 'is empty'),
    (b'hello, I am a text', 'not a picture'),
    (half_a_jpeg(), 'damaged.*truncated'),
    (png_of_size(40000, 40000), 'decompression bomb'),
    (png_of_size(100, 100), 'damaged'),
  ],
)
def test_bad_files_are_one_line(tmp_path, content, message):
  path = tmp_path / 'bad.png'
  path.write_bytes(content)
  with pytest.raises(UserError, match=message) as caught:
    read_picture(path)
  assert str(path) in str(caught.value) and '\n' not in str(caught.value)


def test_missing_file_folder_and_single_pixel(tmp_path):
  with pytest.raises(UserError, match=r'none\.png: no such file'):
    read_picture(tmp_path / 'none.png')
  with pytest.raises(UserError, match='is a directory'):
    read_picture(tmp_path)
  one = save(tmp_path / 'one.png', np.zeros((1, 1, 3), np.uint8))
  with pytest.raises(UserError, match=r'one\.png has a single pixel'):
    read_picture(one)
  float_tiff = save(tmp_path / 'f.tiff', np.zeros((4, 4), np.float32))
  with pytest.raises(UserError, match=r"f\.tiff: .*mode 'F'"):
    read_picture(float_tiff)


def test_files_folders_and_patterns(tmp_path):
  for name in ('b.png', 'a.JPG', '.hidden.png', 'notes.txt', 'deep/c.png'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b'x')
  found = find_pictures([str(tmp_path / 'b.png'), str(tmp_path)])
  assert [p.name for p in found] == ['b.png', 'a.JPG']
  assert [p.name for p in find_pictures([str(tmp_path / '**' / '*.png')])] == ['b.png', 'c.png']
  assert find_pictures(['/none/here.png'])[0].name == 'here.png'
  (tmp_path / 'empty').mkdir()
  with pytest.raises(UserError, match='no pictures in the folder'):
    find_pictures([str(tmp_path / 'empty')])
  with pytest.raises(UserError, match='no file matches'):
    find_pictures([str(tmp_path / '*.webp')])


def test_what_is_passed_over_is_said(tmp_path):
  for name in ('b.PNG', 'a.jfif', 'c.heic', 'notes.txt', '.hidden.png', 'Thumbs.db'):
    (tmp_path / name).write_bytes(b'x')
  (tmp_path / 'sub.jpg').mkdir()
  (tmp_path / 'sub.jpg' / 'd.png').write_bytes(b'x')
  (tmp_path / 'sub.jpg' / 'loop').symlink_to(tmp_path)
  said = []
  assert [p.name for p in find_pictures([str(tmp_path)], said.append)] == ['a.jfif', 'b.PNG']
  assert len(said) == 1 and said[0].startswith(f'{tmp_path}: 2 files passed over (1 .heic, which')
  assert '1 .txt, no pictures by their suffix' in said[0] and '1 sub-folder left out' in said[0]
  said.clear()
  found = find_pictures([str(tmp_path / '**')], said.append)
  assert [p.name for p in found] == ['a.jfif', 'b.PNG', 'd.png']
  assert len(said) == 1 and '1 .heic, which Pillow cannot read' in said[0]
  assert [p.name for p in find_pictures([str(tmp_path / '*.txt')])] == ['notes.txt']


def test_transparency_is_said_once(tmp_path, monkeypatch):
  grey = np.zeros((3, 4), np.uint8)
  kinds = {'a.png': 'RGBA', 'b.png': 'LA', 'c.webp': 'RGBA', 'd.png': 'RGB', 'e.jpg': 'RGB'}
  files = [tmp_path / name for name in kinds]
  for file, mode in zip(files, kinds.values(), strict=True):
    picture = Image.fromarray(grey).convert(mode)
    if 'A' in mode:
      picture.putalpha(99)
    picture.save(file)
  Image.fromarray(grey).save(tmp_path / 'f.png', transparency=0)
  (tmp_path / 'g.png').write_bytes(b'x')
  files += [tmp_path / 'f.png', tmp_path / 'g.png']
  assert transparency_note(files) == (
    '4 of 7 pictures have an alpha channel, which is left out: the colours under it count'
  )
  assert transparency_note(files[:1]).startswith('1 of 1 pictures has an alpha channel')
  assert transparency_note(files[3:5]) == transparency_note([]) == ''
  monkeypatch.setattr(picture_files, '_MOST_HEADS', 3)
  assert transparency_note(files).startswith('3 of 3 that were looked at have')


def test_a_file_called_like_a_pattern(tmp_path):
  (tmp_path / 'a[1].png').write_bytes(b'x')
  assert [p.name for p in find_pictures([str(tmp_path / 'a[1].png')])] == ['a[1].png']


@pytest.mark.parametrize('size', [(120, 80), (80, 120), (100, 100), (317, 211), (40, 30)])
@pytest.mark.parametrize(('resize', 'crop_pct'), [('squash', 0.875), ('resize_crop', 0.875)])
def test_placement_is_the_inverse_of_preprocess(size, resize, crop_pct):
  # Of a picture whose values are its coordinates, the model's input tells where each pixel was.
  width, height = size
  across = np.broadcast_to((np.arange(width) + 0.5) / width * 255, (height, width))
  down = np.broadcast_to(((np.arange(height) + 0.5) / height * 255)[:, None], (height, width))
  pixels = np.stack([across, down, 0 * down], -1).round().astype(np.uint8)
  seen = preprocess(pixels, size=32, resize=resize, crop_pct=crop_pct, interpolation='bilinear')
  place = placement(size, input_size=32, resize=resize, crop_pct=crop_pct)
  centres = (np.arange(32) + 0.5) / 32
  inner = slice(3, -3)  # away from the borders, where the resampling filter is cut off
  expected = (place.left + centres * (place.right - place.left)) / width
  np.testing.assert_allclose(seen[0, 16, inner, 0], expected[inner], atol=2.5 / 255)
  expected = (place.top + centres * (place.bottom - place.top)) / height
  np.testing.assert_allclose(seen[0, inner, 16, 1], expected[inner], atol=2.5 / 255)
  assert 0 <= place.left < place.right <= width and 0 <= place.top < place.bottom <= height


@pytest.mark.parametrize('logit', [-2000.0, -30.0, 0.0, 1.5, 2000.0])
def test_the_probability_of_one_logit_is_its_sigmoid_at_any_size(logit, tmp_path):
  """Beyond e**709 float64 overflows, which NumPy says on the terminal."""
  picture, place = Image.new('RGB', (4, 4)), Placement(0.0, 0.0, 4.0, 4.0)
  pixels = np.zeros((4, 4, 3), np.float32)
  result = findings.PictureResult(
    tmp_path / 'x.png', tmp_path, picture, place, pixels, np.float32([logit])
  )
  np.testing.assert_allclose(result.probabilities, jax.nn.sigmoid(np.float32([logit])), rtol=1e-6)
  several = dataclasses.replace(result, logits=np.float32([0, logit, -1]))
  np.testing.assert_allclose(
    several.probabilities, jax.nn.softmax(several.logits), rtol=1e-5, atol=1e-30
  )
