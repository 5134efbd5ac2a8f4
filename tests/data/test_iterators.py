"""The input pipeline: order, resuming, sharing between processes, nothing lost or shown twice."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_jax.data.augmentation import AugmentConfig, eval_view
from rest_jax.data.batches import example_rng
from rest_jax.data.iterators import eval_batches, train_iterator
from rest_jax.data.sources import CachedSource
from rest_jax.errors import UserError

LIVELY = AugmentConfig(crop_scale=(0.3, 1.0), color_jitter=(0.4, 0.4, 0.4))
STILL = AugmentConfig(crop_scale=None, flip=False)


def take(iterator, count: int) -> list[dict]:
  return [next(iterator) for _ in range(count)]


def assert_same(first: list[dict], second: list[dict]) -> None:
  assert len(first) == len(second)
  for one, other in zip(first, second, strict=True):
    assert one.keys() == other.keys()
    for name in one:
      assert one[name].dtype == other[name].dtype
      np.testing.assert_array_equal(one[name], other[name])


@pytest.fixture
def start(numbered):
  """Starts an iterator over 10 images in batches of 4, closed after the test."""
  opened = []

  def begin(**options):
    options = {'augment': LIVELY, 'seed': 1, **options}
    opened.append(train_iterator(numbered(10), batch_size=4, image_size=8, **options))
    return opened[-1]

  yield begin
  for iterator in opened:
    iterator.close()


def test_batches_have_their_types(start):
  batch = next(start())
  assert batch['image'].shape == (4, 8, 8, 3) and batch['image'].dtype == np.uint8
  assert batch['label'].shape == (4,) and batch['label'].dtype == np.int32


def test_every_epoch_shows_every_example_once_in_a_new_order(start):
  labels = np.concatenate([batch['label'] for batch in take(start(), 15)]).reshape(6, 10)
  assert (np.sort(labels, axis=1) == np.arange(10)).all()
  assert len({tuple(row) for row in labels}) == 6


def test_labels_stay_with_their_images(start, numbered):
  source = numbered(10)
  for batch in take(start(augment=STILL), 6):
    for image, label in zip(batch['image'], batch['label'], strict=True):
      np.testing.assert_array_equal(image, eval_view(source.images[label], 8))


def test_the_seed_decides(start):
  assert_same(take(start(), 6), take(start(), 6))
  one, other = take(start(seed=1), 3), take(start(seed=2), 3)
  assert any((a['label'] != b['label']).any() for a, b in zip(one, other, strict=True))


def test_augmentation_changes_with_epoch_and_example(start):
  views: dict[int, set[bytes]] = {}
  for batch in take(start(), 15):
    for image, label in zip(batch['image'], batch['label'], strict=True):
      views.setdefault(int(label), set()).add(image.tobytes())
  assert all(len(seen) == 6 for seen in views.values())
  draws = {tuple(example_rng(s, e, i).random(2)) for s in (0, 1) for e in (0, 1) for i in (0, 1)}
  assert len(draws) == 8


@pytest.mark.parametrize('stop', [0, 1, 2, 5])
def test_resume_is_bitwise(start, stop):
  first = start()
  take(first, stop)
  state = json.loads(json.dumps(first.get_state()))
  rest = take(first, 5)
  second = start()
  take(second, 3)  # reads ahead; all of that must be forgotten
  second.set_state(state)
  assert_same(take(second, 5), rest)
  assert second.get_state() == first.get_state()


def test_resume_with_other_workers_is_bitwise(start):
  plain = start()
  everything = take(plain, 7)
  workers = start(workers=2)
  assert_same(take(workers, 3), everything[:3])
  state = workers.get_state()
  workers.close()
  again = start(workers=2)
  again.set_state(state)
  assert_same(take(again, 4), everything[3:])


@pytest.mark.parametrize('count', [2, 4])
def test_processes_get_the_rows_of_one(start, count):
  whole = take(start(), 6)
  parts = [take(start(process_index=p, process_count=count), 6) for p in range(count)]
  for number, batch in enumerate(whole):
    for name in batch:
      joined = np.concatenate([part[number][name] for part in parts])
      np.testing.assert_array_equal(joined, batch[name])


def test_state_goes_from_one_process_to_two(start):
  one = start()
  take(one, 4)
  two = start(process_index=1, process_count=2)
  two.set_state(one.get_state())
  np.testing.assert_array_equal(next(two)['image'], next(one)['image'][2:])


def test_a_batch_larger_than_the_data_goes_round(numbered):
  iterator = train_iterator(numbered(3), batch_size=7, image_size=8)
  labels = next(iterator)['label']
  iterator.close()
  assert sorted(labels[:3]) == sorted(labels[3:6]) == [0, 1, 2]


@pytest.mark.parametrize('change', ['seed', 'batch_size', 'examples'])
def test_the_state_of_another_stream_is_refused(start, change):
  iterator = start()
  state = iterator.get_state()
  state[change] += 1
  with pytest.raises(UserError, match=f'cannot resume the data: {change} was'):
    iterator.set_state(state)


@settings(max_examples=20)
@given(st.integers(1, 23), st.integers(1, 5), st.integers(1, 3))
def test_testing_covers_everything_once(count, rows, processes):
  images = np.arange(count * 12, dtype=np.uint8).reshape(count, 2, 2, 3)
  source = CachedSource(images, np.arange(count, dtype=np.int32))
  batch_size = rows * processes
  parts = [
    list(eval_batches(source, batch_size, 2, process_index=p, process_count=processes))
    for p in range(processes)
  ]
  assert {len(part) for part in parts} == {-(-count // batch_size)}
  whole = {
    name: np.concatenate([part[i][name] for i in range(len(parts[0])) for part in parts])
    for name in ('image', 'label', 'mask')
  }
  assert whole['mask'].dtype == bool and whole['label'].dtype == np.int32
  assert whole['mask'].tolist() == [True] * count + [False] * (len(whole['mask']) - count)
  np.testing.assert_array_equal(whole['label'][whole['mask']], np.arange(count))
  np.testing.assert_array_equal(whole['image'][whole['mask']], images)
  assert not whole['image'][~whole['mask']].any()


def test_testing_can_be_repeated_and_left(numbered):
  batches = eval_batches(numbered(9), batch_size=2, image_size=8, resize='resize_crop')
  assert len(batches) == 5
  for _ in batches:
    break
  assert_same(list(batches), list(batches))


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'batch_size': 0}, 'must be positive'),
    ({'image_size': 0}, 'must be positive'),
    ({'batch_size': 5, 'process_count': 2}, 'does not divide among 2'),
    ({'process_index': 2, 'process_count': 2}, r'must be in 0\.\.1'),
  ],
)
def test_bad_sharing(numbered, options, message):
  options = {'batch_size': 4, 'image_size': 8, **options}
  for make in (train_iterator, eval_batches):
    with pytest.raises(UserError, match=message):
      make(numbered(10), **options)


def test_other_bad_input(numbered):
  with pytest.raises(UserError, match='0 or more'):
    train_iterator(numbered(4), 2, 8, seed=-1)
  with pytest.raises(UserError, match='0 or more'):
    train_iterator(numbered(4), 2, 8, workers=-1)
  with pytest.raises(UserError, match='source is empty'):
    train_iterator(numbered(0), 2, 8)
  with pytest.raises(UserError, match='squash'):
    eval_batches(numbered(4), 2, 8, resize='stretch')  # type: ignore[arg-type]


def test_ending_with_a_batch_in_hand_is_quiet():
  # os._exit leaves the batch in shared memory, as an end does that does not clean up all objects.
  code = """
import os
import numpy as np
from rest_jax.data.iterators import train_iterator
from rest_jax.data.sources import CachedSource
source = CachedSource(np.zeros((64, 8, 8, 3), np.uint8), np.zeros(64, np.int32))
iterator = train_iterator(source, 8, 8, workers=1)
batch = next(iterator)
print(batch['image'].shape, flush=True)
iterator.close()
os._exit(0)
"""
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
  assert (done.returncode, done.stdout, done.stderr) == (0, '(8, 8, 8, 3)\n', '')
