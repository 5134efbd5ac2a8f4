"""Boxes, masks and pictures stay together: each object is drawn in a colour of its own."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest_jax.data.canvas import collate, frame_mask, smallest_canvas
from rest_jax.data.dense_augment import DetectionAugment, SegmentationAugment, distort
from rest_jax.data.geometry import crop, fit, flip, resize, tight_boxes
from rest_jax.errors import UserError

HEIGHT, WIDTH = 40, 56


def drawn(seed, count=4):
  """Rectangles that do not overlap, in strips; pixel values are object numbers times 60."""
  rng = np.random.default_rng(seed)
  masks = np.zeros((count, HEIGHT, WIDTH), bool)
  strip = WIDTH // count
  for i in range(count):
    left, top = i * strip + rng.integers(0, 4), rng.integers(0, HEIGHT - 12)
    masks[i, top : top + rng.integers(6, 12), left : left + rng.integers(6, strip - 4)] = True
  image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
  for i, mask in enumerate(masks):
    image[mask] = 60 * (i + 1)
  return {
    'image': image,
    'segmentation': (image[..., 0] // 60).astype(np.uint8),
    'masks': masks,
    'boxes': tight_boxes(masks),
    'labels': np.arange(count, dtype=np.int32),
    'ignore': np.zeros(count, bool),
    'areas': masks.sum((1, 2)).astype(np.float64),
    'image_id': seed,
  }


def check(example, exact=True):
  """Every mask lies where its object's colour is, and its box is tight."""
  number = np.rint(example['image'][..., 0] / 60).astype(int)
  for label, mask, box in zip(example['labels'], example['masks'], example['boxes'], strict=True):
    own = number == label + 1
    if exact:
      np.testing.assert_array_equal(mask, own)
      np.testing.assert_array_equal(example['segmentation'] == label + 1, own)
      np.testing.assert_array_equal(box, tight_boxes(mask[None])[0])
    else:  # an edge is a pixel soft
      assert (mask ^ (example['segmentation'] == label + 1)).sum() == 0
      np.testing.assert_allclose(box, tight_boxes(mask[None])[0], atol=1.5)
      assert own[mask].mean() > 0.6
  assert len(example['areas']) == len(example['ignore']) == len(example['labels'])


@given(st.integers(0, 99), st.data())
def test_flip_and_crop_move_all_together(seed, data):
  example = drawn(seed)
  check(example)
  mirrored = flip(example)
  check(mirrored)
  np.testing.assert_array_equal(flip(mirrored)['boxes'], example['boxes'])
  height, width = data.draw(st.integers(5, HEIGHT)), data.draw(st.integers(5, WIDTH))
  top, left = data.draw(st.integers(0, HEIGHT - height)), data.draw(st.integers(0, WIDTH - width))
  part = crop(mirrored, (top, left, height, width), least_visible=0.6)
  check(part)
  assert part['image'].shape == (height, width, 3)
  whole = dict(zip(mirrored['labels'], mirrored['areas'], strict=True))
  assert set(part['labels']) == set((np.unique(part['segmentation'])[1:] - 1).tolist()) or (
    part['segmentation'].min() > 0
  )
  for label, area, ignore in zip(part['labels'], part['areas'], part['ignore'], strict=True):
    assert area == (part['segmentation'] == label + 1).sum() and ignore == (
      area < 0.6 * whole[label]
    )


@given(st.integers(0, 99), st.integers(30, 90), st.integers(30, 90))
def test_resizing_moves_all_together(seed, height, width):
  bigger = resize(drawn(seed), (height, width))
  assert bigger['image'].shape == (height, width, 3)
  check(bigger, exact=False)
  np.testing.assert_allclose(bigger['areas'].sum(), bigger['masks'].sum(), rtol=0.35)


def test_boxes_alone_are_cut_by_area():
  example = {k: v for k, v in drawn(0).items() if k not in ('masks', 'segmentation')}
  example['boxes'] = np.array(
    [[0, 0, 10, 10], [8, 8, 20, 20], [30, 0, 40, 9], [0, 0, 4, 9]], np.float32
  )
  part = crop(example, (0, 5, 40, 20), least_visible=0.6)
  np.testing.assert_array_equal(part['boxes'], [[0, 0, 5, 10], [3, 8, 15, 20]])
  np.testing.assert_array_equal(part['ignore'], [True, False])
  np.testing.assert_array_equal(part['labels'], [0, 1])


def test_sizes_by_hand():
  assert fit((480, 640), 800, 1333) == (800, 1067)
  assert fit((400, 1000), 800, 1333) == (533, 1333)
  assert fit((100, 50), 25) == (50, 25)


