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


class ToyThree(ToyPictures):
  """Six train, four validation and three test images, the latter without labels or with."""

  BUILDER_CONFIGS = [  # noqa: RUF012
    tfds.core.BuilderConfig(name=name, version='1.0.0', description=name)
    for name in ('labelled', 'unlabelled')
  ]

  def _split_generators(self, dl_manager):
    counts = {'train': 6, 'validation': 4, 'test': 3}
    return {split: self._generate_examples(split, count) for split, count in counts.items()}

  def _generate_examples(self, split, count):
    for index, example in super()._generate_examples(split, count):
      if split == 'test' and self.builder_config.name == 'unlabelled':
        example = {**example, 'label': -1}
      yield index, example


class ToyJudged(ToyPictures):
  """Four images in the only split, which is called judged."""

  def _split_generators(self, dl_manager):
    return {'judged': self._generate_examples('train', 4)}


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
  """A TFDS data directory with the data sets above."""
  root = tmp_path_factory.mktemp('tfds')
  for builder in (ToyPictures, ToyNumbers, ToyJudged):
    builder(data_dir=root, file_format='array_record').download_and_prepare()
  for config in ('labelled', 'unlabelled'):
    builder = ToyThree(data_dir=root, config=config, file_format='array_record')
    builder.download_and_prepare()
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
