"""Matching anchors to ground truth, and drawing those that a loss looks at."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest_jax.ops.matching import IGNORED, NEGATIVE, POSITIVE, match, sample

GOLDEN = np.load(Path(__file__).parents[1] / 'golden' / 'dense.npz')
draw = jax.jit(sample, static_argnums=(2, 3))


@pytest.mark.parametrize('low_quality', [False, True])
def test_matches_as_torchvision(low_quality):
  # Two columns more of padding, one of them with the highest overlaps of all.
  overlaps = np.insert(GOLDEN['match/overlaps'].T, 2, 0.9, axis=1)
  overlaps = np.concatenate([overlaps, np.zeros((60, 1))], axis=1).astype(np.float32)
  # Ground truth 3 has no overlap at all. There its best anchors are all of them, as every one has
  # the same 0; here they are none (as in the torchvision run, which leaves it out).
  valid = np.array([True, True, False, True, True, True, True, True, False])
  found = match(
    jnp.asarray(overlaps), jnp.asarray(valid), high=0.7, low=0.3, low_quality=low_quality
  )
  want = GOLDEN[f'match/index{int(low_quality)}']  # -1 background, -2 between
  status = np.where(want >= 0, POSITIVE, np.where(want == -1, NEGATIVE, IGNORED))
  np.testing.assert_array_equal(found.status, status)
  rows = np.array([0, 1, 3, 5, 6, 7])  # of the ground truth that the reference knows
  positive = want >= 0
  np.testing.assert_array_equal(np.asarray(found.index)[positive], rows[want[positive]])


def test_without_ground_truth_all_is_background():
  found = match(jnp.full((4, 2), 0.9), jnp.zeros(2, bool), high=0.5, low=0.4, low_quality=True)
  np.testing.assert_array_equal(found.status, np.full(4, NEGATIVE))


def test_ground_truth_that_nothing_touches_takes_no_anchor():
  found = match(jnp.zeros((4, 1)), jnp.ones(1, bool), high=0.5, low=0.4, low_quality=True)
  np.testing.assert_array_equal(found.status, np.full(4, NEGATIVE))


def test_a_low_quality_match_keeps_the_ground_truth_of_its_highest_overlap():
  # Anchor 1 is the best that ground truth 1 has, but overlaps ground truth 0 more.
  overlaps = jnp.array([[0.8, 0.0], [0.3, 0.2]])
  found = match(overlaps, jnp.ones(2, bool), high=0.7, low=0.3, low_quality=True)
  np.testing.assert_array_equal(found.status, [1, 1])
  np.testing.assert_array_equal(found.index, [0, 0])


@given(st.lists(st.sampled_from([-1, 0, 1]), min_size=12, max_size=12), st.integers(0, 50))
def test_drawing(status, seed):
  status = np.array(status)
  count, most = 8, 3
  index, valid = draw(jax.random.key(seed), status, count, most)
  index, valid = np.asarray(index), np.asarray(valid)
  chosen = index[valid]
  assert len(set(chosen.tolist())) == len(chosen) and (status[chosen] >= 0).all()
  positives = min((status == 1).sum(), most)
  assert (status[chosen] == 1).sum() == positives
  assert (status[chosen] == 0).sum() == min((status == 0).sum(), count - positives)
  assert valid[: len(chosen)].all() and (status[index[:positives]] == 1).all()


def test_drawing_more_than_there_are():
  index, valid = draw(jax.random.key(0), np.array([1, 0, -1]), 8, 4)
  assert index.shape == valid.shape == (8,) and valid.sum() == 2


def test_drawing_is_uniform():
  status = np.array([1] * 4 + [0] * 8)
  keys = jax.random.split(jax.random.key(0), 400)
  index, valid = jax.vmap(lambda key: sample(key, status, 4, 2))(keys)
  assert valid.all()
  times = np.bincount(np.asarray(index).ravel(), minlength=12)
  np.testing.assert_allclose(times[:4], 200, atol=50)
  np.testing.assert_allclose(times[4:], 100, atol=40)
