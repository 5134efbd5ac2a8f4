"""Settings that only together are wrong, settings younger than a saved run, and the configs."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

from rest_jax.errors import UserError
from rest_jax.models import create_model
from rest_jax.train import config as config_lib

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'optim.freeze': 'stem('}, "'optim.freeze' is no regular expression: missing"),
    ({'optim.schedule': 'step'}, r"optim.step_epochs, rising epochs .* got 'step' and \(\)"),
    ({'optim.step_epochs': (3.0,)}, r"go together; got 'cosine'"),
    ({'optim.schedule': 'step', 'optim.step_epochs': (3.0, 2.0)}, 'rising epochs'),
    ({'optim.layer_decay': 0.0}, 'above 0'),
    ({'adversarial.kind': 'pdg'}, "one of '', pgd, trades, mart, free, fast"),
    ({'adversarial.norm': 'l0'}, 'one of linf, l2, l1'),
    ({'adversarial.eps': -0.1}, '0 or more'),
    ({'adversarial.replays': 0}, 'above 0'),
    (
      {'adversarial.kind': 'free', 'adversarial.norm': 'l1'},
      "takes adversarial.norm 'linf' or 'l2'",
    ),
    (
      {'adversarial.kind': 'mart', 'augment.mixup': 0.8, 'augment.label_smoothing': 0.1},
      'plain labels; set augment.mixup and augment.label_smoothing to 0',
    ),
    ({'augment.group_cam': 1.5}, '0 to 1'),
    ({'augment.padding': 4, 'augment.crop_scale': (0.5, 1.0)}, 'set one of them'),
    ({'optim.min_lr': 1.0}, 'where the cosine ends, is above'),
  ],
)
def test_what_is_refused(config, changes, message):
  for name, value in changes.items():
    group, _, key = name.partition('.')
    config[group][key] = value
  with pytest.raises(UserError, match=message) as caught:
    config_lib.check_config(config)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'optim.warmup_epochs': 20.0}, ['optim.warmup_epochs=20 .* train.epochs=10: .* only rises']),
    ({'optim.warmup_epochs': 10.0}, ['no shorter than']),
    ({'optim.warmup_epochs': 9.9}, []),
    (
      {'optim.schedule': 'step', 'optim.step_epochs': (30.0, 60.0)},
      ['behind .*=10: .*never falls'],
    ),
    ({'optim.schedule': 'step', 'optim.step_epochs': (10.0,)}, ['never falls']),
    ({'optim.schedule': 'step', 'optim.step_epochs': (5.0, 60.0)}, []),
    (
      {'optim.schedule': 'step', 'optim.step_epochs': (30.0,), 'optim.warmup_epochs': 10.0},
      ['only rises', 'never falls'],
    ),
  ],
)
def test_a_learning_rate_beyond_the_end_is_said(config, changes, words):
  """Not refused: short variants of a recipe are there to try things out."""
  for name, value in changes.items():
    group, _, key = name.partition('.')
    config[group][key] = value
  config_lib.check_config(config)
  found = config_lib.out_of_reach(config)
  assert len(found) == len(words)
  assert all(re.search(word, note) for word, note in zip(words, found, strict=True))


def test_a_run_from_before_a_setting_existed_goes_on(config):
  saved = json.loads(json.dumps(config.to_dict()))
  del saved['adversarial'], saved['optim']['freeze'], saved['model']['init']
  assert config_lib.differing_keys(config.to_dict(), saved) == []
  config.optim.freeze = 'stem'
  config.adversarial.kind = 'pgd'
  assert config_lib.differing_keys(config.to_dict(), saved) == ['adversarial.kind', 'optim.freeze']


@pytest.mark.parametrize(
  ('name', 'variants'),
  [
    ('finetune_384', ('tiny', 'small', 'base', 'large')),
    ('digit_scenes_at', ('pgd', 'trades', 'linf8', 'l2', 'short', 'short8')),
    ('cifar10_at', ('pgd', 'trades', 'mart', 'free', 'fast')),
    ('digit_scenes_groupcam', ('default', 'plain')),
    ('finetune_folder', ('default', 'probe')),
  ],
)
def test_configs(monkeypatch, name, variants):
  monkeypatch.syspath_prepend(str(ROOT))
  monkeypatch.delitem(sys.modules, f'configs.{name}', raising=False)
  get_config = importlib.import_module(f'configs.{name}').get_config
  for variant in variants:
    config_lib.check_config(get_config(variant))
  assert get_config() == get_config(variants[0])
  with pytest.raises(UserError, match=f'has no variant .nope.; there are {", ".join(variants)}'):
    get_config('nope')
  assert f'--config configs/{name}.py' in (ROOT / 'configs' / f'{name}.py').read_text()


@pytest.mark.parametrize('name', ['digit_scenes_compression', 'cifar10_compression'])
def test_compression_configs(monkeypatch, name):
  """Every strategy, in a model that can be built and that another strategy can be put into."""
  monkeypatch.syspath_prepend(str(ROOT))
  module = importlib.import_module(f'configs.{name}')
  for variant in module.VARIANTS:
    config = module.get_config(variant)
    config_lib.check_config(config)
    for strategy in ('low_pass', 'learned'):
      config.model.overrides.compression.strategy = strategy
      model = create_model(config.model.name, **config.model.overrides.to_dict())
      assert model.compression.strategy == strategy and model.compression.bands == 8
  assert module.get_config() == module.get_config('learned')
  with pytest.raises(UserError, match=r'has no variant .nope.; there are none, low_pass'):
    module.get_config('nope')
  assert f'--config configs/{name}.py' in (ROOT / 'configs' / f'{name}.py').read_text()


def test_the_384_recipe(monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT))
  config = importlib.import_module('configs.finetune_384').get_config('base')
  assert (config.model.name, config.data.image_size) == ('restv2_base', 384)
  assert config.optim.lr * config.train.batch_size / config.optim.lr_batch == pytest.approx(3e-5)
  assert (config.optim.weight_decay, config.optim.warmup_epochs) == (1e-8, 0.0)
  assert (config.train.epochs, config.train.batch_size, config.optim.clip_norm) == (30.0, 512, 1.0)
  assert config.augment.mixup == config.augment.cutmix == 0.0


def test_places_of_a_config(monkeypatch):
  monkeypatch.setenv('HOME', '/home/somebody')
  found = config_lib.default_config()
  found.data.dir, found.data.name, found.model.init, found.log.wandb = 'None', '~/x', '~/m', 'None'
  config_lib.place_paths(found)
  assert found.data.dir is None and found.log.wandb == ''
  assert (found.data.name, found.model.init) == ('/home/somebody/x', '/home/somebody/m')
  for key, value in (('dir', 'gs://x'), ('dir', ''), ('name', '')):
    wrong = config_lib.default_config()
    wrong.data[key] = value
    with pytest.raises(UserError, match=f'config.data.{key} is '):
      config_lib.place_paths(wrong)
