"""Repeated augmentation: DeiT's sampler, seen as one stream; bitwise the same whoever reads it."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from rest_jax.data.augmentation import AugmentConfig
from rest_jax.data.batches import TrainBatches
from rest_jax.data.iterators import train_iterator
from rest_jax.errors import UserError

RECIPE = AugmentConfig(crop_scale=(0.3, 1.0), rand_augment='rand-m9-mstd0.5-inc1')


class Counting:
  """Counts how often a source is read."""

  def __init__(self, source):
    self.source, self.reads = source, 0

  def __len__(self):
    return len(self.source)

  def __getitem__(self, index):
    self.reads += 1
    return self.source[index]


@pytest.fixture
def start(numbered):
  """Starts an iterator over 20 images in batches of 12, three views each, closed at the end."""
  opened = []

  def begin(**options):
    options = {'augment': RECIPE, 'seed': 3, 'repeats': 3, **options}
    opened.append(train_iterator(numbered(20), batch_size=12, image_size=8, **options))
    return opened[-1]

  yield begin
  for iterator in opened:
    iterator.close()


def take(iterator, count):
  return [next(iterator) for _ in range(count)]


def assert_same(first, second):
  for one, other in zip(first, second, strict=True):
    for name in ('image', 'label'):
      np.testing.assert_array_equal(one[name], other[name])


def test_an_epoch_is_three_views_of_a_third_of_the_images(start):
  # Five batches of 12 are three epochs of 20.
  labels = np.concatenate([np.sort(batch['label']) for batch in take(start(), 5)])
  counts = collections.Counter(labels.tolist())
  assert sum(counts.values()) == 60
  first = collections.Counter(next(start())['label'].tolist())
  assert set(first.values()) == {3} and len(first) == 4
  # 20 = 6 x 3 + 2: six images thrice and a seventh twice, in each epoch.
  stream = start(augment=AugmentConfig(crop_scale=None, flip=False))
  seen = [collections.Counter() for _ in range(3)]
  for number, batch in enumerate(take(stream, 5)):
    places = 12 * number + np.argsort((12 * number + np.arange(12)) % 20 % 3, kind='stable')
    for place, label in zip(places.tolist(), batch['label'].tolist(), strict=True):
      seen[place // 20][label] += 1
  assert all(sorted(epoch.values()) == [2, 3, 3, 3, 3, 3, 3] for epoch in seen)
  assert len({tuple(sorted(epoch)) for epoch in seen}) == 3


def test_views_of_an_image_differ_and_lie_apart(start):
  batch = next(start())
  labels = batch['label'].reshape(3, 4)
  assert (labels == labels[:1]).all()  # so on three devices each has four different ones
  views = batch['image'].reshape(3, 4, -1)
  assert all((views[a] != views[b]).any(axis=-1).all() for a, b in ((0, 1), (0, 2), (1, 2)))


def test_an_image_is_read_once_for_its_views(numbered):
  source = Counting(numbered(20))
  batches = TrainBatches(source, 12, 8, RECIPE, 3, 0, 1, repeats=3)
  assert batches[0].keys() == {'image', 'label'} and source.reads == 4


def test_resume_with_workers_is_bitwise(start):
  everything = take(start(), 9)
  workers = start(workers=2)
  assert_same(take(workers, 3), everything[:3])
  state = workers.get_state()
  workers.close()
  again = start(workers=2)
  again.set_state(state)
  assert_same(take(again, 6), everything[3:])


@pytest.mark.parametrize('count', [2, 3])
def test_processes_get_the_rows_of_one(start, count):
  parts = [take(start(process_index=p, process_count=count), 6) for p in range(count)]
  joined = [
    {name: np.concatenate([part[n][name] for part in parts]) for name in ('image', 'label')}
    for n in range(6)
  ]
  assert_same(joined, take(start(), 6))


def test_states_know_the_repeats(start):
  state = start().get_state()
  with pytest.raises(UserError, match='cannot resume the data: repeats was 3 and is 1'):
    start(repeats=1).set_state(state)
  old = {name: value for name, value in state.items() if name != 'repeats'}
  with pytest.raises(UserError, match='repeats was 1 and is 3'):
    start().set_state(old)
  start(repeats=1).set_state(old)
  with pytest.raises(UserError, match='repeats must be 1 or more'):
    start(repeats=0)
