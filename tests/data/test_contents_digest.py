"""What an evaluation pins of pictures: names, labels, and what the files hold."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from rest_jax.data.folder import contents_digest, folder_source
from rest_jax.data.sources import JudgedData


@pytest.fixture
def folder(tmp_path):
  place = tmp_path / 'photos'
  place.mkdir()
  for index in range(4):
    picture(place / f'{index}.png', index)
  return place


def picture(path, seed):
  pixels = np.random.default_rng(seed).integers(0, 256, (48, 48, 3), dtype=np.uint8)
  Image.fromarray(pixels).save(path)


def digest(folder):
  files = sorted(map(str, folder.iterdir()))
  source = folder_source(str(folder), files, [0] * len(files))
  return JudgedData('photos', 'test', source, ('a',)).digest


@pytest.mark.parametrize(
  'change',
  [
    lambda folder: picture(folder / '2.png', 9),  # of the same size, but for a few bytes
    lambda folder: shutil.copyfile(folder / '1.png', folder / '2.png'),
    lambda folder: Image.open(folder / '3.png').rotate(90).save(folder / '3.png'),
    lambda folder: (folder / '0.png').write_bytes((folder / '0.png').read_bytes() + b'.'),
    lambda folder: (folder / '0.png').unlink(),
    lambda folder: (folder / '0.png').write_bytes(b''),
  ],
)
def test_pictures_that_change_in_place_are_other_data(folder, change):
  before = digest(folder)
  change(folder)
  assert digest(folder) != before


def test_a_copy_is_the_same_data_whenever_it_was_made(folder, tmp_path):
  shutil.copytree(folder, tmp_path / 'copy')
  for path in (tmp_path / 'copy').iterdir():
    os.utime(path, (1, 1))
  assert digest(tmp_path / 'copy') == digest(folder)


def test_both_ends_of_a_file_count_once(tmp_path):
  files = [tmp_path / name for name in 'ab']
  for size in (0, 1, 4095, 4096, 4097, 6000, 8192, 8193, 20_000):
    for file in files:
      file.write_bytes(bytes(range(256)) * (size // 256) + bytes(size % 256))
    first, second = (contents_digest([str(file)]) for file in files)
    assert first == second
    if size:
      files[1].write_bytes(files[0].read_bytes()[:-1] + b'!')
      assert contents_digest([str(files[1])]) != first
