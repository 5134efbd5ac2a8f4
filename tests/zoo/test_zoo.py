"""The models that ship: they load, are small, and do what their cards say on fresh scenes."""

from importlib import resources

import jax
import numpy as np
import pytest

from rest_jax import Classifier
from rest_jax.data.digit_scenes import scenes

ZOO = ('cifar10', 'digit_scenes', 'digit_scenes_denoiser')
# Logits of the cifar10 model for the image in its test.
RECORDED = (1.982, -3.0415, 5.6546, 1.445, -1.1334, -6.2181, 5.1764, -7.402, -4.3728, 7.9099)


@pytest.mark.parametrize('name', ZOO)
def test_directory_is_whole_and_small(name):
  directory = resources.files('rest_jax') / 'zoo' / name
  files = {f.name: len(f.read_bytes()) for f in directory.iterdir()}
  assert files.keys() == {'README.md', 'config.json', 'labels.txt', 'model.safetensors'}
  assert sum(files.values()) < 8_000_000


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
