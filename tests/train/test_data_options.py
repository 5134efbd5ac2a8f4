"""What a config says about images reaches the input pipeline."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from rest_jax.errors import UserError
from rest_jax.train import config as config_lib
from rest_jax.train import pipeline


@pytest.fixture
def config(tmp_path):
  """A folder of eight images, one of which is no image; nothing augmented."""
  for number in range(8):
    path = tmp_path / 'images' / 'train' / str(number % 2) / f'{number}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), 10 * number, np.uint8)).save(path)
  path.write_bytes(b'not an image')
  test = tmp_path / 'images' / 'test' / '0'
  test.mkdir(parents=True)
  (test / 'x.png').write_bytes(b'neither')
  config = config_lib.default_config()
  config.data.name, config.data.image_size = str(tmp_path / 'images'), 8
  config.train.batch_size, config.data.eval_batch_size = 8, 4
  return config


@pytest.mark.parametrize('cache', [False, True])
def test_on_error_reaches_training_testing_and_cache(config, cache):
  config.data.cache, config.data.on_error = cache, 'skip'
  sources = pipeline.load_sources(config)
  batches = pipeline.train_batches(config, sources.train)
  assert next(batches)['label'].shape == (8,)
  batches.close()
  (batch,) = pipeline.test_batches(config, sources.test)
  assert not batch['mask'].any()
  config.data.on_error = 'fatal'
  with pytest.raises(UserError, match=r'7\.png'):
    next(pipeline.train_batches(config, pipeline.load_sources(config).train))


def test_augmentation_options_reach_the_views(config):
  config.data.mean, config.data.scaled_decoding = (0.5, 0.25, 1.0), True
  config.augment.rand_augment, config.augment.repeats = 'rand-m9-n3', 2
  batches = pipeline.train_batches(config, pipeline.load_sources(config).train)
  views = batches._batches
  assert views.config.rand_augment == 'rand-m9-n3' and views.config.scaled_decoding
  assert views.config.fill == (128, 64, 255) and views.repeats == 2
  config.augment.rand_augment = 'rand-z'
  with pytest.raises(UserError, match='RandAugment policy'):
    pipeline.train_batches(config, batches._batches.source)


@pytest.mark.parametrize(
  ('group', 'key', 'value'), [('data', 'on_error', 'ignore'), ('augment', 'repeats', 0)]
)
def test_wrong_values_are_refused(config, group, key, value):
  config[group][key] = value
  with pytest.raises(UserError, match=f"'{group}.{key}' is"):
    config_lib.check_config(config)


def test_a_run_may_go_on_with_another_on_error(config):
  saved = json.loads(json.dumps(config.to_dict()))
  config.data.on_error = 'skip'
  assert config_lib.differing_keys(config.to_dict(), saved) == []
  config.augment.repeats = 3
  assert config_lib.differing_keys(config.to_dict(), saved) == ['augment.repeats']


def test_scaled_decoding_means_nothing_beside_a_cache(config):
  config.data.cache = config.data.scaled_decoding = True
  with pytest.raises(UserError, match='set one of them to False'):
    pipeline.load_sources(config)
