"""The whole loop in this process, on a folder of images with a very small model."""

import json
import os
import signal

import jax
import numpy as np
import pytest

from rest_jax import data, files
from rest_jax.errors import UserError
from rest_jax.models import registry
from rest_jax.models.classifier import Classifier
from rest_jax.train import loop
from rest_jax.train.checkpoints import Checkpoints
from rest_jax.train.metrics import read_metrics
from rest_jax.train.pipeline import Plan


@pytest.fixture
def experiment(config, image_folder, tiny_net, monkeypatch, shared_tasks):
  """Two epochs of 6 steps on the folder; returns the config."""
  monkeypatch.setitem(registry._BUILDERS, 'tiny_net', tiny_net)
  config.model.name = 'tiny_net'
  config.data.name = str(image_folder)
  config.train.epochs = 2.0
  config.train.checkpoint_every_steps = 4
  config.log.every = 2
  return config


@pytest.fixture
def tasks(monkeypatch, shared_tasks):
  """Collects the compiled functions of each run."""
  built = []

  def build(*args):
    built.append(build_task(*args))
    return built[-1]

  build_task = loop.build_task
  monkeypatch.setattr(loop, 'build_task', build)
  return built


def weights(workdir):
  return (workdir / 'model' / 'model.safetensors').read_bytes()


def interrupt_at(monkeypatch, wanted, number):
  may_agree = Plan.may_agree

  def send(self, step):
    if step == wanted:
      os.kill(os.getpid(), number)
    return may_agree(self, step)

  monkeypatch.setattr(Plan, 'may_agree', send)


def test_a_whole_run(experiment, tmp_path, tasks, capsys):
  results = loop.train(experiment, tmp_path / 'run')
  run = tmp_path / 'run'
  names = {'config.json', 'environment.json', 'metrics.jsonl', 'curves.png', 'checkpoints', 'model'}
  assert {p.name for p in run.iterdir()} == names
  assert (results['step'], results['finished']) == (12, True)
  assert results['last']['epoch'] == 2.0 and results['last']['count'] == 20

  lines = read_metrics(run / 'metrics.jsonl')
  train = [line for line in lines if 'train/loss' in line]
  tests = [line for line in lines if 'test/top1' in line]
  assert [line['step'] for line in tests] == [6, 12]
  assert train[-1]['step'] == 12 and all('train/lr' in line for line in train)
  assert tests[-1]['test/top1'] == results['last']['top1']
  assert json.loads((run / 'config.json').read_text())['train']['epochs'] == 2.0
  assert json.loads((run / 'environment.json').read_text())['device_count'] == 4

  # One compilation each, for two evaluations and a last batch that is not full.
  assert [tasks[0].train_step._cache_size(), tasks[0].eval_step._cache_size()] == [1, 1]

  out = capsys.readouterr().out
  assert 'Training for 12 steps' in out and 'Finished 12 steps' in out and 'epoch   2.0' in out
  classifier = Classifier.load(run / 'model')
  assert classifier.class_names == ('blue', 'green', 'red')
  assert measured(classifier, experiment) == pytest.approx(results['best']['top1'])
  card = (run / 'model' / 'README.md').read_text()
  assert f'{results["best"]["top1"]:.2%}' in card and '; finished' in card

  # The same command again says that it is finished, and touches nothing.
  before = {p: p.stat().st_mtime_ns for p in run.rglob('*') if p.suffix in ('.md', '.safetensors')}
  again = loop.train(experiment, run)
  assert again['best'] == results['best'] and again['finished']
  assert 'finished already' in capsys.readouterr().out
  assert before == {p: p.stat().st_mtime_ns for p in before}


def measured(classifier, config):
  source = data.load(config.data.name).test
  hits = 0
  for batch in data.eval_batches(source, 8, 8, resize='squash', interpolation='bilinear'):
    best = classifier(batch['image'].astype(np.float32) / 255).argmax(-1)
    hits += int(((np.asarray(best) == batch['label']) & batch['mask']).sum())
  return hits / len(source)


