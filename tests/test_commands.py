"""`rest-jax COMMAND`: one table of commands, and configs that are found by name."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rest_jax import commands, configs, create_model, list_detectors, list_models, list_segmenters
from rest_jax.commands import models
from rest_jax.errors import UserError
from rest_jax.train import default_config, load_config, train


@pytest.mark.parametrize('name', ['train', 'explain', 'defend'])
def test_help_speaks_of_the_way_it_was_called(capsys, monkeypatch, name):
  monkeypatch.setattr('sys.argv', ['/usr/bin/rest-jax', name, '--help'])
  assert commands.main() == 0
  said = capsys.readouterr().out
  assert f'  rest-jax {name} --' in said and f'python {name}.py' not in said
  assert commands.COMMANDS[name][0] == f'rest_jax.commands.{name}'


@pytest.mark.parametrize('name', ['predict', 'convert', 'models'])
def test_help_of_the_other_commands(capsys, monkeypatch, name):
  monkeypatch.setattr('sys.argv', ['/env/rest_jax/__main__.py'])
  with pytest.raises(SystemExit) as end:
    commands.main([name, '--help'])
  assert end.value.code == 0
  assert f'usage: python -m rest_jax {name}' in capsys.readouterr().out


def test_errors_speak_of_the_way_it_was_called(monkeypatch):
  monkeypatch.setattr('sys.argv', ['rest-jax'])
  with pytest.raises(UserError, match='rest-jax train --help lists the flags'):
    commands.main(['train', '--sede', '1'])
  with pytest.raises(UserError, match='rest-jax train --mode evaluate --help lists the flags'):
    commands.main(['train', '--mode', 'evaluate', '--modle', 'x'])


def test_version_and_table(capsys):
  assert commands.main(['--version']) == 0
  assert commands.main([]) == 0
  said = capsys.readouterr().out
  assert said.startswith('rest_jax 0.') and all(f'  {name} ' in said for name in commands.COMMANDS)
  with pytest.raises(UserError, match=r'no command .trian.; did you mean train\?'):
    commands.main(['trian'])


@pytest.mark.parametrize('given', ['rest_small', 'rest_small.py', 'configs/rest_small.py'])
def test_a_config_is_found_by_name_from_anywhere(tmp_path, monkeypatch, given):
  monkeypatch.chdir(tmp_path)
  assert configs.find(given) == configs.FOLDER / 'rest_small.py'


def test_a_file_comes_before_a_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'rest_small.py').write_text('')
  assert str(configs.find('rest_small.py')) == 'rest_small.py'
  with pytest.raises(UserError, match=r'no config file .rest_smal.; there are: .*rest_small\.py'):
    configs.find('rest_smal')


def test_the_front_of_train(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert callable(train) and default_config().train.epochs == 10.0
  assert load_config('digit_scenes:full').train.epochs == 40.0
  assert load_config('digit_scenes', 'smoke').train.epochs == 1.0


def test_every_model_is_in_the_table(capsys):
  assert set(models.PARAMETERS) == set(list_models())
  assert commands.main(['models', 'rest_*']) == 0
  head, *rows = capsys.readouterr().out.splitlines()
  assert head.startswith('model') and [row.split()[0] for row in rows] == list_models('rest_*')
  assert '10,508,300' in rows[2] and '77.2 / 93.7' in rows[2]
  with pytest.raises(UserError, match='did you mean rest_lite'):
    commands.main(['models', 'rest_litte'])


def test_detectors_and_segmenters_are_listed_by_head(capsys):
  assert commands.main(['models']) == 0
  text = capsys.readouterr().out
  assert '  weights here (--model): digit_instances (mask_rcnn_rest_lite)' in text
  for kind, names in (('detectors', list_detectors()), ('segmenters', list_segmenters())):
    block = next(part for part in text.split('\n\n') if part.startswith(kind))
    heads = [head for head in models.HEADS if f'\n  {head}: ' in block]
    words = block.replace(',', ' ').split()
    assert all(any(name == f'{h}_{w}' for h in heads for w in words) for name in names)
  assert commands.main(['models', 'upernet_rest_*']) == 0
  text = capsys.readouterr().out
  assert text.startswith('segmenters') and 'rest_small' in text and 'restv2' not in text
  with pytest.raises(UserError, match='did you mean upernet_rest_small'):
    commands.main(['models', 'upernet_rset_small'])


# Of each family one; the ResTs' numbers are those of tests/models/test_rest.py.
@pytest.mark.parametrize('name', ['resnet20', 'vgg16'])
def test_numbers_of_parameters(name):
  init = functools.partial(create_model(name).init, train=False)
  shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))['params']
  count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))
  assert count == models.PARAMETERS[name]
