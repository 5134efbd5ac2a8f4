"""`python -m rest_jax.models.convert`: a model directory, or one line and exit status 2."""

import functools
import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from rest_jax import opening
from rest_jax.defend import command as defend_command
from rest_jax.errors import UserError, run_script
from rest_jax.explain import command as explain_command
from rest_jax.models import convert, create_model, model_dir, registry
from rest_jax.models.classifier import Classifier
from rest_jax.models.resnet import ResNet
from rest_jax.train import validation_command
from rest_jax.train.classifying import initial as load_initial
from rest_jax.train.config import default_config


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  """Zeros under the official names of rest_lite."""
  model = create_model('rest_lite')
  specs = model_dir.abstract_tensors(model)
  zeros = model_dir.unflatten({n: np.zeros(s.shape, s.dtype) for n, s in specs.items()})
  state_dict = convert.to_pytorch(zeros, model) | {'norm.bias': np.arange(512, dtype=np.float32)}
  path = tmp_path_factory.mktemp('official') / 'rest_lite.safetensors'
  safetensors.numpy.save_file(state_dict, path)
  return path


def run(*argv):
  """Exit status of the command."""
  with pytest.raises(SystemExit) as end:
    run_script(lambda: convert.main([str(word) for word in argv]))
  return end.value.code


def test_writes_a_model_directory(checkpoint, tmp_path, capsys):
  out = tmp_path / 'sub' / 'lite'
  assert run(checkpoint, '--model', 'rest_lite', '--out', out) == 0
  assert 'wrote' in capsys.readouterr().out
  config = json.loads((out / 'config.json').read_text())
  assert config['mean'] == [0.485, 0.456, 0.406] and config['std'] == [0.229, 0.224, 0.225]
  assert (config['input_size'], config['resize'], config['crop_pct']) == (224, 'resize_crop', 0.875)
  assert config['interpolation'] == 'bicubic' and config['num_classes'] == 1000
  assert 'rest_lite.safetensors' in (out / 'README.md').read_text()
  classifier = Classifier.load(out)
  assert classifier.variables['params']['norm']['bias'][511] == 511
  assert sum(x.size for x in jax.tree.leaves(classifier.variables['params'])) == 10_508_300


def test_another_head_and_labels(checkpoint, tmp_path, caplog):
  labels, out = tmp_path / 'labels.txt', tmp_path / 'out'
  labels.write_text('\ufeffcat\ndog\n')  # with a mark that an editor put in front
  words = (checkpoint, '--model', 'rest_lite', '--out', out, '--num_classes', 2)
  assert run(*words, '--labels', labels, '--drop_head') == 0
  assert 'head.weight' in caplog.text
  classifier = Classifier.load(out)
  assert classifier.class_names == ('cat', 'dog')
  assert np.any(np.asarray(classifier.variables['params']['head']['kernel']))


@pytest.mark.parametrize(
  'options, message',
  [
    (['--model', 'rest_lite', '--num_classes', '5'], '--drop_head'),
    (['--model', 'rest_small'], 'is not a checkpoint of rest_small'),
    (['--model', 'rest_smal'], 'rest_small'),
    (['--model', 'rest_lite', '--labels', 'absent.txt'], 'absent.txt'),
    (['--model', 'rest_lite', '--ema'], 'ema'),
    (['--model', 'rest_lite', '--num_classes', '-1'], '--num_classes'),
  ],
)
def test_bad_input_is_one_line(options, message, checkpoint, tmp_path, capsys):
  assert run(checkpoint, '--out', tmp_path / 'out', *options) == 2
  error = capsys.readouterr().err
  assert message in error and error.startswith('error: ') and error.count('\n') == 1
  assert not (tmp_path / 'out').exists()


def test_wrong_number_of_labels(checkpoint, tmp_path, capsys):
  (tmp_path / 'labels.txt').write_text('cat\n')
  words = (checkpoint, '--model', 'rest_lite', '--out', tmp_path / 'out')
  assert run(*words, '--labels', tmp_path / 'labels.txt') == 2
  assert '1 class name for 1000 classes' in capsys.readouterr().err


@pytest.fixture(scope='module')
def small(tmp_path_factory):
  """Checkpoints of a small ResNet-18 with five classes: whole, and without its head."""
  place = tmp_path_factory.mktemp('small')
  registry._BUILDERS['tiny18'] = functools.partial(ResNet, width=4, depths=(1, 1, 1, 1))
  model = create_model('tiny18', 5)
  specs = model_dir.abstract_tensors(model)
  zeros = model_dir.unflatten({n: np.zeros(s.shape, s.dtype) for n, s in specs.items()})
  whole = convert.to_pytorch(zeros, model)
  safetensors.numpy.save_file(whole, place / 'whole.safetensors')
  headless = {n: a for n, a in whole.items() if not n.startswith('fc.')}
  safetensors.numpy.save_file(headless, place / 'headless.safetensors')
  yield place
  del registry._BUILDERS['tiny18']


def test_classes_come_from_the_file(small, tmp_path):
  assert run(small / 'whole.safetensors', '--model', 'tiny18', '--out', tmp_path / 'out') == 0
  assert Classifier.load(tmp_path / 'out').num_classes == 5


def by_convert(path):
  convert.main([str(path), '--model', 'tiny18', '--out', str(path.with_suffix('.out'))])


def by_opening(path):
  opening.open_classifier(str(path), 'tiny18')


@pytest.mark.parametrize(
  ('command', 'flags'),
  [
    (by_convert, {f.option_strings[0] for f in convert._parser()._actions if f.option_strings}),
    (by_opening, {f'--{name}' for name in validation_command._define()}),
    (by_opening, {f'--{flag.name}' for flag in explain_command._FLAGS}),
    (by_opening, {f'--{flag.name}' for flag in defend_command._FLAGS}),
  ],
)
def test_a_missing_head_names_an_option_of_the_command(small, command, flags):
  with pytest.raises(UserError, match=r'has no head \(fc.bias, fc.weight\)') as caught:
    command(small / 'headless.safetensors')
  named = set(re.findall(r'--\w+', str(caught.value)))
  assert named and named <= flags, named - flags


def test_training_starts_a_new_head_for_a_checkpoint_without_one(small):
  config = default_config()
  config.model.update(name='tiny18', init=str(small / 'headless.safetensors'))
  tensors, what = load_initial(config, 3)
  assert 'but a new head for 3 classes' in what and not any('head' in name for name in tensors)


def test_as_a_module(tmp_path):
  """The real command: exit status, one line, and no warning of a double import."""
  words = ['-m', 'rest_jax.models.convert', 'absent.pth', '--model', 'rest_lite', '--out', 'out']
  done = subprocess.run(
    [sys.executable, '-W', 'error', *words], cwd=tmp_path, capture_output=True, text=True
  )
  assert done.returncode == 2
  assert done.stderr == 'error: there is no checkpoint absent.pth\n'
