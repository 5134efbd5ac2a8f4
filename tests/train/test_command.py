"""The command line: what is resolved, and one clear line for what is wrong."""

from pathlib import Path

import pytest

from rest_jax.errors import UserError
from rest_jax.train import command

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
  monkeypatch.chdir(ROOT)
  monkeypatch.syspath_prepend(str(ROOT))


def parse(*args):
  return command.parse(['train.py', *args], 'Usage.')


def test_defaults():
  parsed = parse()
  assert parsed.output == Path('work/digit_scenes')
  assert parsed.config.data.name == 'digit_scenes'
  assert parsed.config.is_locked
  assert (parsed.coordinator, parsed.num_processes, parsed.process_id) == (None, None, None)


def test_variant_names_the_output():
  parsed = parse('--config=configs/digit_scenes.py:full')
  assert parsed.output == Path('work/digit_scenes_full')
  assert parsed.config.train.epochs > parse().config.train.epochs


def test_short_flags_and_overrides_in_any_order():
  parsed = parse(
    *('--config.optim.lr=0.5', '--seed', '3', '--data_dir', 'd', '--config'),
    *('configs/digit_scenes.py:smoke', '--batch_size=16', '--epochs', '2.5', '--output', 'o'),
    *('--config.augment.crop_scale=(0.5, 1.0)', '--config.data.cache=false'),
    "--config.model.overrides={'depths': (1, 1, 1, 1)}",
    *('--coordinator=host:1', '--num_processes=2', '--process_id=1'),
  )
  config = parsed.config
  assert (config.seed, config.data.dir, config.train.batch_size) == (3, 'd', 16)
  assert (config.train.epochs, config.optim.lr, config.data.cache) == (2.5, 0.5, False)
  assert config.augment.crop_scale == (0.5, 1.0)
  assert config.model.overrides.to_dict() == {'depths': (1, 1, 1, 1)}
  assert (parsed.output, parsed.process_id) == (Path('o'), 1)


def test_help_explains_everything(capsys):
  assert parse('--help') is None
  text = capsys.readouterr().out
  for word in ('Usage.', '--output', '--seed', '--config.optim.clip_norm=0.0', 'label_smoothing'):
    assert word in text


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (('--config', 'configs/none.py'), "no config file 'configs/none.py'.*digit_scenes.py"),
    (('--config',), "no config file ''"),
    (('--config', 'configs/digit_scenes.py:huge'), 'no variant .huge.; there are default'),
    (('--config.optim.lrr=1',), "unknown config key 'optim.lrr'; did you mean optim.lr"),
    (('--config.train.nope', '1'), "unknown config key 'train.nope'"),
    (('--config.optim.lr=fast',), 'config.optim.lr=fast'),
    (('--config.train.sync_bn=perhaps',), 'sync_bn'),
    (('--config.model.overrides.nope=1',), r'only .*drop_path_rate'),
    (('--config.optim.lr=-1',), "'optim.lr' is -1.0; it takes a number above 0"),
    (('--batch_size', '0'), "'train.batch_size' is 0"),
    (('--batch_size', 'many'), 'batch_size=many'),
    (('--seed', '-1'), "'seed' is -1"),
    (('--learning_rate=1',), "Unknown command line flag 'learning_rate'"),
    (('stray',), "unexpected argument 'stray'"),
  ],
)
def test_bad_command_lines(args, message):
  with pytest.raises(UserError, match=message) as caught:
    parse(*args)
  assert 'Traceback' not in str(caught.value)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('def get_config(:\n', r'bad.py.*SyntaxError'),
    ('import no_such_module\n', r'bad.py, line 1: ModuleNotFoundError.*no_such_module'),
    ('def get_config():\n  return 1 / 0\n', r'bad.py, line 2: ZeroDivisionError'),
    ('def get_config():\n  return 3\n', 'returned int, not a ConfigDict'),
    ('def get_config():\n  open("missing")\n', r'bad.py.*missing'),
    ('x = 1\n', 'AttributeError.*get_config'),
  ],
)
def test_bad_config_files(tmp_path, text, message):
  path = tmp_path / 'bad.py'
  path.write_text(text)
  with pytest.raises(UserError, match=message) as caught:
    parse(f'--config={path}')
  assert '\n' not in str(caught.value)
