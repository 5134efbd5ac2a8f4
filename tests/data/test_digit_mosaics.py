"""digit_mosaics: what the mosaics promise."""

import numpy as np
import pytest

from rest_jax.data import digit_mosaics, digit_scenes
from rest_jax.data.digit_mosaics import MosaicSource, load_digit_mosaics
from rest_jax.data.geometry import tight_boxes
from rest_jax.errors import UserError


@pytest.fixture(scope='module')
def scenes():
  made = digit_scenes.scenes('test', 24)
  return [{'image': s.image, 'mask': s.mask, 'label': s.label} for s in made]


@pytest.fixture(scope='module')
def source(scenes):
  return MosaicSource(scenes, 'test', 30)


def test_boxes_masks_and_classes_agree(source):
  counts, ignored = [], 0
  for i in range(len(source)):
    example = source[i]
    assert example['image'].shape == (128, 128, 3) and example['image_id'] == i
    classes = np.zeros((128, 128), np.uint8)
    for mask, label in zip(example['masks'], example['labels'], strict=True):
      assert not classes[mask].any()  # digits of a mosaic never overlap
      classes[mask] = label + 1
    np.testing.assert_array_equal(example['segmentation'], classes)
    np.testing.assert_array_equal(example['boxes'], tight_boxes(example['masks']))
    np.testing.assert_array_equal(example['areas'], example['masks'].sum((1, 2)))
    counts.append(len(example['labels']))
    ignored += example['ignore'].sum()
  assert 3 < np.mean(counts) < 7 and 0 < ignored < sum(counts) / 2


def test_mosaics_are_the_same_every_time_and_differ(source, scenes):
  again = MosaicSource(scenes, 'test', 30)
  np.testing.assert_array_equal(source[3]['image'], again[3]['image'])
  np.testing.assert_array_equal(source[-1]['image'], source[29]['image'])
  assert (source[3]['image'] != source[4]['image']).any()
  other = MosaicSource(scenes, 'train', 30)
  assert (source[3]['image'] != other[3]['image']).any()
  with pytest.raises(IndexError):
    source[30]
  assert sum(1 for _ in source) == 30


def test_scenes_are_prepared_on_first_use(tmp_path, monkeypatch):
  monkeypatch.setattr(digit_scenes.DigitScenes, 'SCENES', {'train': 8, 'test': 4})
  sources = load_digit_mosaics(tmp_path, train=5, test=2)
  assert (len(sources.train), len(sources.test)) == (5, 2)
  assert sources.class_names == tuple('0123456789') == sources.train.class_names
  assert sources.test[1]['masks'].any() and len(digit_mosaics.PIXEL_CLASSES) == 11
  with pytest.raises(UserError, match='1 mosaic or more'):
    load_digit_mosaics(tmp_path, test=0)
