"""Boxes: areas, overlaps, clipping, coding; anchors."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest_jax.errors import UserError
from rest_jax.ops import anchors, boxes

GOLDEN = np.load(Path(__file__).parents[1] / 'golden' / 'dense_torchvision.npz')
encode, decode = jax.jit(boxes.encode), jax.jit(boxes.decode)
iou = jax.jit(boxes.iou)


def test_overlaps_by_hand():
  one = jnp.array([[0.0, 0, 4, 2], [1, 1, 3, 3], [5, 5, 5, 9], [0, 0, 0, 0]])
  other = jnp.array([[2.0, 0, 6, 2], [0, 0, 4, 2], [0, 0, 0, 0]])
  np.testing.assert_allclose(boxes.area(one), [8, 4, 0, 0])
  np.testing.assert_allclose(boxes.intersection(one, other)[:2], [[4, 8, 0], [1, 2, 0]])
  # 4 of 12; all; 1 of 11; 2 of 10; what is empty overlaps nothing, itself neither.
  want = [[4 / 12, 1, 0], [1 / 11, 2 / 10, 0], [0, 0, 0], [0, 0, 0]]
  np.testing.assert_allclose(iou(one, other), want, rtol=1e-6)
  assert iou(one[None], other[None]).shape == (1, 4, 3)


def test_a_box_turned_inside_out_has_no_area():
  np.testing.assert_array_equal(boxes.area(jnp.array([[3.0, 3, 1, 9]])), [0])


def test_clipping():
  got = boxes.clip(jnp.array([[-3.0, 2, 90, 41], [50, 60, 70, 80]]), jnp.array([40.0, 64.0]))
  np.testing.assert_array_equal(got, [[0, 2, 64, 40], [50, 40, 64, 40]])


def test_coding_as_torchvision():
  weights = (10.0, 10.0, 5.0, 5.0)
  code = encode(GOLDEN['bc_gt'], GOLDEN['bc_an'], weights)
  np.testing.assert_allclose(code, GOLDEN['bc'], rtol=1e-4, atol=1e-4)


sides = st.floats(0.5, 900, width=32)
starts = st.floats(-500, 1500, width=32)
box = st.tuples(starts, starts, sides, sides).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


@given(
  st.lists(st.tuples(box, box), min_size=6, max_size=6),
  st.sampled_from([(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)]),
)
def test_coding_and_decoding_are_inverse(pairs, weights):
  goal, anchor = (np.array(part, np.float32) for part in zip(*pairs, strict=True))
  # What grows by more than 1000 / 16 is cut off on purpose.
  grown = (goal[:, 2:] - goal[:, :2]) / (anchor[:, 2:] - anchor[:, :2])
  goal = np.where((grown < 60).all(1)[:, None], goal, anchor)
  back = decode(encode(goal, anchor, weights), anchor, weights)
  np.testing.assert_allclose(back, goal, rtol=1e-4, atol=0.05)


def test_padding_codes_to_finite_numbers_and_growth_is_bounded():
  nothing, anchor = jnp.zeros((1, 4)), jnp.array([[0.0, 0, 16, 16]])
  assert np.isfinite(encode(nothing, anchor)).all()
  assert np.isfinite(encode(anchor, nothing)).all()
  big = decode(jnp.array([[0.0, 0, 50, 50]]), anchor)
  np.testing.assert_allclose(big[0, 2:] - big[0, :2], 1000, rtol=1e-4)


def test_anchors_are_torchvisions_in_the_order_of_detectron2():
  sizes = [[int(s * 2 ** (k / 3)) for k in range(3)] for s in (32, 64, 128, 256, 512)]
  start = 0
  for own, stride in zip(sizes, (8, 16, 32, 64, 128), strict=True):
    rows, columns = (-(-side // stride) for side in (256, 320))
    base = np.round(anchors.base_anchors(own, (0.5, 1.0, 2.0)))
    ours = anchors.grid_anchors(base, (rows, columns), stride).reshape(rows, columns, 3, 3, 4)
    # torchvision's stride is the whole quotient of the sides: 320 // 3 for 3 columns of 128 px.
    short = np.arange(columns) * (stride - 320 // columns)
    ours[..., ::2] -= short[None, :, None, None, None]
    theirs = GOLDEN['anchors'][start : start + ours.size // 4]
    start += len(theirs)
    # There ratios come first, and then the sizes of a ratio.
    theirs = theirs.reshape(rows, columns, 3, 3, 4).swapaxes(2, 3)
    np.testing.assert_array_equal(ours, theirs)
  assert start == len(GOLDEN['anchors'])


def test_anchors_by_hand():
  got = anchors.base_anchors([4, 8], [0.25, 1])
  want = [[-4, -1, 4, 1], [-2, -2, 2, 2], [-8, -2, 8, 2], [-4, -4, 4, 4]]
  np.testing.assert_allclose(got, want)
  grid = anchors.grid_anchors(got, (2, 3), 16)
  assert grid.shape == (24, 4) and grid.dtype == np.float32
  np.testing.assert_allclose(grid[4 * 5 + 1], np.add(want[1], [32, 16, 32, 16]))
  np.testing.assert_allclose(
    anchors.octave_sizes((8,)), [[32, 32 * 2 ** (1 / 3), 32 * 2 ** (2 / 3)]]
  )
  levels = anchors.pyramid_anchors([(4, 4), (2, 2)], (8, 16), [[32], [64]])
  assert [len(level) for level in levels] == [48, 12]


def test_bad_anchors():
  for sizes, ratios in (([], [1]), ([4, 0], [1]), ([4], [-1])):
    with pytest.raises(UserError, match='sizes and ratios above 0'):
      anchors.base_anchors(sizes, ratios)
  with pytest.raises(UserError, match='2 levels have 1 strides'):
    anchors.pyramid_anchors([(1, 1)] * 2, (8,), [[4]] * 2)
