"""Run lengths and outlines against pycocotools."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from rest_jax.data import rle
from rest_jax.errors import UserError

masks = hnp.arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40)))


@given(masks)
def test_codes_are_pycocotools(mask):
  theirs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
  ours = rle.encode(mask)
  assert ours['counts'].encode() == theirs['counts'] and ours['size'] == list(theirs['size'])
  for code in (ours, theirs):
    np.testing.assert_array_equal(rle.decode(code), mask)


def test_long_runs_and_uncompressed_counts():
  mask = np.zeros((300, 500), bool)
  mask[100:200, 50:450] = True
  code = rle.encode(mask)
  assert (
    code['counts'].encode() == coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))['counts']
  )
  np.testing.assert_array_equal(rle.decode(code, (300, 500)), mask)
  counts = {'size': [2, 3], 'counts': [1, 2, 3]}
  np.testing.assert_array_equal(rle.decode(counts), [[0, 1, 0], [1, 0, 0]])


@pytest.mark.parametrize(
  ('code', 'match'),
  [
    ([1, 2], 'no run-length code'),
    ({'size': [2, 2], 'counts': [1, 2]}, 'fill 3 of its 4 pixels'),
    ({'size': [2, 2], 'counts': [5, -1]}, '0 or more'),
    ({'size': [2, 2], 'counts': [2.0, 2]}, '0 or more'),
    ({'size': [2, 2], 'counts': ['2', 2]}, '0 or more'),
    ({'size': [2, 2], 'counts': 4}, 'no run-length code'),
    ({'size': [2, 2]}, 'no run-length code'),
    ({'size': 4, 'counts': [4]}, 'no run-length code'),
    ({'size': ['a', 2], 'counts': [4]}, 'no run-length code'),
    ({'size': [2, 2, 1], 'counts': [4]}, 'no run-length code'),
    (None, 'no run-length code'),
    ({'size': [2, 2], 'counts': 'ÿ'}, 'damaged'),
    ({'size': [2, 2], 'counts': 'o'}, 'damaged'),
    ({'size': [3, 2], 'counts': [6]}, 'the mask is 3x2, the image 2x2'),
  ],
)
def test_bad_codes(code, match):
  with pytest.raises(UserError, match=match):
    rle.decode(code, (2, 2))


def test_outlines():
  square = [2, 1, 7, 1, 7, 5, 2, 5]
  triangle = [10, 10, 14, 10, 12, 14]
  mask = rle.polygons_to_mask([square, triangle], (20, 16))
  theirs = coco_mask.merge(coco_mask.frPyObjects([square, triangle], 20, 16))
  assert rle.encode(mask)['counts'].encode() == theirs['counts']
  assert mask[1:5, 2:7].all() and mask[11, 12] and not mask[:, :2].any()
  for bad in ([], [[]], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6, 7]], [[1, 2, 3, 4, 5, float('nan')]]):
    with pytest.raises(UserError, match='outline'):
      rle.polygons_to_mask(bad, (20, 16))
