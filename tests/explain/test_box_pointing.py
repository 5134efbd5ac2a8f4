"""Boxes and masks of pictures as masks of what the model sees."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from rest_jax.data.box_files import Boxes
from rest_jax.errors import UserError
from rest_jax.explain.study import _box_mask, _masks, _placed_mask
from rest_jax.models.predictions import preprocess

CASES = [
  ((40, 80), 'squash', 1.0),
  ((80, 40), 'resize_crop', 1.0),
  ((64, 64), 'resize_crop', 0.5),
  ((50, 70), 'resize_crop', 0.8),
]


def classifier(resize, crop_pct, size=32):
  config = SimpleNamespace(input_size=size, resize=resize, crop_pct=crop_pct)
  return SimpleNamespace(config=config)


@pytest.mark.parametrize(('shape', 'resize', 'crop_pct'), CASES)
def test_a_box_is_where_the_model_sees_its_pixels(shape, resize, crop_pct):
  """By another way: the box is painted into the picture, which is then preprocessed."""
  left, top, right, bottom = 16, 12, 30, 36
  pixels = np.zeros((*shape, 3), np.uint8)
  pixels[top:bottom, left:right] = 255
  image = Image.fromarray(pixels)
  seen = preprocess(image, size=32, resize=resize, crop_pct=crop_pct, interpolation='bilinear')
  example = {'image': pixels, 'boxes': Boxes(((left, top, right, bottom),))}
  mask = _box_mask(classifier(resize, crop_pct), example)
  # Where the filter blurs the border, a pixel belongs to either side.
  sure = np.abs(seen[0, ..., 0] - 0.5) > 0.25
  np.testing.assert_array_equal(mask[sure], seen[0, ..., 0][sure] > 0.5)
  assert mask.any()
  drawn = _placed_mask(classifier(resize, crop_pct), {'image': pixels, 'mask': pixels[..., 0] > 0})
  np.testing.assert_array_equal(drawn[sure], mask[sure])
  twice = {'image': pixels, 'boxes': Boxes(((2 * left, 2 * top, 2 * right, 2 * bottom),), (
    2 * shape[1], 2 * shape[0]))}  # fmt: skip
  np.testing.assert_array_equal(_box_mask(classifier(resize, crop_pct), twice), mask)


def test_objects_that_are_not_there_are_empty_and_not_counted():
  pixels = np.zeros((64, 64, 3), np.uint8)
  several = Boxes(((20, 20, 24, 24), (40, 40, 44, 44)))
  examples = [
    {'image': pixels, 'boxes': boxes} for boxes in (several, Boxes(), Boxes(((0, 0, 3, 3),)))
  ]
  view = classifier('resize_crop', 0.5)
  masks, marked = _masks(view, examples)
  assert masks is not None and masks.any((1, 2)).tolist() == [True, False, False]
  assert masks[0].sum() == 2 * 16
  assert marked is not None and marked.tolist() == [True, False, True]
  assert _masks(classifier('squash', 1.0), [{'image': pixels}]) == (None, None)
  drawn = [{'image': pixels, 'mask': _box_mask(classifier('squash', 1.0, 64), e)} for e in examples]
  for kind, whole in ((_masks(view, drawn), masks), (_masks(view, examples), masks)):
    np.testing.assert_array_equal(kind[0], whole)
    assert kind[1] is not None and kind[1].tolist() == [True, False, True]


@pytest.mark.parametrize(('size', 'resize', 'crop_pct'), [
  (64, 'squash', 1.0), (32, 'squash', 1.0), (48, 'resize_crop', 0.875), (100, 'resize_crop', 0.3),
])  # fmt: skip
def test_a_mask_is_placed_as_the_nearest_pixel_of_the_picture_is(size, resize, crop_pct):
  """By Pillow's resizing, which is how the picture itself gets there."""
  mask = np.random.default_rng(0).random((61, 79)) < 0.5  # odd sides: no centre between pixels
  example = {'image': np.zeros((61, 79, 3), np.uint8), 'mask': mask}
  found = _placed_mask(classifier(resize, crop_pct, size), example)
  picture, nearest = Image.fromarray(mask), Image.Resampling.NEAREST
  if resize == 'squash':
    expected = np.asarray(picture.resize((size, size), nearest))
  else:
    shorter = int(size / crop_pct)
    scaled = int(shorter * 79 / 61), shorter
    left, top = (round((side - size) / 2) for side in scaled)
    box = (left, top, left + size, top + size)
    expected = np.asarray(picture.resize(scaled, nearest).crop(box))
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
  ('drawn', 'upright', 'lies'),
  [
    ((400, 300), (300, 400), True),
    ((300, 400), (400, 300), True),
    ((401, 300), (150, 200), True),  # smaller since, and rounded
    ((400, 300), (200, 150), False),
    ((300, 300), (300, 300), False),
    ((300, 302), (302, 300), False),  # square but for rounding
    ((400, 300), (400, 200), False),  # another shape is the annotator's affair: fractions hold
  ],
)
def test_boxes_of_a_picture_on_its_side_are_refused(drawn, upright, lies):
  boxes = Boxes(((30, 30, 60, 90),), drawn, 'a/cat.xml')
  if lies:
    with pytest.raises(UserError, match=r'a/cat.xml: drawn on .* px, and upright it has'):
      boxes.fractions(*upright)
  else:
    assert boxes.fractions(*upright)[0][0] == 30 / drawn[0]
  assert Boxes((), drawn).fractions(*upright) == []


@pytest.mark.parametrize(
  ('box', 'size', 'fits'),
  [
    ((0, 0, 8, 6), None, True),
    ((-1, 0, 9, 7), None, True),  # rounded elsewhere
    ((0, 0, 10, 6), None, False),
    ((2, 0, 5, 7.5), None, False),
    ((0, -2, 5, 5), None, False),
    ((0, 0, 16, 12), (16, 12), True),  # drawn on a larger one
    ((0, 0, 18, 12), (16, 12), False),
  ],
)
def test_boxes_outside_of_their_picture_are_refused(box, size, fits):
  boxes = Boxes((box,), size, 'a/cat.xml')
  if fits:
    assert len(boxes.fractions(8, 6)) == 1
  else:
    with pytest.raises(UserError, match=r'a/cat.xml: the box .* lies outside of the image of'):
      boxes.fractions(8, 6)
