"""Opening data sets by name: TFDS without TensorFlow, the cache, and what to do when it fails."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pytest

from rest_jax import data
from rest_jax.data import sources as sources_module
from rest_jax.data.images import EncodedImage, ImageError
from rest_jax.data.sources import CachedSource, cached, open_example
from rest_jax.errors import UserError


def by_pixels(source) -> dict[bytes, int]:
  return {source[i]['image'].tobytes(): source[i]['label'] for i in range(len(source))}


def test_a_prepared_data_set(toy_data_dir, toy_image):
  sources = data.load('toy_pictures', data_dir=toy_data_dir)
  assert sources.class_names == ('cat', 'dog')
  assert sources.train[0]['image'].shape == (8, 10, 3)
  expected = {toy_image('train', i).tobytes(): i % 2 for i in range(10)}
  assert by_pixels(sources.train) == expected
  # There is no split called test, so validation stands in.
  assert by_pixels(sources.test).keys() == {toy_image('validation', i).tobytes() for i in range(4)}
  assert 'tensorflow' not in sys.modules


def test_part_of_a_split_and_extras(toy_data_dir):
  sources = data.load(
    'toy_pictures', toy_data_dir, train_split='train[:60%]', test_split='train[60%:]',
    extras=('weight',),
  )  # fmt: skip
  assert (len(sources.train), len(sources.test)) == (6, 4)
  weights = [sources.train[i]['weight'] for i in range(6)]
  weights += [sources.test[i]['weight'] for i in range(4)]
  assert sorted(weights) == [i / 2 for i in range(10)]


def test_a_source_survives_pickling_after_use(toy_data_dir):
  source = data.load('toy_pictures', toy_data_dir).train
  first = source[0]
  copy = pickle.loads(pickle.dumps(source))
  assert (copy[0]['image'] == first['image']).all()


def test_data_dir_from_the_environment(toy_data_dir, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(toy_data_dir))
  assert len(data.load('toy_pictures').train) == 10


def test_the_cache_holds_the_same(toy_data_dir):
  plain = data.load('toy_pictures', toy_data_dir)
  fast = data.load('toy_pictures', toy_data_dir, cache=True)
  assert isinstance(fast.train, CachedSource) and fast.train.images.shape == (10, 8, 10, 3)
  for index in range(10):
    assert (fast.train[index]['image'] == plain.train[index]['image']).all()
    assert fast.train[index]['label'] == plain.train[index]['label']


@pytest.mark.parametrize(
  ('name', 'options', 'message'),
  [
    ('cifar1O', {}, 'did you mean cifar10'),
    ('digit_scene', {}, 'did you mean digit_scenes'),
    ('./no/such/folder', {}, 'no data set and no directory'),
    ('a b?', {}, 'no data set and no directory'),
    ('toy_numbers', {}, "needs the features 'image' and 'label', and has value"),
    ('toy_pictures', {'train_split': 'tarin'}, "no split 'tarin'; it has train, validation"),
    ('toy_pictures', {'train_split': 'train[:0]'}, 'is empty'),
    ('toy_pictures', {'extras': ('mask',)}, 'has no feature mask; it has image, label, weight'),
    ('toy_pictures', {'extras': ('weight',), 'cache': True}, 'without weight'),
    ('mnist', {}, r"pip install 'rest-jax\[prepare\]' && python -c .*tfds.builder\('mnist'"),
  ],
)
def test_bad_names_and_options(toy_data_dir, name, options, message):
  with pytest.raises(UserError, match=message):
    data.load(name, data_dir=toy_data_dir, **options)


def test_imagenet_says_in_one_message_how_to_get_it(tmp_path):
  with pytest.raises(UserError) as caught:
    data.load('imagenet2012', data_dir=tmp_path)
  message = str(caught.value)
  assert '\n' not in message
  for part in (
    'ILSVRC2012_img_train.tar',
    'ILSVRC2012_img_val.tar',
    f'{tmp_path}/downloads/manual',
    "pip install 'rest-jax[prepare]'",
    f"tfds.builder('imagenet2012', data_dir='{tmp_path}', file_format='array_record')",
  ):
    assert part in message


def test_the_command_in_the_message_is_python(tmp_path):
  with pytest.raises(UserError) as caught:
    data.load('mnist', data_dir=tmp_path)
  compile(str(caught.value).split('python -c "')[1].rstrip('"'), 'command', 'exec')


def test_a_format_without_random_access(toy_data_dir, tmp_path):
  import shutil

  shutil.copytree(toy_data_dir / 'toy_pictures', tmp_path / 'toy_pictures')
  info = tmp_path / 'toy_pictures' / '1.0.0' / 'dataset_info.json'
  info.write_text(info.read_text().replace('array_record', 'tfrecord'))
  with pytest.raises(UserError, match='not in the format array_record'):
    data.load('toy_pictures', data_dir=tmp_path)


def test_the_cache_refuses_several_sizes(numbered):
  class Uneven:
    def __len__(self):
      return 2

    def __getitem__(self, index):
      return {'image': np.zeros((4 + index, 4, 3), np.uint8), 'label': 0}

  with pytest.raises(UserError, match=r'image 1 has shape \(5, 4, 3\)'):
    cached(Uneven())


def test_the_cache_refuses_what_does_not_fit(numbered, monkeypatch):
  monkeypatch.setattr(sources_module, 'CACHE_LIMIT', 1000)
  with pytest.raises(UserError, match='do not fit'):
    cached(numbered(3))


def test_importing_the_package_is_cheap():
  import subprocess

  code = (
    'import sys, rest_jax.data; '
    "print(sorted({'tensorflow_datasets', 'sklearn', 'grain', 'jax'} & set(sys.modules)))"
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == '[]'


def test_an_example_can_be_opened_without_decoding(toy_data_dir):
  source = data.load('toy_pictures', toy_data_dir).train
  for index in range(3):
    opened, decoded = open_example(source, index), source[index]
    assert isinstance(opened['image'], EncodedImage) and opened['image'].size == (8, 10)
    np.testing.assert_array_equal(np.asarray(opened['image'].picture()), decoded['image'])
    assert opened['label'] == decoded['label']
  held = cached(source)
  assert open_example(held, 2)['image'] is not None
  np.testing.assert_array_equal(open_example(held, 2)['image'], source[2]['image'])


def test_a_damaged_record_is_named(toy_data_dir, monkeypatch):
  source = data.load('toy_pictures', toy_data_dir).train
  records = source._open()
  monkeypatch.setattr(
    source, '_records', [{**records[i], 'image': records[i]['image'][:40]} for i in range(2)]
  )
  with pytest.raises(ImageError, match=r'cannot read the image 1 of train in .*toy_pictures'):
    source[1]


def test_three_splits_have_three_purposes(toy_data_dir):
  sources = data.load('toy_three/labelled', toy_data_dir)
  assert sources.splits == ('train', 'validation', 'test') and len(sources.val) == 4
  assert sources.line == (
    '6 images of 2 classes from toy_three/labelled (train): cat, dog; validation (4 images) '
    'chooses the best epoch, test (3 images) is judged once, at the end'
  )
  alone = data.load('toy_three/labelled', toy_data_dir, test_split='validation')
  assert alone.validation is None and alone.splits == ('train', 'validation', 'validation')
  chosen = data.load('toy_three/labelled', toy_data_dir, val_split='train[:2]')
  assert len(chosen.val) == 2 and len(chosen.test) == 3
  assert data.load_judged('toy_three/labelled', toy_data_dir).split == 'test'
  with pytest.raises(UserError, match="no split 'nonsense'; it has train, validation, test"):
    data.load('toy_three/labelled', toy_data_dir, val_split='nonsense')


def test_a_test_split_without_labels_is_passed_over(toy_data_dir):
  sources = data.load('toy_three/unlabelled', toy_data_dir)
  assert sources.validation is None and sources.splits[2] == 'validation'
  assert 'test has no labels and is passed over' in sources.line
  judged = data.load_judged('toy_three/unlabelled', toy_data_dir)
  assert judged.split == 'validation' and 'test has no labels' in judged.line()


def test_the_only_split_is_judged(toy_data_dir):
  judged = data.load_judged('toy_judged', toy_data_dir)
  assert (judged.split, len(judged.images)) == ('judged', 4)
  assert judged.line() == '4 images of 2 classes from toy_judged (judged): cat, dog'
  with pytest.raises(UserError, match="no split 'train'; it has judged"):
    data.load('toy_judged', toy_data_dir)
  with pytest.raises(UserError, match="no split 'nonsense'; it has judged"):
    data.load_judged('toy_judged', toy_data_dir, 'nonsense')


def test_digests_of_prepared_data_sets(toy_data_dir):
  one, two = (data.load(f'toy_three/{name}', toy_data_dir) for name in ('labelled', 'unlabelled'))
  assert one.digest == data.load('toy_three/labelled', toy_data_dir).digest != two.digest
  held = data.load('toy_three/labelled', toy_data_dir, cache=True)
  assert held.digest == one.digest and isinstance(held.val, CachedSource)


def test_a_place_of_data_sets_is_not_for_folders(toy_data_dir, tmp_path):
  with pytest.raises(UserError, match='leave data_dir out'):
    data.load(tmp_path, data_dir=toy_data_dir)
