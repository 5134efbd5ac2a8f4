"""Augmentation on the host: torchvision's semantics, case by case."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from rest_jax.data import rand_augment
from rest_jax.data.augmentation import AugmentConfig, augment, eval_view, random_crop_box
from rest_jax.data.images import EncodedImage, decode_image
from rest_jax.errors import UserError

PLAIN = AugmentConfig(crop_scale=None, flip=False)


def noise(height: int = 9, width: int = 9) -> np.ndarray:
  return np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)


@given(
  st.integers(0, 2**32),
  st.integers(1, 300),
  st.integers(1, 300),
  st.floats(0.01, 1),
  st.floats(0.2, 1),
)
def test_a_crop_lies_inside_the_image(seed, height, width, low, ratio):
  rng = np.random.default_rng(seed)
  box = random_crop_box(rng, height, width, (low, 1.0), (ratio, 1 / ratio))
  left, top, right, bottom = box
  assert 0 <= left < right <= width and 0 <= top < bottom <= height


@given(st.integers(0, 2**32), st.floats(0.05, 0.9))
def test_a_crop_keeps_area_and_ratio(seed, low):
  rng = np.random.default_rng(seed)
  box = random_crop_box(rng, 400, 400, (low, low), (0.8, 1.25))
  left, top, right, bottom = box
  assert (right - left) * (bottom - top) == pytest.approx(160_000 * low, rel=0.02)
  assert 0.78 < (right - left) / (bottom - top) < 1.28


@pytest.mark.parametrize(
  ('height', 'width', 'box'),
  # No square of the whole area fits: the largest centred square.
  [(10, 40, (15, 0, 25, 10)), (40, 10, (0, 15, 10, 25))],
)
def test_a_crop_falls_back_to_the_centre(height, width, box):
  rng = np.random.default_rng(0)
  assert random_crop_box(rng, height, width, (1.0, 1.0), (1.0, 1.0)) == box


def test_nothing_to_do_gives_the_image():
  image = noise()
  assert (augment(image, 9, PLAIN, np.random.default_rng(0)) == image).all()


def test_half_of_the_images_are_mirrored():
  image, config = noise(), AugmentConfig(crop_scale=None)
  views = [augment(image, 9, config, np.random.default_rng(seed)) for seed in range(200)]
  mirrored = [(view == image[:, ::-1]).all() for view in views]
  assert 70 < sum(mirrored) < 130
  assert all((view == image).all() for view, m in zip(views, mirrored, strict=True) if not m)


@pytest.mark.parametrize(
  ('kind', 'enhance'),
  [(0, ImageEnhance.Brightness), (1, ImageEnhance.Contrast), (2, ImageEnhance.Color)],
)
def test_jitter_is_pillows(kind, enhance):
  strengths = tuple(0.4 if i == kind else 0.0 for i in range(3))
  config = AugmentConfig(crop_scale=None, flip=False, color_jitter=strengths)
  image = noise()
  view = augment(image, 9, config, np.random.default_rng(5))
  rng = np.random.default_rng(5)
  rng.permutation(3)
  factor = 0.6 + 0.8 * rng.random()
  assert (view == np.asarray(enhance(Image.fromarray(image)).enhance(factor))).all()


def test_padding_shifts_the_image_and_fills_with_black():
  image = np.arange(1, 37, dtype=np.uint8).reshape(6, 6, 1).repeat(3, 2)
  config = AugmentConfig(crop_scale=None, flip=False, padding=2)
  around = np.pad(image, ((2, 2), (2, 2), (0, 0)))
  places = set()
  for seed in range(200):
    view = augment(image, 6, config, np.random.default_rng(seed))
    found = [
      (top, left)
      for top in range(5)
      for left in range(5)
      if np.array_equal(around[top : top + 6, left : left + 6], view)
    ]
    assert len(found) == 1
    places.update(found)
  assert len(places) == 25  # 200 draws miss one of 25 places with a chance of 0.7 %


def test_jitter_in_random_order_differs():
  config = AugmentConfig(crop_scale=None, flip=False, color_jitter=(0.5, 0.5, 0.5))
  views = {augment(noise(), 9, config, np.random.default_rng(s)).tobytes() for s in range(20)}
  assert len(views) == 20


def test_squash_takes_the_whole_image():
  image = np.concatenate([np.zeros((4, 8, 3), np.uint8), np.full((4, 8, 3), 200, np.uint8)])
  view = eval_view(image, 2, interpolation='bilinear')
  assert view[0, 0, 0] < 50 < 150 < view[1, 1, 0]
  assert eval_view(noise(), 9) is not None and (eval_view(noise(), 9) == noise()).all()


@pytest.mark.parametrize(('height', 'width'), [(20, 40), (40, 20)])
def test_resize_crop_takes_the_centre(height, width):
  image = noise(height, width)
  view = eval_view(image, 16, 'resize_crop', crop_pct=0.8)
  # 16 / 0.8 = 20 is the shorter side already: only the centre is cut.
  top, left = (height - 16) // 2, (width - 16) // 2
  assert (view == image[top : top + 16, left : left + 16]).all()


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40), st.floats(0.5, 1))
def test_every_view_has_the_size(height, width, size, crop_pct):
  for resize in ('squash', 'resize_crop'):
    view = eval_view(noise(height, width), size, resize, crop_pct)
    assert view.shape == (size, size, 3)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'crop_scale': (0.0, 1.0)}, 'crop_scale'),
    ({'crop_scale': (0.5, 1.5)}, 'crop_scale'),
    ({'crop_scale': None, 'padding': -1}, 'padding'),
    ({'padding': 4}, 'padding'),
    ({'crop_ratio': (2.0, 1.0)}, 'crop_ratio'),
    ({'color_jitter': (0.1, -0.1, 0.0)}, 'color_jitter'),
    ({'interpolation': 'cubic'}, 'bilinear or bicubic'),
    ({'rand_augment': 'rand-q3'}, 'RandAugment policy'),
    ({'fill': (0, 0, 256)}, 'fill takes three levels'),
  ],
)
def test_bad_configs(options, message):
  with pytest.raises(UserError, match=message):
    AugmentConfig(**options)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'resize': 'stretch'}, 'squash or resize_crop'),
    ({'crop_pct': 0.0}, 'crop_pct'),
    ({'interpolation': 'nearest'}, 'bilinear or bicubic'),
  ],
)
def test_bad_views(options, message):
  with pytest.raises(UserError, match=message):
    eval_view(noise(), 9, **options)


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
def test_rand_augment_comes_after_crop_and_flip(interpolation):
  policy = 'rand-m9-mstd0.5-inc1'
  config = AugmentConfig(rand_augment=policy, fill=(1, 2, 3), interpolation=interpolation)
  plain = AugmentConfig(interpolation=interpolation)
  changed = 0
  for seed in range(20):
    image = noise(40, 30)
    rng = np.random.default_rng(seed)
    before = augment(image, 16, plain, rng)
    steps = rand_augment.parse(policy).draw(rng, interpolation)
    wanted = np.asarray(rand_augment.apply(Image.fromarray(before), steps, (1, 2, 3)))
    view = augment(image, 16, config, np.random.default_rng(seed))
    np.testing.assert_array_equal(view, wanted)
    changed += (view != before).any()
  assert 8 < changed < 20


def test_an_image_that_is_not_decoded_yet_gives_the_same_view():
  file = io.BytesIO()
  Image.fromarray(noise(50, 70)).save(file, 'jpeg')
  config = AugmentConfig(rand_augment='rand-m9-mstd0.5-inc1', color_jitter=(0.4, 0.4, 0.4))
  scaled = dataclasses.replace(config, scaled_decoding=True)
  whole = decode_image(file.getvalue(), 'x')
  for seed in range(5):
    wanted = augment(whole, 8, config, np.random.default_rng(seed))
    lazy = EncodedImage(file.getvalue(), 'x')
    np.testing.assert_array_equal(augment(lazy, 8, config, np.random.default_rng(seed)), wanted)
    # A crop of less than twice the size is decoded whole.
    large = augment(whole, 40, config, np.random.default_rng(seed))
    lazy = augment(lazy, 40, scaled, np.random.default_rng(seed))
    np.testing.assert_array_equal(lazy, large)
