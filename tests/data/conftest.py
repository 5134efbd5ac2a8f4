"""Data that several test files of this folder share; small TFDS data sets among them."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from rest_jax.data.sources import CachedSource


def _toy_image(split: str, index: int) -> np.ndarray:
  """The pixels of an example: (8, 10, 3) uint8."""
  rng = np.random.default_rng([len(split), index])
  return rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)


def _png(image: np.ndarray) -> io.BytesIO:
  file = io.BytesIO()
  Image.fromarray(image).save(file, format='png')
  file.seek(0)
  return file


class ToyPictures(tfds.core.GeneratorBasedBuilder):
  """Ten train and four validation images of two classes, and no split called test."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(shape=(8, 10, 3), encoding_format='png'),
          'label': tfds.features.ClassLabel(names=['cat', 'dog']),
          'weight': np.float32,
        }
      ),
    )

  def _split_generators(self, dl_manager):
    return {
      'train': self._generate_examples('train', 10),
      'validation': self._generate_examples('validation', 4),
    }

  def _generate_examples(self, split, count):
    for index in range(count):
      image = _png(_toy_image(split, index))
      yield index, {'image': image, 'label': index % 2, 'weight': index / 2}


class ToyNumbers(tfds.core.GeneratorBasedBuilder):
  """A data set without images."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    features = tfds.features.FeaturesDict({'value': np.int64})
    return tfds.core.DatasetInfo(builder=self, features=features)

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples()}

  def _generate_examples(self):
    yield 0, {'value': 1}


@pytest.fixture(scope='session')
def toy_data_dir(tmp_path_factory):
  """A TFDS data directory with `toy_pictures` and `toy_numbers`."""
  root = tmp_path_factory.mktemp('tfds')
  for builder in (ToyPictures, ToyNumbers):
    builder(data_dir=root, file_format='array_record').download_and_prepare()
  return root


@pytest.fixture(scope='session')
def toy_image():
  """(split, index) -> the pixels of an example of `toy_pictures`, (8, 10, 3) uint8."""
  return _toy_image


@pytest.fixture
def numbered():
  """Builds a source of noise images whose labels are their numbers."""

  def build(count: int, height: int = 12, width: int = 12) -> CachedSource:
    rng = np.random.default_rng(count)
    images = rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return CachedSource(images, np.arange(count, dtype=np.int32))

  return build
