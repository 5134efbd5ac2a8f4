"""The models that ship: they load, are small, and do what their cards say on fresh scenes."""

from importlib import resources

import jax
import numpy as np
import pytest

from rest_jax import Classifier, Detector, Segmenter, UserError
from rest_jax.data.digit_mosaics import MosaicSource
from rest_jax.data.digit_scenes import scenes

ZOO = {
  'cifar10': 8,
  'digit_instances': 4,
  'digit_scenes': 8,
  'digit_scenes_denoiser': 8,
  'digit_segments': 4,
}  # and how many MB each may have
# Logits of the cifar10 model for the image in its test.
RECORDED = (1.982, -3.0415, 5.6546, 1.445, -1.1334, -6.2181, 5.1764, -7.402, -4.3728, 7.9099)


@pytest.mark.parametrize(('name', 'megabytes'), ZOO.items())
def test_directory_is_whole_and_small(name, megabytes):
  directory = resources.files('rest_jax') / 'zoo' / name
  files = {f.name: len(f.read_bytes()) for f in directory.iterdir()}
  assert files.keys() == {'README.md', 'config.json', 'labels.txt', 'model.safetensors'}
  assert sum(files.values()) < megabytes * 1_000_000


def test_digit_scenes_recognises_test_scenes():
  classifier = Classifier.load('digit_scenes')
  chosen = list(scenes('test', 256))
  images = np.stack([scene.image for scene in chosen]).astype(np.float32) / 255
  labels = np.array([scene.label for scene in chosen])
  predicted = np.argmax(jax.jit(lambda c, x: c(x))(classifier, images), axis=-1)
  # The card says over 97 % of 2,000; of 256 of them at least 94 % leaves room for chance alone.
  assert np.mean(predicted == labels) >= 0.94
  assert classifier.class_names == tuple('0123456789')


def test_cifar10_computes_what_it_did_when_it_was_measured():
  classifier = Classifier.load('cifar10')
  names = 'airplane automobile bird cat deer dog frog horse ship truck'
  assert classifier.class_names == tuple(names.split())
  image = np.random.default_rng(0).uniform(size=(1, 32, 32, 3)).astype(np.float32)
  logits = jax.jit(lambda c, x: c(x))(classifier, image)[0]
  np.testing.assert_allclose(logits, RECORDED, atol=2e-3)


@pytest.fixture(scope='module')
def mosaics():
  made = [{'image': s.image, 'mask': s.mask, 'label': s.label} for s in scenes('test', 90)]
  return list(MosaicSource(made, 'test', 12))


def overlap(a, b):
  return (a & b).sum() / (a | b).sum()


def test_digit_instances_finds_digits_and_their_masks(mosaics):
  detector = Detector.load('digit_instances')
  found, digits, overlaps = 0, 0, []
  for mosaic in mosaics:
    objects = detector.predict(mosaic['image'], least_score=0.3)
    for mask, label in zip(
      mosaic['masks'][~mosaic['ignore']], mosaic['labels'][~mosaic['ignore']], strict=True
    ):
      same = [overlap(mask, m) for m in objects.masks[objects.labels == label]]
      found, digits = found + (max(same, default=0) > 0.5), digits + 1
      overlaps += [max(same)] if same else []
  # The card says a mask AP50 over 90 %; of the dozens here chance alone may take some.
  assert digits > 25 and found >= 0.8 * digits and np.mean(overlaps) > 0.6


def test_digit_segments_gives_pixels_their_digit(mosaics):
  segmenter = Segmenter.load('digit_segments')
  right = [np.mean(segmenter.predict(m['image']) == m['segmentation']) for m in mosaics[:6]]
  assert np.mean(right) > 0.95  # all background: 0.87


def test_a_detector_of_the_zoo_is_no_classifier():
  with pytest.raises(UserError, match='describes a detector'):
    Classifier.load('digit_instances')
  with pytest.raises(UserError, match='describes a segmenter, not a detector'):
    Detector.load('digit_segments')
