"""Whole runs: adversarial ones that are interrupted, and ones that start from weights."""

import os
import re
import signal

import numpy as np
import pytest
from safetensors.numpy import load_file

from rest_jax.models import registry
from rest_jax.train import loop
from rest_jax.train.metrics import read_metrics
from rest_jax.train.pipeline import Plan


@pytest.fixture
def experiment(config, image_folder, tiny_net, monkeypatch, shared_tasks):
  """Two epochs of 6 steps of free adversarial training, evaluated under attack."""
  monkeypatch.setitem(registry._BUILDERS, 'tiny_net', tiny_net)
  config.model.name = 'tiny_net'
  config.data.name = str(image_folder)
  config.train.epochs = 2.0
  config.log.every = 2
  config.adversarial.update(kind='free', replays=2, eps=0.1, eval_steps=2)
  return config


def test_free_training_resumes_to_the_bit(experiment, tmp_path, monkeypatch, capsys):
  """The perturbations, which lie on four devices, go on where they were."""
  results = loop.train(experiment, tmp_path / 'whole')
  may_agree = Plan.may_agree

  def send(self, step):
    if step == 5:
      os.kill(os.getpid(), signal.SIGTERM)
    return may_agree(self, step)

  with monkeypatch.context() as patch:
    patch.setattr(Plan, 'may_agree', send)
    assert not loop.train(experiment, tmp_path / 'parts')['finished']
  loop.train(experiment, tmp_path / 'parts')
  whole, parts = (
    load_file(tmp_path / n / 'model' / 'model.safetensors') for n in ('whole', 'parts')
  )
  assert all(np.array_equal(whole[name], parts[name]) for name in whole)

  best = results['best']
  assert 0 <= best['robust_top1'] <= best['top1'] <= 1
  lines = read_metrics(tmp_path / 'whole' / 'metrics.jsonl')
  tests = [line['test/robust_top1'] for line in lines if 'test/top1' in line]
  assert len(tests) == 2 and max(tests) == best['robust_top1']
  assert all('train/adversarial_top1' in line for line in lines if 'train/loss' in line)
  card = (tmp_path / 'whole' / 'model' / 'README.md').read_text()
  assert f'{best["robust_top1"]:.2%} (best, chosen by it)' in card and 'with `free`' in card
  assert re.search(r'robust \d+\.\d\d%', capsys.readouterr().out)


def test_fine_tuning_with_a_frozen_stem(experiment, tmp_path, capsys):
  """Starts from a model directory, with larger images; what is frozen stays to the bit."""
  experiment.adversarial.update(kind='', eval_steps=0)
  experiment.train.epochs = 1.0
  loop.train(experiment, tmp_path / 'first')
  experiment.model.init = str(tmp_path / 'first' / 'model')
  experiment.data.image_size = 16
  experiment.optim.freeze = '(?!head/)'
  loop.train(experiment, tmp_path / 'second')
  assert 'Starting from' in capsys.readouterr().out
  first, second = (
    load_file(tmp_path / n / 'model' / 'model.safetensors') for n in ('first', 'second')
  )
  changed = {name for name in first if not np.array_equal(first[name], second[name])}
  assert changed == {'params/head/kernel', 'params/head/bias'}
  assert 'starting from' in (tmp_path / 'second' / 'model' / 'README.md').read_text()
