"""Logging, late reading of metrics, and the stop at a loss that is not finite."""

import json

import numpy as np
import pytest

from rest_jax.errors import UserError
from rest_jax.train import metrics
from rest_jax.train.config import default_config
from rest_jax.train.metrics import MetricsWriter, StepMetrics, draw_curves, read_metrics

LOG = default_config().log


def values(loss, grad_norm=1.0):
  return {'loss': np.float32(loss), 'grad_norm': np.float32(grad_norm), 'lr': np.float32(loss)}


def test_windows_are_read_late_and_averaged():
  window = StepMetrics(every=2)
  read = [window.add(step, values(step), np.arange(3)) for step in range(1, 8)]
  assert [r and (r['step'], r['loss'], r['lr']) for r in read] == [
    *(None, None, None, (2, 1.5, 2.0), None, (4, 3.5, 4.0), None),
  ]
  rest = window.flush()
  assert (rest['step'], rest['loss']) == (7, 6.0)
  assert window.flush() is None


@pytest.mark.parametrize(
  ('bad', 'what'), [(values(np.nan), 'loss'), (values(1, np.inf), 'gradient')]
)
def test_not_finite_names_step_labels_and_advice(bad, what):
  window = StepMetrics(every=10)
  window.add(1, values(1.0), np.arange(3))
  window.add(2, bad, np.array([5, 6, 7]))
  with pytest.raises(UserError, match=rf'the {what} is not finite .* at step 2.*\[5, 6, 7\].*lr'):
    window.flush()


def test_lines_after_the_resumed_step_are_dropped(tmp_path):
  writer = MetricsWriter(tmp_path, 0, LOG, {})
  for step in (10, 20, 30):
    writer.write(step, {'epoch': step / 10, 'train/loss': 1.0 / step})
  with writer.path.open('a') as file:
    file.write('{"step": 40, "tr')  # cut off by a kill
  MetricsWriter(tmp_path, 20, LOG, {}).write(30, {'epoch': 3.0, 'train/loss': float('nan')})
  lines = read_metrics(tmp_path / 'metrics.jsonl')
  assert [line['step'] for line in lines] == [10, 20, 30]
  assert lines[-1]['train/loss'] is None
  assert all(json.loads(line) for line in writer.path.read_text().splitlines())


@pytest.mark.parametrize(('key', 'value'), [('tensorboard', True), ('wandb', 'project')])
def test_a_logger_that_is_not_installed(tmp_path, monkeypatch, key, value):
  monkeypatch.setitem(
    __import__('sys').modules, {'tensorboard': 'tensorboardX'}.get(key, key), None
  )
  log = default_config().log
  log[key] = value
  with pytest.raises(UserError, match=r'pip install'):
    MetricsWriter(tmp_path, 0, log, {})


def test_tensorboard_where_installed(tmp_path, monkeypatch):
  written = []

  class Board:
    def __init__(self, directory):
      self.directory = directory

    def add_scalar(self, name, value, step):
      written.append((name, value, step))

    def close(self):
      written.append('closed')

  module = type('tensorboardX', (), {'SummaryWriter': Board})
  monkeypatch.setitem(__import__('sys').modules, 'tensorboardX', module)
  log = default_config().log
  log.tensorboard = True
  writer = MetricsWriter(tmp_path, 0, log, {})
  writer.write(3, {'train/loss': 0.5})
  writer.close()
  assert written == [('train/loss', 0.5, 3), 'closed']


def test_curves_of_an_empty_and_a_real_log(tmp_path):
  draw_curves(tmp_path)
  writer = MetricsWriter(tmp_path, 0, LOG, {})
  for step in range(1, 4):
    writer.write(step, {'epoch': step, 'train/loss': 1 / step, 'train/lr': 0.1, 'train/top1': 0.5})
    writer.write(step, {'epoch': step, 'test/loss': 1 / step, 'test/top1': 0.5})
  empty = (tmp_path / 'curves.png').read_bytes()
  draw_curves(tmp_path)
  drawn = (tmp_path / 'curves.png').read_bytes()
  assert drawn[:4] == b'\x89PNG' and len(drawn) > len(empty)
  assert sorted(p.name for p in tmp_path.iterdir()) == ['curves.png', 'metrics.jsonl']


@pytest.mark.parametrize(
  ('measured', 'title', 'labels'),
  [
    ({'top1': 0.5}, 'top-1 accuracy', ['test']),
    ({'psnr': 20.0, 'noisy_psnr': 10.0}, 'PSNR, dB', ['test', 'test, before']),
    ({'AP': 0.4, 'AP50': 0.6}, 'average precision', ['test, box AP', 'test, AP50']),
    ({'AP': 0.4, 'mask_AP': 0.3}, 'average precision', ['test, box AP', 'test, mask AP']),
    ({'miou': 0.7, 'accuracy': 0.9}, 'pixels', ['test, mIoU', 'test, right pixels']),
  ],
)
def test_the_middle_panel_is_of_what_was_measured(tmp_path, monkeypatch, measured, title, labels):
  figures = []
  monkeypatch.setattr(metrics, 'save_figure', lambda path, figure: figures.append(figure))
  writer = MetricsWriter(tmp_path, 0, LOG, {})
  writer.write(1, {'epoch': 1, 'train/loss': 3.0, 'train/box_loss': 1.0, 'train/class_loss': 2.0})
  writer.write(1, {'epoch': 1, **{f'test/{name}': value for name, value in measured.items()}})
  draw_curves(tmp_path)
  loss, middle, _ = figures[0].axes
  assert middle.get_title() == title
  assert [line.get_label() for line in middle.lines] == labels
  assert [line.get_label() for line in loss.lines] == ['train', 'box', 'class']