@pytest.mark.parametrize(
  ('call', 'match'),
  [
    (lambda: crop(drawn(0), (0, 0, 41, 10)), 'not inside of a picture of 40x56'),
    (lambda: crop(drawn(0), (0, -1, 10, 10)), 'not inside'),
    (lambda: resize(drawn(0), (0, 10)), '1 px or more'),
    (lambda: DetectionAugment(crop_share=(0.5, 1.5)), 'crop_share is a range above 0 up to 1'),
    (lambda: DetectionAugment(short=()), 'short and long are pixels'),
    (lambda: DetectionAugment(flip=2), 'flip is a share'),
    (lambda: SegmentationAugment(ratio=(2, 1)), 'ratio is a range'),
    (lambda: SegmentationAugment(most_of_a_class=0), 'shares from 0 to 1'),
    (lambda: smallest_canvas((9, 9), [(8, 20)]), 'fits on none of the canvases'),
    (lambda: collate([], (8, 8)), 'needs an example'),
    (lambda: collate([drawn(3)], (32, 64)), 'picture 3 of 40x56 px does not fit'),
    (lambda: collate([drawn(3)], (64, 64), max_objects=3), 'picture 3 has 4 objects'),
  ],
)
def test_refuses(call, match):
  with pytest.raises(UserError, match=match):
    call()


def test_detection_views():
  draw = DetectionAugment(short=(40, 60), long=90, jitter=(0.8, 1.2), crop_share=(0.7, 0.9))
  views = [draw(drawn(1), np.random.default_rng(i)) for i in range(12)]
  assert len({v['image'].shape for v in views}) > 6
  for view in views:
    check(view, exact=False)
    assert max(view['image'].shape) <= 108
  same = draw(drawn(1), np.random.default_rng(3))
  np.testing.assert_array_equal(same['image'], views[3]['image'])


def test_segmentation_views():
  draw = SegmentationAugment(short=48, long=200, square=32, photometric=False)
  for i in range(12):
    example = {k: drawn(1)[k] for k in ('image', 'segmentation', 'image_id')}
    view = draw(example, np.random.default_rng(i))
    assert max(view['image'].shape) <= 32 and view['image'].shape[:2] == view['segmentation'].shape
    number = np.rint(view['image'][..., 0] / 60)
    assert (number == view['segmentation']).mean() > 0.8


def test_distortion_changes_colours_and_nothing_else():
  image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
  views = [distort(image, np.random.default_rng(i)) for i in range(16)]
  assert all(v.shape == image.shape and v.dtype == np.uint8 for v in views)
  assert len({v.tobytes() for v in views}) > 12
  assert np.mean([np.abs(v.astype(int) - image).mean() for v in views]) < 60


def test_a_batch_is_padded():
  small = crop(drawn(2), (0, 0, 30, 28))
  small['ignore'] = small['labels'] == 0
  batch = collate([drawn(1), small], (48, 64), max_objects=6, mask_size=16)
  assert batch['images'].shape == (2, 48, 64, 3) and batch['images'].dtype == np.uint8
  np.testing.assert_array_equal(batch['sizes'], [[40, 56], [30, 28]])
  np.testing.assert_array_equal(batch['images'][0, :40, :56], drawn(1)['image'])
  assert not batch['images'][1, 30:].any() and not batch['images'][1, :, 28:].any()
  np.testing.assert_array_equal(batch['labels'][0], [0, 1, 2, 3, -1, -1])
  assert set(batch['labels'][1]) == {-2, 1, -1} and not batch['boxes'][1, 2:].any()
  assert (batch['segmentation'][1, 30:] == 255).all() and batch['image_ids'] == [1, 2]
  # Rectangles fill the frames of their boxes.
  assert batch['masks'].shape == (2, 6, 16, 16) and batch['masks'][0, :4].all()
  assert not batch['masks'][0, 4:].any()
  assert smallest_canvas((40, 56), [(64, 64), (48, 64), (40, 128)]) == (48, 64)


def test_masks_in_frames_by_hand():
  mask = np.zeros((6, 8), bool)
  mask[2:4, 2:6] = True
  got = frame_mask(mask, np.array([2, 1, 6, 5]), 4)
  np.testing.assert_allclose(got, [[0] * 4, [1] * 4, [1] * 4, [0] * 4])
  half = frame_mask(mask, np.array([1.0, 2, 5, 4]), 2)
  np.testing.assert_allclose(half, [[0.5, 1], [0.5, 1]])
  # Half of the frame is outside of the image.
  np.testing.assert_allclose(
    frame_mask(np.ones((6, 8), bool), np.array([4.0, 0, 12, 6]), 2)[:, 1], 0
  )
