"""The table of keys, and what check_config refuses."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from rest_jax.errors import UserError
from rest_jax.train import config as config_lib

ROOT = Path(__file__).parents[2]
IMAGENET = [f'rest_{s}' for s in ('lite', 'small', 'base', 'large')]
IMAGENET += [f'restv2_{s}' for s in ('tiny', 'small', 'base', 'large')]


@pytest.fixture
def load(monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT))

  def get(name):
    monkeypatch.delitem(sys.modules, f'configs.{name}', raising=False)
    return importlib.import_module(f'configs.{name}').get_config

  return get


def test_default_config_is_valid_and_every_key_explained():
  config = config_lib.default_config()
  config_lib.check_config(config)
  text = config_lib.describe()
  for name in config_lib.known_keys():
    assert f'--config.{name}=' in text
  assert all(meaning for group in config_lib.FIELDS.values() for _, meaning in group.values())


def test_defaults_are_not_shared():
  config_lib.default_config().model.overrides.depths = (1,)
  assert not config_lib.default_config().model.overrides


@pytest.mark.parametrize('variant', ['default', 'full', 'smoke'])
def test_digit_scenes(load, variant):
  config = load('digit_scenes')(variant)
  config_lib.check_config(config)
  assert not config.augment.flip  # digits


@pytest.mark.parametrize('name', IMAGENET)
def test_imagenet_recipes(load, name):
  config = load(name)()
  config_lib.check_config(config)
  assert config.model.name == name
  lr = config.optim.lr * config.train.batch_size / config.optim.lr_batch
  v2 = name.startswith('restv2')
  assert lr == pytest.approx(1.2e-3 if v2 else 2e-3)
  assert config.optim.clip_norm == (1.0 if v2 else 5.0)
  assert config.train.ema == (0.9999 if v2 else 0.0)
  assert config.optim.warmup_epochs == (50.0 if v2 else 5.0)
  text = (ROOT / 'configs' / f'{name}.py').read_text()
  assert f'--config configs/{name}.py' in text and 'Time and device: not measured' in text
  augment = config.augment
  assert augment.rand_augment == 'rand-m9-mstd0.5-inc1' and not augment.color_jitter
  assert augment.repeats == (1 if v2 else 3)


@pytest.mark.parametrize(
  ('key', 'near'),
  [
    ('optim.lrr', 'optim.lr'),
    ('lr', 'optim.lr'),
    ('train.epoch', 'train.epochs'),
    ('zz', '--help'),
  ],
)
def test_unknown_key_names_the_nearest(key, near):
  with pytest.raises(UserError, match=f'{key!r}.*{near}'):
    config_lib.check_key(key)


def test_unknown_key_in_a_config_file():
  config = config_lib.default_config()
  config.optim.learning_rate = 1e-3
  with pytest.raises(UserError, match=r"unknown config key 'optim.learning_rate'"):
    config_lib.check_config(config)


def test_missing_key():
  config = config_lib.default_config()
  del config.optim.lr
  with pytest.raises(UserError, match=r"'optim.lr' is missing"):
    config_lib.check_config(config)


def test_not_a_config():
  with pytest.raises(UserError, match=r'NoneType'):
    config_lib.check_config(None)


@pytest.mark.parametrize(
  ('group', 'key', 'value', 'message'),
  [
    ('train', 'batch_size', 'many', 'takes int'),
    ('train', 'batch_size', 2.5, 'takes int'),
    ('train', 'batch_size', 0, 'above 0'),
    ('train', 'sync_bn', 1, 'takes bool'),
    ('train', 'ema', 1.0, 'below 1'),
    ('augment', 'mixup', -0.1, '0 or more'),
    ('augment', 'erasing', 1.5, '0 to 1'),
    ('augment', 'crop_scale', (0.1,), '0 or 2 numbers'),
    ('data', 'mean', 0.5, 'takes tuple'),
    ('data', 'dir', 3, 'takes str'),
    ('optim', 'name', 'adam', 'one of adamw, sgd'),
    ('optim', 'lr', float('nan'), 'above 0'),
    ('model', 'dtype', 'float16', 'one of float32, bfloat16'),
  ],
)
def test_wrong_types_and_values(group, key, value, message):
  config = config_lib.default_config()
  with config[group].ignore_type():
    config[group][key] = value
  with pytest.raises(UserError, match=f"'{group}.{key}'.*{message}"):
    config_lib.check_config(config)


def test_whole_numbers_and_lists_are_taken():
  config = config_lib.default_config()
  with config.ignore_type():
    config.optim.lr = 1
    config.data.mean = [0.5, 0.5, 0.5]
  config_lib.check_config(config)


def test_differing_keys_leaves_out_what_changes_nothing():
  config = config_lib.default_config()
  saved = json.loads(json.dumps(config.to_dict()))
  assert config_lib.differing_keys(config.to_dict(), saved) == []
  config.log.every = 7
  config.data.cache = True
  config.train.checkpoint_every_steps = 5
  assert config_lib.differing_keys(config.to_dict(), saved) == []
  config.optim.lr = 0.5
  config.model.overrides = {'depths': (1, 1, 1, 1)}
  assert config_lib.differing_keys(config.to_dict(), saved) == ['model.overrides', 'optim.lr']