@pytest.mark.parametrize(('number', 'step'), [(signal.SIGTERM, 5), (signal.SIGINT, 6)])
def test_interrupted_and_resumed_to_the_bit(
  experiment, tmp_path, monkeypatch, capsys, number, step
):
  experiment.augment.crop_scale = (0.5, 1.0)
  experiment.augment.mixup = 0.4
  experiment.train.ema = 0.5
  loop.train(experiment, tmp_path / 'whole')

  handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
  with monkeypatch.context() as patch:
    interrupt_at(patch, step, number)
    # Step 6 has an evaluation, which is made up for when the run goes on.
    results = loop.train(experiment, tmp_path / 'parts')
  assert (results['step'], results['finished']) == (step, False)
  assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
  assert 'run the same command again' in capsys.readouterr().out

  assert loop.train(experiment, tmp_path / 'parts')['finished']
  assert f'Resuming at step {step} of 12' in capsys.readouterr().out
  assert weights(tmp_path / 'whole') == weights(tmp_path / 'parts')
  tests = [
    [line for line in read_metrics(tmp_path / name / 'metrics.jsonl') if 'ema/top1' in line]
    for name in ('whole', 'parts')
  ]
  assert tests[0] == tests[1]


def test_a_start_without_data_leaves_no_directory(experiment, tmp_path):
  experiment.data.name = str(tmp_path / 'none')
  with pytest.raises(UserError, match='none'):
    loop.train(experiment, tmp_path / 'runs' / 'run')
  assert not list(tmp_path.iterdir())


def test_loss_that_is_not_finite(experiment, tmp_path):
  experiment.optim.update(name='sgd', lr=1e37, warmup_epochs=1.0, warmup_lr=1e-3, clip_norm=0.0)
  experiment.train.checkpoint_every_steps = 1
  with pytest.raises(UserError, match=r'not finite .* at step \d.*labels \[.*optim.lr'):
    loop.train(experiment, tmp_path)
  checkpoints = Checkpoints(tmp_path)
  raw = checkpoints._last.restore(checkpoints._last.latest_step())['state']['params']
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(raw))
  checkpoints.close()


def test_checkpoint_of_another_model(experiment, tmp_path):
  loop.train(experiment, tmp_path)
  with pytest.raises(UserError, match=r'another config; it differs in model.overrides'):
    experiment.model.overrides = {'norm': False}
    loop.train(experiment, tmp_path)
  (tmp_path / 'config.json').write_text(json.dumps(experiment.to_dict()))
  with pytest.raises(UserError, match=r'of another model, .* arrays differ: batch_stats/norm'):
    loop.train(experiment, tmp_path)


@pytest.mark.parametrize(
  ('group', 'key', 'value', 'message'),
  [
    ('model', 'name', 'tiny_nett', 'unknown model'),
    ('data', 'name', 'no_such_data_set', 'no_such_data_set'),
    ('train', 'batch_size', 6, 'multiple of 4'),
    ('data', 'eval_batch_size', 3, 'data.eval_batch_size 3'),
    ('train', 'accumulate', 4, '4 micro-batch'),
  ],
)
def test_bad_configs(experiment, tmp_path, group, key, value, message):
  experiment[group][key] = value
  with pytest.raises(UserError, match=message):
    loop.train(experiment, tmp_path)
  # What failed before it began does not stand in the way of the next attempt.
  assert not (tmp_path / 'config.json').exists()


def test_unreadable_image(experiment, tmp_path, image_folder):
  bad = image_folder / 'train' / 'red' / 'broken.png'
  bad.write_bytes(b'not an image')
  try:
    with pytest.raises(UserError, match=r'broken.png'):
      loop.train(experiment, tmp_path)
  finally:
    bad.unlink()


def test_disk_that_fills_up(experiment, tmp_path):
  files.temporary_path(tmp_path / 'curves.png').symlink_to('/dev/full')
  with pytest.raises(UserError, match=r'No space left on device; free some space'):
    loop.train(experiment, tmp_path)
