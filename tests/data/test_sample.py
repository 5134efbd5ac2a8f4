"""Samples: seeded, balanced, and a larger one goes on where a smaller one ended."""

from __future__ import annotations

import collections
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest_jax import data
from rest_jax.data.sample import sample_order, take_sample
from rest_jax.data.sources import CachedSource


class Labels:
  """A source of labels alone, which counts what is read."""

  def __init__(self, labels):
    self.values, self.read = list(labels), 0

  def __len__(self):
    return len(self.values)

  def __getitem__(self, index):
    raise AssertionError('a sample is chosen without its images')

  def label(self, index):
    self.read += 1
    return self.values[index]


@given(
  labels=st.lists(st.integers(0, 4), min_size=1, max_size=40),
  more=st.integers(0, 3),
  seed=st.integers(0, 5),
)
def test_every_sample_begins_every_larger_one_and_is_balanced(labels, more, seed):
  whole = sample_order(Labels(labels), 5 + more, len(labels), seed)
  assert sorted(whole) == list(range(len(labels)))
  there = collections.Counter(labels)
  for count in range(1, len(labels) + 1):
    some = sample_order(Labels(labels), 5 + more, count, seed)
    assert some == whole[:count]
    taken = collections.Counter(labels[index] for index in some)
    # A class has fewer than another one only where it has no more, or the round is not over.
    for one in there:
      assert taken[one] >= min(there[one], max(taken.values()) - 1)


def test_the_seed_decides_and_the_order_of_the_source_does_not():
  labels = np.repeat(np.arange(4), 50)  # sorted by class, as folders are
  orders = [sample_order(Labels(labels), 4, 20, seed) for seed in (0, 0, 1)]
  assert orders[0] == orders[1] != orders[2]
  assert np.bincount(labels[orders[0]]).tolist() == [5, 5, 5, 5]


def test_few_labels_are_read():
  source = Labels(np.arange(10_000) % 10)
  assert len(sample_order(source, 10, 100)) == 100
  assert source.read < 400


@pytest.mark.parametrize(
  ('labels', 'classes', 'limit', 'text'),
  [
    ([0, 1] * 10, 2, 10, '10 of 20 images, 5 of each class, seed 3'),
    ([0, 1] * 10, 2, 5, '5 of 20 images, 2 to 3 of each class, seed 3'),
    ([0, 1, 2, 3], 4, 2, '2 of 4 images, at most 1 of each class, seed 3'),
    ([0] * 7 + [1], 2, 6, '6 of 8 images, 1 to 5 of each class, seed 3'),
    ([0, 1], 2, 2, '2 images'),
    ([0, 1], 2, 9, '2 images'),
    ([0, 1], 2, None, '2 images'),
  ],
)
def test_a_sample_says_what_it_is(labels, classes, limit, text):
  assert str(take_sample(Labels(labels), classes, limit, seed=3)) == text


def test_a_sample_is_a_source(numbered):
  source = numbered(12)
  sample = pickle.loads(pickle.dumps(take_sample(source, 12, 5, seed=1)))
  assert len(sample) == 5
  for row, index in enumerate(sample.indices):
    assert sample[row]['label'] == sample.label(row) == index
    np.testing.assert_array_equal(sample.open(row)['image'], source[index]['image'])
  (batch,) = data.eval_batches(sample, 5, 12)
  assert batch['label'].tolist() == list(sample.indices)
  assert isinstance(source, CachedSource)


def test_a_prepared_data_set_is_sampled(toy_data_dir):
  judged = data.load_judged('toy_pictures', toy_data_dir, 'train')
  sample = take_sample(judged.images, 2, 4)
  assert sorted(sample[row]['label'] for row in range(4)) == [0, 0, 1, 1]
