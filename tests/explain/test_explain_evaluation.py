"""Evaluation over a data set: records, table, and the whole run, stopped and gone on with."""

import csv
import json
import math
import threading

import jax
import numpy as np
import pytest
from PIL import Image

from rest_jax.errors import UserError
from rest_jax.explain import command, evaluation, evaluation_results, measuring, report, study
from rest_jax.explain.records import Records
from rest_jax.explain.report import Estimate, Row
from rest_jax.models.classifier import Classifier
from rest_jax.models.registry import create_model

ROWS = [
  Row('grad_cam', {'insertion': Estimate(0.61, 0.5, 0.7), 'deletion': Estimate(0.1, 0.05, 0.2)}),
  Row('group_cam', {'insertion': Estimate(0.6101, 0.5, 0.7), 'deletion': Estimate(0.2, 0.1, 0.3)}),
  Row('centre', {'insertion': Estimate(0.9, 0.8, 1.0)}, baseline=True),
]


def test_records_go_on_after_a_torn_line(tmp_path):
  path = tmp_path / 'results.jsonl'
  records = Records(path, {'seed': 1, 'budget': (1, 2)})
  records.add('rise', 0, {'count': 3})
  with path.open('a') as file:
    file.write('{"method": "rise", "ba')  # killed here
  again = Records(path, {'budget': [1, 2], 'seed': 1})
  assert again.get('rise', 0) == {'method': 'rise', 'batch': 0, 'count': 3}
  assert again.get('rise', 1) is None
  again.add('rise', 1, {'count': 4})
  assert Records(path, {'seed': 1, 'budget': (1, 2)}).get('rise', 1)['count'] == 4


def test_records_of_other_settings_or_damaged(tmp_path):
  path = tmp_path / 'results.jsonl'
  Records(path, {'seed': 1, 'layer': None}).add('rise', 0, {})
  with pytest.raises(UserError, match='other settings; they differ in layer, seed'):
    Records(path, {'seed': 2, 'layer': 'stage2'})
  lines = path.read_text().splitlines()
  path.write_text('\n'.join([lines[0], 'nonsense', lines[1]]) + '\n')
  with pytest.raises(UserError, match='damaged in line 2'):
    Records(path, {'seed': 1, 'layer': None})
  path.write_text('[]\n')
  with pytest.raises(UserError, match='no file of an evaluation'):
    Records(path, {})


def test_best_is_judged_as_printed_and_without_baselines():
  assert report.best_methods(ROWS, 'insertion') == ['grad_cam', 'group_cam']
  assert report.best_methods(ROWS, 'deletion') == ['grad_cam']
  assert report.best_methods(ROWS, 'pointing') == []
  near = [Row('a', {'sanity': Estimate(-0.2)}), Row('b', {'sanity': Estimate(0.1)})]
  assert report.best_methods(near, 'sanity') == ['b']


