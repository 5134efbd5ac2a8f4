"""Greedy suppression against torchvision and against the plain loop over all pairs."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_jax.ops.suppression import nms

GOLDEN = np.load(Path(__file__).parents[1] / 'golden' / 'dense_torchvision.npz')
COUNT = 12
suppress = jax.jit(nms, static_argnames='count')


def plain_loop(boxes, scores, threshold, groups, valid):
  """Pairs one by one, in float32 like the boxes."""
  order = np.argsort(-scores, kind='stable')
  kept = []
  for i in order[valid[order]]:
    if all(groups[i] != groups[j] or overlap(boxes[i], boxes[j]) <= threshold for j in kept):
      kept.append(i)
  return kept


def overlap(a, b):
  sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
  common = sides[0] * sides[1]
  union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - common
  return common / union if union > 0 else np.float32(0)


@pytest.mark.parametrize('case', range(5))
def test_the_same_boxes_as_torchvision(case):
  boxes, scores, threshold, want = (GOLDEN[f'nms{case}_{part}'] for part in 'bstk')
  kept = suppress(boxes, scores, threshold)
  np.testing.assert_array_equal(kept.index[: len(want)], want)
  assert int(kept.valid.sum()) == len(want) and kept.valid[: len(want)].all()


# Whole numbers and few values make boxes that touch, coincide and have equal scores.
corner = st.integers(0, 6)
boxes = st.tuples(corner, corner, st.integers(0, 4), st.integers(0, 4))


@settings(max_examples=60)
@given(
  st.lists(boxes, min_size=COUNT, max_size=COUNT),
  st.lists(st.integers(0, 5), min_size=COUNT, max_size=COUNT),
  st.lists(st.integers(0, 2), min_size=COUNT, max_size=COUNT),
  st.lists(st.booleans(), min_size=COUNT, max_size=COUNT),
  st.sampled_from([0.0, 0.25, 0.3, 1 / 3, 0.5, 0.7, 0.99]),
)
def test_the_same_as_the_plain_loop(rows, scores, groups, valid, threshold):
  rows = np.array(rows, np.float32)
  rows[:, 2:] += rows[:, :2]
  scores, groups, valid = np.array(scores, np.float32) / 8, np.array(groups), np.array(valid)
  threshold = np.float32(threshold)
  want = plain_loop(rows, scores, threshold, groups, valid)
  kept = suppress(rows, scores, threshold, groups=groups, valid=valid)
  np.testing.assert_array_equal(np.asarray(kept.index)[np.asarray(kept.valid)], want)
  # Fewer results are the first ones.
  few = suppress(rows, scores, threshold, count=3, groups=groups, valid=valid)
  np.testing.assert_array_equal(np.asarray(few.index)[np.asarray(few.valid)], want[:3])


def test_a_chain_keeps_both_ends():
  """A covers B, B covers C, A does not cover C: a suppression by tiles loses C."""
  chain = jnp.array([[1.0, 1, 11, 11], [1, 5, 11, 15], [1, 9.2, 11, 19.2]])
  for threshold in (0.3, 0.4):
    kept = suppress(chain, jnp.array([0.9, 0.8, 0.7]), threshold)
    np.testing.assert_array_equal(kept.index[:2], [0, 2])
    np.testing.assert_array_equal(kept.valid, [True, True, False])


def test_groups_are_as_far_apart_as_the_offset_trick_puts_them():
  rows = GOLDEN['nms0_b']
  labels = np.arange(len(rows)) % 3
  moved = rows + (labels * (rows.max() + 1))[:, None]
  groups = suppress(rows, GOLDEN['nms0_s'], 0.5, groups=labels)
  offset = suppress(moved.astype(np.float32), GOLDEN['nms0_s'], 0.5)
  np.testing.assert_array_equal(groups.index, offset.index)
  np.testing.assert_array_equal(groups.valid, offset.valid)


def test_scores_that_are_no_numbers_and_no_boxes_at_all():
  rows = jnp.tile(jnp.array([[0.0, 0, 2, 2]]), (3, 1))
  kept = nms(rows, jnp.array([-jnp.inf, jnp.nan, 0.1]), 0.5)
  np.testing.assert_array_equal(kept.valid, [True, False, False])
  assert kept.index[0] == 2
  assert not nms(jnp.zeros((0, 4)), jnp.zeros(0), 0.5, count=4).valid.any()


def test_boxes_without_area_stay():
  kept = nms(jnp.zeros((3, 4)), jnp.array([0.1, 0.3, 0.2]), 0.5)
  np.testing.assert_array_equal(kept.index, [1, 2, 0])
  assert kept.valid.all()


def test_several_images_at_once():
  rows, scores = GOLDEN['nms0_b'][:20], GOLDEN['nms0_s'][:20]
  both = jax.vmap(lambda b, s: nms(b, s, 0.5))(
    jnp.stack([rows, rows[::-1]]), jnp.stack([scores, scores[::-1]])
  )
  np.testing.assert_array_equal(both.valid[0], both.valid[1])
  there = np.asarray(both.valid[0])
  np.testing.assert_array_equal(both.index[0][there], 19 - both.index[1][there])
