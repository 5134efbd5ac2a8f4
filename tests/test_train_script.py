"""train.py as a user starts it: killed, stopped, on two processes, and with bad input."""

import json
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[1]
STEPS = 96  # every seventh saves, which takes longer than to step

CONFIG = """
import flax.linen as nn
from rest_jax.models import registry
from rest_jax.models.layers import BatchNorm
from rest_jax.train.config import default_config


class Tiny(nn.Module):  # compiles in an instant
  num_classes: int = 2
  dtype: str | None = None
  bn_axis_name: str | None = None

  @nn.compact
  def __call__(self, x, train=False):
    # No bias before a norm: its gradient is 0 but for rounding, which AdamW makes whole steps of.
    x = nn.Conv(8, (3, 3), strides=2, use_bias=False, name='conv')(x)
    x = nn.relu(BatchNorm(axis_name=self.bn_axis_name, name='norm')(x, train))
    return nn.Dense(self.num_classes, name='head')(x.mean((1, 2)))


def get_config(variant='random'):
  config = default_config()
  if variant == 'tiny':
    registry.register('tiny')(Tiny)
    config.model.name = 'tiny'
  else:
    config.model.name = 'resnet18'
    config.model.overrides = dict(width=4, depths=(1, 1, 1, 1))
    # Drawn on the device, by the number of the step.
    config.augment.mixup = config.augment.erasing = 0.3
  config.data.name = {folder!r}
  config.data.image_size = 32
  config.augment.crop_scale = (0.5, 1.0)
  config.augment.interpolation = 'bicubic'
  config.optim.warmup_epochs = 1.0
  config.train.batch_size = 8
  config.train.epochs = {epochs}
  config.train.eval_every = config.train.epochs
  config.train.checkpoint_every_steps = 7
  config.log.every = 3
  return config
"""
# Runs train.py and says which modules it imported that it must not.
WATCHED = """
import runpy, sys
try:
  runpy.run_path('train.py', run_name='__main__')
finally:
  print('IMPORTED', [m for m in ('tensorflow', 'torch', 'jaxlib') if m in sys.modules])
"""


@pytest.fixture(scope='module')
def experiment(tmp_path_factory):
  """A folder of coloured noise and a config file; (config path, function that starts train.py)."""
  from PIL import Image

  root = tmp_path_factory.mktemp('experiment')
  rng = np.random.default_rng(0)
  for index in range(64):
    pixels = rng.integers(0, 100, (32, 32, 3), dtype=np.uint8)
    pixels[..., index % 2] += 120
    place = root / 'images' / ('train' if index < 48 else 'test') / str(index % 2)
    place.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(place / f'{index}.png')
  config = root / 'tiny.py'
  folder = str(root / 'images')
  config.write_text(CONFIG.format(folder=folder, epochs=STEPS / 6))
  return config


