"""Images that cannot be read: reported once by name, and fatal or passed over as configured."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from rest_jax.data.augmentation import AugmentConfig
from rest_jax.data.folder import FolderSource
from rest_jax.data.images import ImageError
from rest_jax.data.iterators import eval_batches, train_iterator
from rest_jax.data.sources import CachedSource, cached
from rest_jax.errors import UserError

STILL = AugmentConfig(crop_scale=None, flip=False)
COUNT, BAD = 6, (2, 5)


@pytest.fixture
def damaged(tmp_path):
  """Six JPEGs of one colour each, whose label is their number; the third and last are cut off."""
  files = []
  for number in range(COUNT):
    pixels = np.full((64, 64, 3), 40 * number, np.uint8)
    path = tmp_path / f'{number}.jpg'
    Image.fromarray(pixels).save(path)
    if number in BAD:
      path.write_bytes(path.read_bytes()[:-40])
    files.append(str(path))
  return FolderSource(tuple(files), tuple(range(COUNT)))


def batches(source, count, **options):
  options = {'augment': STILL, 'on_error': 'skip', **options}
  iterator = train_iterator(source, batch_size=4, image_size=8, **options)
  try:
    return [next(iterator) for _ in range(count)]
  finally:
    iterator.close()


def assert_same(first, second):
  for one, other in zip(first, second, strict=True):
    assert one.keys() == other.keys() == {'image', 'label'}
    for name in one:
      np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize('workers', [0, 2])
def test_skipped_images_are_reported_once(damaged, capfd, workers):
  batches(damaged, 6, workers=workers)  # four epochs
  lines = [line for line in capfd.readouterr().err.splitlines() if 'cannot read' in line]
  assert len(lines) == len(BAD)
  for number in BAD:
    (line,) = (line for line in lines if f'{number}.jpg' in line)
    assert line.startswith('Warning: cannot read the image')
    assert 'truncated' in line and 'the next image takes its place' in line


def test_the_next_image_takes_the_place_with_its_own_label(damaged):
  good = [n for n in range(COUNT) if n not in BAD]
  labels = np.concatenate([batch['label'] for batch in batches(damaged, 3)]).reshape(2, COUNT)
  for epoch in labels:
    assert sorted(epoch) == sorted([*good, 3, 0])  # 3 follows 2, and 0 follows the last
  for batch in batches(damaged, 3):
    colours = batch['image'][:, 4, 4, 0].astype(int)
    assert np.abs(colours - 40 * batch['label']).max() <= 1


def test_the_number_of_processes_makes_no_difference(damaged):
  lively = AugmentConfig(crop_scale=(0.3, 1.0), rand_augment='rand-m9-mstd0.5-inc1')
  plain = batches(damaged, 6, augment=lively)
  halves = [batches(damaged, 6, augment=lively, process_index=p, process_count=2) for p in range(2)]
  joined = [
    {name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*halves, strict=True)
  ]
  assert_same(joined, plain)


def test_resuming_skips_the_same(damaged):
  def start():
    return train_iterator(damaged, 4, 8, augment=STILL, on_error='skip')

  first = start()
  next(first)
  state, rest = first.get_state(), [next(first) for _ in range(4)]
  second = start()
  second.set_state(state)
  assert_same([next(second) for _ in range(4)], rest)
  first.close()
  second.close()


@pytest.mark.parametrize('workers', [0, 1])
def test_fatal_ends_with_the_name(damaged, workers):
  with pytest.raises(UserError, match=r'cannot read the image .*[25]\.jpg: .*mend or remove it'):
    batches(damaged, 3, on_error='fatal', workers=workers)


def test_nothing_but_unreadable_images_is_fatal(damaged):
  bad = FolderSource(tuple(damaged.files[n] for n in BAD), BAD)
  with pytest.raises(UserError, match=r'100 images in a row cannot be read; .*\.jpg'):
    batches(bad, 1)


def test_testing_leaves_them_out_and_says_so(damaged, capfd):
  whole = list(eval_batches(damaged, 4, 8, on_error='skip'))
  mask = np.concatenate([batch['mask'] for batch in whole])
  labels = np.concatenate([batch['label'] for batch in whole])
  assert labels[mask].tolist() == [n for n in range(COUNT) if n not in BAD]
  assert all(batch.keys() == {'image', 'label', 'mask'} for batch in whole)
  list(eval_batches(damaged, 4, 8, on_error='skip'))
  error = capfd.readouterr().err
  assert error.count('it is left out of the evaluation') == len(BAD)
  with pytest.raises(UserError, match=r'2\.jpg'):
    list(eval_batches(damaged, 4, 8))


def test_a_cache_changes_nothing(damaged):
  held = cached(damaged, on_error='skip')
  assert isinstance(held, CachedSource) and sorted(held.problems) == list(BAD)
  with pytest.raises(ImageError, match=r'5\.jpg'):
    held[5]
  assert_same(batches(held, 6), batches(damaged, 6))
  with pytest.raises(UserError, match=r'2\.jpg'):
    cached(damaged)


def test_unknown_choices_are_refused(damaged):
  with pytest.raises(UserError, match="fatal or skip, got 'ignore'"):
    batches(damaged, 1, on_error='ignore')
  with pytest.raises(UserError, match='fatal or skip'):
    eval_batches(damaged, 4, 8, on_error='ignore')  # type: ignore[arg-type]
