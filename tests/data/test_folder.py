"""Folders of images: layouts, splits, and what may be wrong with one."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from PIL import Image

from rest_jax import data
from rest_jax.data.folder import FileNames
from rest_jax.errors import UserError


def write(path, value: int = 0, size: tuple[int, int] = (6, 4)) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new('RGB', size, (value, value, value)).save(path)


@pytest.fixture
def one_level(tmp_path):
  for name, count in (('zebra', 20), ('ant', 30), ('lone', 1)):
    for index in range(count):
      write(tmp_path / name / f'{index:02}.png', index)
  (tmp_path / 'ant' / 'notes.txt').write_text('passed over')
  (tmp_path / 'ant' / '._00.png').write_text('passed over')
  (tmp_path / '.hidden').mkdir()
  return tmp_path


def test_one_level_is_split_by_class(one_level):
  sources = data.load(one_level)
  assert sources.class_names == ('ant', 'lone', 'zebra')
  assert np.bincount(sources.test.labels).tolist() == [3, 0, 2]
  assert np.bincount(sources.train.labels).tolist() == [27, 1, 18]
  assert not set(sources.train.files) & set(sources.test.files)
  assert data.load(one_level) == sources


def test_reading_and_pickling(one_level):
  source = pickle.loads(pickle.dumps(data.load(one_level).train))
  example = source[len(source) - 1]
  assert example['image'].shape == (4, 6, 3) and example['label'] == 2
  assert example['image'][0, 0, 0] == int(source.files[-1].split('/')[-1][:2])


@pytest.mark.parametrize('test_name', ['val', 'test', 'validation'])
def test_two_levels(tmp_path, test_name):
  for name in ('a', 'b'):
    write(tmp_path / 'train' / name / 'deep' / '1.PNG')
  write(tmp_path / test_name / 'b' / '2.jpg')
  sources = data.load(tmp_path)
  assert sources.class_names == ('a', 'b')
  assert len(sources.train) == 2 and list(sources.test.labels) == [1]


def test_a_missing_test_folder(tmp_path):
  write(tmp_path / 'train' / 'a' / '1.png')
  with pytest.raises(UserError, match='neither test/ nor val/'):
    data.load(tmp_path)


def test_an_unknown_class_in_the_test_folder(tmp_path):
  write(tmp_path / 'train' / 'a' / '1.png')
  write(tmp_path / 'val' / 'b' / '1.png')
  with pytest.raises(UserError, match='lacks: b'):
    data.load(tmp_path)


def test_an_empty_class(one_level):
  (one_level / 'nothing').mkdir()
  with pytest.raises(UserError, match=r'no images in .*nothing'):
    data.load(one_level)


def test_a_folder_without_classes(tmp_path):
  write(tmp_path / '1.png')
  with pytest.raises(UserError, match='no sub-folders'):
    data.load(tmp_path)


def test_a_folder_too_small_to_test(tmp_path):
  write(tmp_path / 'a' / '1.png')
  with pytest.raises(UserError, match='no image for testing'):
    data.load(tmp_path)


def test_extras_are_refused(one_level):
  with pytest.raises(UserError, match='no mask'):
    data.load(one_level, extras=('mask',))


@pytest.mark.parametrize('workers', [0, 1])
def test_an_unreadable_image_stops_training_by_name(one_level, workers):
  (one_level / 'ant' / '07.png').write_bytes(b'broken')
  batches = data.train_iterator(
    data.load(one_level).train, batch_size=50, image_size=8, workers=workers
  )
  with pytest.raises(UserError, match=r'ant.07\.png'):
    next(batches)
  batches.close()


def test_an_unreadable_image_stops_testing_by_name(one_level):
  source = data.load(one_level).test
  with open(source.files[0], 'wb') as file:
    file.write(b'broken')
  with pytest.raises(UserError, match='cannot read the image'):
    list(data.eval_batches(source, batch_size=2, image_size=8))


@pytest.mark.parametrize(
  'paths',
  [
    [],
    ['a'],
    ['/x/a.png', '/x/ab.png', '/x/ä/b c.png'],
    ['b', 'a', ''],
    ['/x/\udcff', '/x/\udcfe'],
  ],
)
def test_packed_names_are_the_names(paths):
  packed = pickle.loads(pickle.dumps(FileNames(paths)))
  assert list(packed) == paths and len(packed) == len(paths)
  assert packed[1:] == paths[1:]
  if paths:
    assert packed[-1] == paths[-1]
  with pytest.raises(IndexError):
    packed[len(paths)]


def test_a_worker_gets_few_bytes_an_image():
  paths = [f'/data/imagenet/train/n{c:08}/n{c:08}_{i}.JPEG' for c in range(100) for i in range(100)]
  assert len(pickle.dumps(FileNames(paths))) < 36 * len(paths)