def start(*args, devices=1, code=None):
  # Compiling is most of these tests' time; what it optimises is not what they are about.
  quick = os.environ['REST_JAX_QUICK_FLAGS']
  flags = f'--xla_force_host_platform_device_count={devices} {quick}'
  env = os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu', 'PYTHONUNBUFFERED': '1'}
  command = ['-c', code] if code else ['train.py']
  return subprocess.Popen(
    [sys.executable, *command, *map(str, args)],
    cwd=ROOT,
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(process, status=0):
  out, err = process.communicate(timeout=300)
  assert process.returncode == status, err
  return out, err


def wait_for(process, condition):
  while not condition():
    assert process.poll() is None, process.communicate()
    time.sleep(0.005)


def steps_saved(workdir):
  return [int(p.name) for p in (workdir / 'checkpoints' / 'last').glob('*') if p.name.isdigit()]


def weights(workdir):
  return load_file(workdir / 'model' / 'model.safetensors')


@pytest.fixture(scope='module')
def undisturbed(experiment, tmp_path_factory):
  """(work directory, output) of a run from start to end."""
  workdir = tmp_path_factory.mktemp('undisturbed')
  return workdir, *finish(start('--config', experiment, '--output', workdir, code=WATCHED))


def test_neither_tensorflow_nor_torch_is_imported(undisturbed):
  _, out, _ = undisturbed
  assert "IMPORTED ['jaxlib']" in out


def test_the_terminal_stays_clean(undisturbed):
  workdir, out, err = undisturbed
  assert err == ''
  lines = out.splitlines()
  assert lines[0].startswith(f'Training for {STEPS} steps in {workdir} on 48 images of 2 classes')
  assert lines[0].endswith('(train): 0, 1; test (16 images) chooses the best epoch')
  assert any('top-1' in line and 'img/s' in line for line in lines)
  assert all(line.startswith(('Training', 'step', 'epoch', 'Finished', 'IMP')) for line in lines)


def test_killed_and_stopped_at_any_moment_ends_in_the_same_bits(experiment, undisturbed, tmp_path):
  command = ('--config', experiment, '--output', tmp_path)
  chance = random.Random()  # a new moment on every run of the tests

  killed = start(*command)
  wait_for(killed, lambda: steps_saved(tmp_path))
  time.sleep(chance.uniform(0.0, 0.6))
  killed.kill()
  killed.communicate()
  reached = max(steps_saved(tmp_path))
  assert 0 < reached < STEPS

  stopped = start(*command)
  wait_for(stopped, lambda: max(steps_saved(tmp_path)) > reached)
  stopped.send_signal(signal.SIGTERM)
  out, err = finish(stopped)
  assert f'Resuming at step {reached} of {STEPS}' in out and err == ''
  assert 'saved; to go on, run the same command again: python train.py --config' in out
  assert max(steps_saved(tmp_path)) > reached

  out, _ = finish(start(*command))
  assert f'Resuming at step {max(reached, 1)}' not in out and 'Finished' in out
  one, other = weights(undisturbed[0]), weights(tmp_path)
  assert one.keys() == other.keys() and len(one) > 50
  for name, array in one.items():
    np.testing.assert_array_equal(array, other[name], err_msg=name)


def start_two(*args):
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
  group = ('--coordinator', f'127.0.0.1:{port}', '--num_processes', 2, '--process_id')
  return [start(*args, *group, number) for number in (0, 1)]


def test_two_processes_train_like_two_devices(experiment, tmp_path):
  command = ('--config', f'{experiment}:tiny', '--epochs', 2)
  command += ('--config.train.sync_bn=true', '--output')
  both = start_two(*command, tmp_path / 'two')
  outs = [finish(process)[0] for process in both]
  assert 'Finished 12 steps' in outs[0] and 'steps' not in outs[1]
  finish(start(*command, tmp_path / 'one', devices=2))
  one, two = weights(tmp_path / 'one'), weights(tmp_path / 'two')
  for name, array in one.items():
    np.testing.assert_allclose(array, two[name], rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize('victim', [0, 1])
def test_a_killed_process_ends_the_other_and_the_restart_resumes(experiment, tmp_path, victim):
  command = ('--config', f'{experiment}:tiny', '--epochs', 10, '--output', tmp_path)
  both = start_two(*command)
  wait_for(both[0], lambda: steps_saved(tmp_path))
  both[victim].kill()
  both[victim].communicate()
  began = time.monotonic()
  _, err = both[1 - victim].communicate(timeout=60)
  assert time.monotonic() - began < 60
  assert both[1 - victim].returncode not in (0, None)
  # Our line where a collective fails first, JAX's own where its coordinator was the victim.
  assert 'another one is gone' in err or 'another task died' in err, err
  if victim == 1:
    again = start_two(*command)
    outs = [finish(process)[0] for process in again]
    assert 'Resuming at step' in outs[0] and 'Finished' in outs[0]


def test_evaluation_of_the_trained_model(inside, experiment, undisturbed, tmp_path):
  model, folder = undisturbed[0] / 'model', experiment.parent / 'images'
  command = ('--mode', 'evaluate', '--model', model, '--data', folder, '--output', tmp_path)
  out, err = inside(*command, '--batch_size', 12)  # the second batch is not full
  result = json.loads((tmp_path / 'results.json').read_text())
  lines = [json.loads(line) for line in (undisturbed[0] / 'metrics.jsonl').read_text().splitlines()]
  best = max(line['test/top1'] for line in lines if 'test/top1' in line)
  assert result['count'] == 16 and result['top1'] == best
  assert f'top-1 {best:.2%}' in out and 'Traceback' not in err
  assert 'confusion.png' in (tmp_path / 'report.md').read_text()
  assert (tmp_path / 'confusion.png').stat().st_size > 5000


@pytest.mark.parametrize(
  ('args', 'words'),
  [
    ((), ('--model', 'zoo name')),
    (('--model', 'digit_scene'), ('digit_scene', 'digit_scenes')),
    (('--model', 'digit_scenes', '--data', 'FOLDER'), ('10 classes', 'has 2')),
    (('--model', 'digit_scenes', '--ema'), ('ema are for checkpoints',)),
    (('--model', 'digit_scenes', '--crop_pct', '3'), ('crop_pct',)),
  ],
)
def test_evaluation_of_bad_input(bad, experiment, tmp_path, args, words):
  folder = str(experiment.parent / 'images')
  line = bad(
    '--mode=evaluate', *(folder if a == 'FOLDER' else a for a in args), '--output', tmp_path
  )
  assert all(word in line for word in words), line


def test_help(inside):
  out, _ = inside('--help')
  assert '--config.optim.lr=' in out and '--coordinator' in out


@pytest.fixture
def inside(monkeypatch, capsys):
  """Runs the script in this process to a status; gives what it wrote to both streams."""

  def run(*args, status=0):
    monkeypatch.setattr(sys, 'argv', ['train.py', *map(str, args)])
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as end:
      runpy.run_path(str(ROOT / 'train.py'), run_name='__main__')
    out, err = capsys.readouterr()
    assert (end.value.code or 0) == status, err
    return out, err

  return run


@pytest.fixture
def bad(inside):
  """Runs the script in this process, where it ends with one line; gives the line."""

  def run(*args):
    out, err = inside(*args, status=2)
    lines = err.splitlines()
    assert out == '' and len(lines) == 1 and lines[0].startswith('error: '), err
    return lines[0]

  return run


def test_from_the_shell_an_error_is_one_line_without_a_traceback():
  out, err = finish(start('--config.optim.lrr=1'), status=2)
  assert out == '' and err.count('\n') == 1 and err.startswith('error: ')


@pytest.mark.parametrize(
  ('args', 'words'),
  [
    (('--config.optim.lrr=1',), ('optim.lrr', 'optim.lr')),
    (('--config.model.name=rest_smal',), ('rest_smal', 'rest_small')),
    (('--config', 'configs/rest_small.py', '--data_dir', '/nowhere'), ('imagenet2012',)),
    (('--config', 'configs/nothing.py'), ('configs/nothing.py', 'configs/digit_scenes.py')),
    (('--output', '/proc/work'), ('/proc/work', '--output')),
  ],
)
def test_bad_input_is_one_line_and_status_2(bad, experiment, tmp_path, args, words):
  first = () if '--config' in args else ('--config', experiment)
  last = () if '--output' in args else ('--output', tmp_path / 'bad')
  line = bad(*first, *args, *last)
  assert all(word in line for word in words), line


def test_work_directory_of_another_config(bad, experiment, undisturbed):
  line = bad('--config', experiment, '--output', undisturbed[0], '--config.optim.lr=0.5')
  assert 'differs in optim.lr' in line


def test_finished_run_says_so(inside, experiment, undisturbed):
  out, _ = inside('--config', experiment, '--output', undisturbed[0])
  assert out.startswith(f'This run is finished already: {STEPS} steps')
