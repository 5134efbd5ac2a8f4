"""Tables of records, intervals and curves, images on disk."""

import dataclasses

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy import stats

from rest_jax.attacks.record import (
  FOLDER,
  WORST_CASE,
  ImageFiles,
  Record,
  RunName,
  markdown,
  robust_accuracy_curve,
  summarise,
)
from rest_jax.errors import UserError
from rest_jax.evaluation.intervals import accuracy_interval


def record(index, **changes):
  values = dict(
    index=index, label=1, target=None, clean=1, adversarial=2, clean_loss=0.25, loss=3.5
  )
  values |= dict(distance=0.1, queries=7, attack='pgd', norm='linf', eps=0.1, seed='0', inside=True)
  values |= dict(success=True, confirmed=True, reused=None, pixels='00')
  return Record(**values | changes)


def test_images_half_written_when_a_kill_came_are_passed_over(tmp_path):
  files, run = ImageFiles(tmp_path), record(3).run
  image = np.full((1, 2, 2, 1), 0.5, np.float32)
  files.add(run, np.array([3]), np.array([1]), image)
  parts = tmp_path / FOLDER / run.stem
  (parts / '.0000000004.77.npz').write_bytes(b'PK half')
  with np.load(files.merge(run, {3: record(3)})) as merged:
    np.testing.assert_array_equal(merged['images'], image)
  assert not parts.exists()


@hypothesis.given(st.integers(0, 60), st.integers(0, 60), st.sampled_from([0.9, 0.95, 0.99]))
def test_interval_is_clopper_pearson(a, b, confidence):
  if not a + b:
    return
  found = accuracy_interval(a, a + b, confidence)
  known = stats.binomtest(a, a + b).proportion_ci(confidence, method='exact')
  np.testing.assert_allclose(found, [a / (a + b), known.low, known.high], rtol=1e-9, atol=1e-12)


def test_interval_of_nothing_is_everything():
  value, low, high = accuracy_interval(0, 0)
  assert np.isnan(value) and (low, high) == (0, 1)


@pytest.mark.parametrize('arguments', [(3, 2), (-1, 2), (1, 2, 1.0), (1, 2, 0.0)])
def test_interval_refuses_nonsense(arguments):
  with pytest.raises(UserError, match='must be'):
    accuracy_interval(*arguments)


def test_curve_of_minimum_norm_distances():
  distances = np.array([0.1, 0.3, np.inf, 0.2, 0.0])
  correct = np.array([True, True, True, True, False])
  curve = robust_accuracy_curve(distances, correct, [0, 0.1, 0.15, 0.2, 0.25, 1e9])
  # An image at exactly the radius is in the ball, so it is lost.
  np.testing.assert_array_equal(curve, [0.8, 0.6, 0.6, 0.4, 0.4, 0.2])


@pytest.mark.parametrize('bad', [([np.nan], [True]), ([1.0, 2.0], [True]), ([], [])])
def test_curve_refuses_nonsense(bad):
  with pytest.raises(UserError, match='distances'):
    robust_accuracy_curve(np.array(bad[0]), np.array(bad[1]), [1])


def test_table_by_hand():
  pgd = [record(0, success=False), record(1, distance=0.08), record(2, clean=0, success=False)]
  fab = [record(i, attack='fab', eps=None, distance=d) for i, d in ((0, 0.05), (1, 0.3), (2, 0))]
  fab[2] = dataclasses.replace(fab[2], clean=0, success=False)
  records = {RunName('pgd', 'linf', 0.1): dict(enumerate(pgd))}
  records[RunName('fab', 'linf', None)] = dict(enumerate(fab))
  rows = {row.attack: row for row in summarise(records, {'linf': [0.1]})}
  assert {name: row.robust_accuracy.value for name, row in rows.items()} == {
    'pgd': 1 / 3,  # image 1 fell, image 2 was wrong before
    'fab': 1 / 3,  # image 0 has an adversarial image within 0.1, that of image 1 is too far
    WORST_CASE: 0.0,
  }
  assert all(row.clean_accuracy.value == 2 / 3 for row in rows.values())
  assert rows[WORST_CASE].median_distance == pytest.approx(np.median([0.05, 0.08]))
  assert rows['pgd'].mean_queries == 7 and rows[WORST_CASE].mean_queries == 14
  table = markdown(list(rows.values()))
  assert '| linf | 0.1 | pgd | 3 | 66.67% | 33.33% |' in table


def test_a_table_of_many_images_shows_the_one_that_held():
  """And an interval of 99.5 % is not called one of 100 %."""
  pgd = {i: record(i, success=i != 3) for i in range(30_000)}
  shown = markdown(summarise({pgd[0].run: pgd}, {'linf': [0.1]}, 0.995), 0.995)
  assert '| 99.5% interval |' in shown and '| 100.00% | 0.003% |' in shown
