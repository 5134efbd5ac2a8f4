"""Which split a run uses for what, and that it goes on with the data that it began with."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from rest_jax.errors import UserError
from rest_jax.models import registry
from rest_jax.train import classifying, loop, pipeline
from rest_jax.train.metrics import read_metrics
from rest_jax.train.run import _check_data


@pytest.fixture
def experiment(config, image_folder, tiny_net, tmp_path, monkeypatch):
  """An epoch of 6 steps and 2 evaluations on a folder with splits called Train, Valid and Test."""
  root = tmp_path / 'data'
  shutil.copytree(image_folder / 'train', root / 'Train')
  shutil.copytree(image_folder / 'test', root / 'Test')
  for number, name in enumerate(('blue', 'green', 'red')):
    for index in range(4):
      shade = np.random.default_rng([number, index]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
      (root / 'Valid' / name).mkdir(parents=True, exist_ok=True)
      Image.fromarray(shade).save(root / 'Valid' / name / f'{index}.png')
  monkeypatch.setitem(registry._BUILDERS, 'tiny_net', tiny_net)
  config.model.name = 'tiny_net'
  config.data.name = str(root)
  config.train.epochs = 1.0
  config.train.eval_every = 0.5
  return config


def test_val_chooses_and_test_is_judged_once_at_the_end(experiment, tmp_path, monkeypatch, capsys):
  asked = []
  batches = classifying.test_batches

  def counted(config, source):
    asked.append(len(source))
    return batches(config, source)

  monkeypatch.setattr(classifying, 'test_batches', counted)
  results = loop.train(experiment, tmp_path / 'run')
  assert asked == [12, 12, 20]  # Valid twice, Test once
  assert results['best']['count'] == results['last']['count'] == 12
  assert results['test']['count'] == 20 and results['test']['step'] == results['best']['step']

  lines = read_metrics(tmp_path / 'run' / 'metrics.jsonl')
  assert [line['step'] for line in lines if 'val/top1' in line] == [3, 6]
  (judged,) = [line for line in lines if 'test/top1' in line]
  assert judged['test/top1'] == results['test']['top1']

  out = capsys.readouterr().out
  assert out.splitlines()[0] == (
    f'Training for 6 steps in {tmp_path / "run"} on 48 images of 3 classes from '
    f'{experiment.data.name} (Train): blue, green, red; Valid (12 images) chooses the best epoch, '
    'Test (20 images) is judged once, at the end'
  )
  assert out.count('val loss') == 2 and out.count('the best: test loss') == 1
  assert f', test top-1 {results["test"]["top1"]:.2%}; model in' in out
  card = (tmp_path / 'run' / 'model' / 'README.md').read_text()
  assert '| 12 validation images |' in card and 'chosen on the validation split' in card
  judged = f'judged once, with these weights: 20 images, top-1 {results["test"]["top1"]:.2%}'
  assert judged in card and 'slightly optimistic' not in card

  again = loop.train(experiment, tmp_path / 'run')
  assert asked == [12, 12, 20] and again['test'] == results['test']


def test_the_last_line_is_of_the_end_and_says_which_weights_were_judged(
  experiment, tmp_path, monkeypatch
):
  measure, accuracies = classifying.evaluate, iter((1.0, 0.25, 0.5))  # the first one is the best
  monkeypatch.setattr(
    classifying, 'evaluate', lambda *args: measure(*args) | {'top1': next(accuracies)}
  )
  loop.train(experiment, tmp_path / 'run')
  (judged,) = [
    line for line in read_metrics(tmp_path / 'run' / 'metrics.jsonl') if 'test/top1' in line
  ]
  assert (judged['step'], judged['epoch']) == (6, 1.0)
  assert (judged['best/step'], judged['best/epoch']) == (3, 0.5)


def test_two_splits_are_told_as_before(experiment, tmp_path, capsys):
  shutil.rmtree(tmp_path / 'data' / 'Valid')
  results = loop.train(experiment, tmp_path / 'run')
  assert results['test'] is None and results['last']['count'] == 20
  out = capsys.readouterr().out
  assert 'Test (20 images) chooses the best epoch' in out and 'once' not in out
  assert 'slightly optimistic' in (tmp_path / 'run' / 'model' / 'README.md').read_text()


def renamed_class(root):
  for split in ('Train', 'Valid', 'Test'):
    (root / split / 'blue').rename(root / split / 'violet')


def moved_picture(root):
  picture = next((root / 'Train' / 'red').iterdir())
  os.replace(picture, root / 'Train' / 'blue' / picture.name)


def other_picture(root):
  picture = next((root / 'Valid' / 'red').iterdir())
  picture.rename(picture.with_name('other.png'))


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (renamed_class, 'class blue is gone and class violet is new'),
    (moved_picture, 'the files of train are others'),
    (other_picture, 'the files of val are others'),
  ],
)
def test_a_run_goes_on_with_the_data_it_began_with(experiment, tmp_path, change, words):
  before = pipeline.load_sources(experiment)
  saved = {'classes': before.class_names, 'files': before.digests}
  saved = json.loads(json.dumps(saved))  # as a checkpoint keeps it
  _check_data(saved, before, tmp_path)
  change(tmp_path / 'data')
  with pytest.raises(UserError) as caught:
    _check_data(saved, pipeline.load_sources(experiment), tmp_path / 'run')
  assert words in str(caught.value) and '\n' not in str(caught.value)
  assert 'give another --output' in str(caught.value)


def test_a_renamed_class_is_refused_by_the_run(experiment, tmp_path):
  loop.train(experiment, tmp_path / 'run')
  renamed_class(tmp_path / 'data')
  with pytest.raises(UserError, match='class blue is gone and class violet is new'):
    loop.train(experiment, tmp_path / 'run')


def test_splits_of_the_config(experiment, tmp_path):
  experiment.data.val_split = 'test'
  experiment.data.test_split = 'valid'
  assert pipeline.load_sources(experiment).splits == ('Train', 'Test', 'Valid')
  experiment.data.test_split = 'nonsense'
  with pytest.raises(UserError, match="no split 'nonsense'; it has Test, Train, Valid"):
    loop.train(experiment, tmp_path / 'run')