def test_markdown_csv_and_the_sentence_on_group_cam(tmp_path):
  report.write_report(tmp_path, ROWS, ['A note.'], {'images': 3})
  lines = (tmp_path / 'table.md').read_text().splitlines()
  assert lines[0] == '| method | insertion AUC ↑ | deletion AUC ↓ |'
  assert lines[2] == '| Grad-CAM | **0.610** [0.500, 0.700] | **0.100** [0.050, 0.200] |'
  assert lines[4] == '| *centre* | 0.900 [0.800, 1.000] | – |' and lines[-1] == 'A note.'
  with (tmp_path / 'table.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert float(rows[0]['insertion_low']) == 0.5 and rows[2]['deletion'] == ''
  plain = json.loads((tmp_path / 'table.json').read_text())
  assert plain['setup'] == {'images': 3} and plain['rows'][2]['baseline'] is True
  assert report.standing(ROWS, 'group_cam') == (
    'Group-CAM is the best in insertion AUC; not in deletion AUC (Grad-CAM).'
  )


@pytest.fixture(scope='module')
def setting(tmp_path_factory):
  """A tiny model directory and a folder of 2 classes with 6 test images of 32 px."""
  root = tmp_path_factory.mktemp('evaluation')
  rng = np.random.default_rng(0)
  for split in ('train', 'test'):
    for number in range(6):
      place = root / 'data' / split / ('even', 'odd')[number % 2]
      place.mkdir(parents=True, exist_ok=True)
      pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
      Image.fromarray(pixels).save(place / f'{number}.png')
  overrides = {'width': 8, 'depths': (1, 1, 1, 1)}
  module = create_model('resnet18', 2, **overrides)
  variables = module.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
  Classifier.create(
    'resnet18',
    variables,
    num_classes=2,
    overrides=overrides,
    class_names=('even', 'odd'),
    input_size=32,
    resize='squash',
  ).save(root / 'model')
  return root


def run(root, output, *more, method='grad_cam'):
  flags = {'--model': str(root / 'model'), '--data': str(root / 'data'), '--method': method}
  flags |= {'--batch_size': '2', '--layer': 'stage1', '--query_batch': '16'}
  flags |= {'--output': str(output)} | dict(zip(more[::2], more[1::2], strict=True))
  words = [word for flag in flags.items() for word in flag]
  return evaluation.evaluate(command.parse(['explain.py', '--evaluate', *words], ''))


def table(output):
  rows = json.loads((output / 'table.json').read_text())['rows']
  return {row['method']: row['values'] for row in rows}


@pytest.fixture(scope='module')
def finished(setting, tmp_path_factory):
  """The output of an evaluation of all 6 images; on one device, for each compiles anew."""
  output = tmp_path_factory.mktemp('finished')
  with pytest.MonkeyPatch.context() as patch:
    one_device(patch)
    assert run(setting, output) == 0
  return output


def one_device(patch):
  devices = jax.local_devices()
  patch.setattr(jax, 'local_devices', lambda: devices[:1])


def test_the_run_writes_every_measure(finished, capsys):
  values = table(finished)
  assert set(values) == {'grad_cam', 'centre', 'random'}
  shared = {'insertion', 'deletion', 'drop', 'increase', 'road'}
  assert set(values['centre']) == shared
  assert set(values['grad_cam']) == shared | {'sanity', 'queries', 'milliseconds'}
  for key in shared:
    estimate = values['grad_cam'][key]
    assert -1 <= estimate['low'] <= estimate['mean'] <= estimate['high'] <= 1
  assert values['grad_cam']['queries']['mean'] == 2
  text = (finished / 'table.md').read_text()
  assert 'layer stage1' in text and '6 images of 2 classes from' in text
  with Image.open(finished / 'examples.png') as picture:
    assert min(picture.size) > 100


def test_a_stopped_run_goes_on_to_the_same_numbers(setting, finished, tmp_path, monkeypatch):
  one_device(monkeypatch)
  measured = measuring.measure

  def killed(of, classifier, batch, *rest):
    if batch.number == 2:
      raise KeyboardInterrupt
    return measured(of, classifier, batch, *rest)

  monkeypatch.setattr(measuring, 'measure', killed)
  with pytest.raises(KeyboardInterrupt):
    run(setting, tmp_path)
  assert not (tmp_path / 'table.md').exists()
  done = []

  def watched(of, classifier, batch, *rest):
    done.append(batch.number)
    return measured(of, classifier, batch, *rest)

  monkeypatch.setattr(measuring, 'measure', watched)
  run(setting, tmp_path)
  assert set(done) == {2}  # the first two batches were not measured again
  again, before = table(tmp_path), table(finished)
  for method in ('grad_cam', 'centre', 'random'):
    for key, estimate in again[method].items():
      if key != 'milliseconds':
        mean = before[method][key]['mean']
        np.testing.assert_allclose(estimate['mean'], mean, atol=1e-6, err_msg=key)


def test_every_device_takes_batches_and_none_is_measured_twice(setting, tmp_path, monkeypatch):
  done, together = [], threading.Barrier(3, timeout=60)

  def measured(of, classifier, batch, logits, name, device):
    (placed,) = jax.tree.leaves(classifier)[0].devices()
    done.append((batch.number, name, device.id))
    assert placed == device
    if name == 'centre':
      together.wait()  # three batches are under way at once
    evaluation_results.keep_examples(tmp_path, name, np.zeros((2, 32, 32)))
    values = {'insertion': [batch.number] * batch.count, 'correct': [1.0] * batch.count}
    return {'count': batch.count, 'seconds': None, 'queries': 0, 'values': values}

  monkeypatch.setattr(measuring, 'measure', measured)
  monkeypatch.setattr(measuring, 'sanity', lambda *_: {'count': 2, 'values': [0.5, 0.5]})
  run(setting, tmp_path)
  expected = {(b, m) for b in range(3) for m in ('grad_cam', 'centre', 'random')}
  assert sorted((b, m) for b, m, _ in done) == sorted(expected)
  assert len({device for _, _, device in done}) == 3
  assert table(tmp_path)['centre']['insertion']['mean'] == 1.0


def test_more_images_reuse_what_is_there(setting, finished, tmp_path, monkeypatch):
  one_device(monkeypatch)
  run(setting, tmp_path, '--limit', '3')
  assert '3 of 6 images of 2 classes' in (tmp_path / 'table.md').read_text()
  records = (tmp_path / 'results.jsonl').read_text().splitlines()
  counts = [json.loads(line)['count'] for line in records[1:]]
  assert sorted(set(counts)) == [1, 2]
  run(setting, tmp_path, '--limit', '4')
  more = (tmp_path / 'results.jsonl').read_text().splitlines()
  assert more[: len(records)] == records
  again = [json.loads(line) for line in more[len(records) :]]
  assert {line['batch'] for line in again} == {1} and {line['count'] for line in again} == {2}


@pytest.mark.parametrize(
  ('more', 'message'),
  [
    (('--target', 'odd'), '--evaluate explains the predicted class'),
    (('--layer', 'stag1'), "no layer 'stag1'; did you mean .*stage1"),
    (('--method', 'rise'), 'looks at no layer'),
    (('--model', 'digit_scenes'), 'has classes even, odd, the model .* 0, 1, 2 and 7 more'),
    (('--seed', '9'), 'other settings; they differ in seed'),
  ],
)
def test_what_cannot_be_evaluated(setting, finished, more, message):
  with pytest.raises(UserError, match=message) as caught:
    run(setting, finished, *more)
  assert '\n' not in str(caught.value)


def test_a_fingerprint_tells_models_apart(setting):
  model = Classifier.load(setting / 'model')
  other = jax.tree.map(lambda leaf: leaf + 1, model)
  assert study.fingerprint(model) == study.fingerprint(Classifier.load(setting / 'model'))
  assert study.fingerprint(model) != study.fingerprint(other)
  assert math.isfinite(int(study.fingerprint(model), 16))
