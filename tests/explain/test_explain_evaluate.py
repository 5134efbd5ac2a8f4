"""Evaluation over a data set: records, table, and the whole run, stopped and gone on with."""

import csv
import json
import shutil
import threading
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from drawn_weights import drawn
from PIL import Image

from rest_jax import explain
from rest_jax.errors import UserError
from rest_jax.evaluation.intervals import Interval
from rest_jax.evaluation.records import RESULTS
from rest_jax.explain import command, evaluate, study, table
from rest_jax.explain.table import Row
from rest_jax.models.classifier import Classifier
from rest_jax.models.registry import create_model

ROWS = [
  Row('grad_cam', {'insertion': Interval(0.61, 0.5, 0.7), 'deletion': Interval(0.1, 0.05, 0.2)}),
  Row('group_cam', {'insertion': Interval(0.6101, 0.5, 0.7), 'deletion': Interval(0.2, 0.1, 0.3)}),
  Row('centre', {'insertion': Interval(0.9, 0.8, 1.0)}, baseline=True),
]


def test_best_is_judged_as_printed_and_without_baselines():
  assert table.best_methods(ROWS, 'insertion') == ['grad_cam', 'group_cam']
  assert table.best_methods(ROWS, 'deletion') == ['grad_cam']
  assert table.best_methods(ROWS, 'pointing') == []
  near = [Row('a', {'sanity': Interval(-0.2)}), Row('b', {'sanity': Interval(0.1)})]
  assert table.best_methods(near, 'sanity') == ['b']


def test_queries_are_the_mean_over_all_images():
  rows = [{'queries': n, 'insertion': 0.5, 'seconds': 0.1} for n in (66, 130, 2050)]
  records = SimpleNamespace(
    rows=lambda name: rows, column=lambda name, key, images: [rows[n].get(key) for n in images]
  )
  asked = SimpleNamespace(seed=0, batch_size=2, fine_steps=False)
  of = SimpleNamespace(records=records, count=3, command=asked, options={'some': {}})
  assert table._row(of, 'some').values['queries'].mean == np.mean([66, 130, 2050])


def test_markdown_csv_and_the_sentence_on_group_cam(tmp_path):
  table.write_report(tmp_path, ROWS, ['A note.'], {'images': 3})
  lines = (tmp_path / 'table.md').read_text().splitlines()
  assert lines[0] == '| method | insertion AUC ↑ | deletion AUC ↓ |'
  assert lines[2] == '| Grad-CAM | **0.610** [0.500, 0.700] | **0.100** [0.050, 0.200] |'
  assert lines[4] == '| *centre* | 0.900 [0.800, 1.000] | – |' and lines[-1] == 'A note.'
  with (tmp_path / 'table.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert float(rows[0]['insertion_low']) == 0.5 and rows[2]['deletion'] == ''
  plain = json.loads((tmp_path / 'table.json').read_text())
  assert plain['setup'] == {'images': 3} and plain['rows'][2]['baseline'] is True
  assert table.standing(ROWS, 'group_cam') == (
    'Group-CAM is the best in insertion AUC; not in deletion AUC (Grad-CAM).'
  )


ALL, FEW = {'drop': 8, 'pointing': 8}, {'drop': 8, 'pointing': 3}


@pytest.mark.parametrize(
  ('counts', 'said'),
  [
    ([ALL, ALL], ''),
    ([{}, ALL], ''),
    ([FEW, FEW], 'pointing 3'),
    ([FEW | {'energy': 3}, FEW], 'pointing 3; energy in mask 3'),
    ([{'drop': 7}, ALL], 'average drop 8 (Grad-CAM 7)'),
    ([{'sanity': 0}, {'sanity': 2}], 'rank corr. to random weights 2 (Grad-CAM 0)'),
    ([{'sanity': 0}, ALL], 'rank corr. to random weights 0'),
  ],
)
def test_columns_of_fewer_images_say_of_how_many(counts, said):
  names = ('grad_cam', 'centre')
  rows = [Row(name, {}, counts=some) for name, some in zip(names, counts, strict=True)]
  assert table.fewer_images(rows, 8) == (said and f'Means of fewer than all 8 images: {said}')


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
  variables = drawn(module, np.zeros((1, 32, 32, 3), np.float32))
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


def run(root, output, *more, method='grad_cam', words=()):
  flags = {'--model': str(root / 'model'), '--data': str(root / 'data'), '--method': method}
  flags |= {'--batch_size': '2', '--layer': 'stage1', '--query_batch': '16'}
  flags |= {'--output': str(output)} | dict(zip(more[::2], more[1::2], strict=True))
  words = [*words, *(word for flag in flags.items() for word in flag)]
  return evaluate.evaluate(command.parse(['explain.py', '--evaluate', *words], ''))


def values_of(output):
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
  values = values_of(finished)
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
  measured = evaluate.measure

  def killed(classifier, batch, maps):
    if batch.indices[0] == 4:
      raise KeyboardInterrupt
    return measured(classifier, batch, maps)

  monkeypatch.setattr(evaluate, 'measure', killed)
  with pytest.raises(KeyboardInterrupt):
    run(setting, tmp_path)
  assert not (tmp_path / 'table.md').exists()
  done = []

  def watched(classifier, batch, maps):
    done.extend(batch.indices.tolist())
    return measured(classifier, batch, maps)

  monkeypatch.setattr(evaluate, 'measure', watched)
  run(setting, tmp_path)
  assert sorted(done) == [4] * 3 + [5] * 3  # the first two batches were not measured again
  again, before = values_of(tmp_path), values_of(finished)
  for method in ('grad_cam', 'centre', 'random'):
    for key, estimate in again[method].items():
      if key != 'milliseconds':
        mean = before[method][key]['mean']
        np.testing.assert_allclose(estimate['mean'], mean, atol=1e-6, err_msg=key)


def test_fine_steps_are_measured_later_and_nothing_else_is_again(
  setting, finished, tmp_path, monkeypatch
):
  one_device(monkeypatch)
  shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
  monkeypatch.setattr(evaluate, 'measure', lambda *args: pytest.fail('it was measured before'))
  before = values_of(finished)
  assert 'insertion_fine' not in before['grad_cam']
  run(setting, tmp_path, words=['--fine_steps'])
  after = values_of(tmp_path)
  for method in ('grad_cam', 'centre', 'random'):
    assert after[method]['insertion'] == before[method]['insertion']
    assert 'deletion_fine' in after[method]
  model = Classifier.load(setting / 'model')
  image = np.asarray(Image.open(setting / 'data' / 'test' / 'even' / '0.png'), np.float32)[None]
  maps = explain.grad_cam(model, image / 255, layer='stage1')
  curves = explain.insertion_deletion(model, image / 255, maps, pixels_per_step=10)  # 1024 / 112
  lines = [json.loads(line) for line in (tmp_path / RESULTS).read_text().splitlines()[1:]]
  rows = [line for line in lines if line['case'] == 'grad_cam:fine']
  assert len(rows) == 6
  near = min(abs(row['insertion_fine'] - float(curves.insertion_auc[0])) for row in rows)
  assert near < 1e-6
  table = (tmp_path / 'table.md').read_text()
  assert 'insertion AUC (fine steps) ↑ |' in table and ', a 112th where the steps are fine' in table


def test_a_batch_is_explained_once_for_all_that_is_measured(
  setting, finished, tmp_path, monkeypatch
):
  one_device(monkeypatch)
  explained, asked = evaluate._explain, []
  monkeypatch.setattr(evaluate, '_explain', lambda *args: asked.append(args) or explained(*args))
  run(setting, tmp_path, words=['--fine_steps'])
  assert [args[2].indices[0] for args in asked] == [0, 0, 2, 4]  # the second has random weights
  before, after = values_of(finished)['grad_cam'], values_of(tmp_path)['grad_cam']
  assert before['sanity'] == after['sanity'] and before['insertion'] == after['insertion']


def test_every_device_takes_batches_and_none_is_measured_twice(setting, tmp_path, monkeypatch):
  done, together = [], threading.Barrier(3, timeout=60)

  def measured(self, case, batch, device):
    (placed,) = jax.tree.leaves(self._classifiers(device))[0].devices()
    number = int(batch.indices[0]) // 2
    done.append((number, case, device.id))
    assert placed == device and batch['images'].shape == (2, 32, 32, 3)
    if case == 'centre':
      together.wait()  # three batches are under way at once
    if number == 0:
      table.keep_examples(tmp_path, case, np.zeros((2, 32, 32)))
    values = {'insertion': [number] * 2, 'correct': [1.0] * 2, 'sanity': [0.5] * 2}
    return values | {'seconds': [None] * 2, 'queries': [0] * 2}

  monkeypatch.setattr(evaluate._Measuring, '__call__', measured)
  run(setting, tmp_path)
  expected = {(b, m) for b in range(3) for m in ('grad_cam', 'centre', 'random')}
  assert sorted((b, m) for b, m, _ in done) == sorted([*expected, (0, 'grad_cam:sanity')])
  assert len({device for _, _, device in done}) >= 3
  assert values_of(tmp_path)['centre']['insertion']['mean'] == 1.0
  setup = json.loads((tmp_path / 'table.json').read_text())['setup']
  assert setup['device'] == '4 x cpu' and setup['accuracy'] == 1.0


def test_what_is_not_measured_on_every_image_is_said(setting, tmp_path, monkeypatch):
  """Images without a box, a box between the pixels of the view, an empty map: none counts as 0."""
  one_device(monkeypatch)
  boxes = ['64,64,200,200', '0,0,2,2', '', '', '10,10,300,300', '']
  lines = ['file,label,X_min,Y_min,X_max,Y_max']
  for number, box in enumerate(boxes):
    Image.new('RGB', (320, 320), (40 * number, 9, 9)).save(tmp_path / f'{number}.png')
    lines.append(f'{number}.png,{("even", "odd")[number % 2]},{box or ",,,"}')
  (tmp_path / 'labels.csv').write_text('\n'.join(lines))
  maps = evaluate._explain

  def emptied(study, classifier, batch, method):
    found, first = maps(study, classifier, batch, method), np.arange(len(batch['images'])) == 0
    return found._replace(maps=np.where(first[:, None, None], 0, found.maps))

  monkeypatch.setattr(evaluate, '_explain', emptied)
  where = {'--data': str(tmp_path / 'labels.csv'), '--method': 'gradient', '--batch_size': '6'}
  words = [w for pair in where.items() for w in pair]
  words += ['--model', str(setting / 'model'), '--output', str(tmp_path / 'out')]
  evaluate.evaluate(command.parse(['explain.py', '--evaluate', *words], ''))
  values = values_of(tmp_path / 'out')
  counts = {name: {k: v['count'] for k, v in some.items() if 'count' in v}
            for name, some in values.items()}  # fmt: skip
  shared = dict.fromkeys(('insertion', 'deletion', 'drop', 'increase', 'road'), 6)
  pointed = shared | {'pointing': 2, 'energy': 2}
  assert counts == {'gradient': pointed | {'sanity': 5}, 'centre': pointed, 'random': pointed}
  text = (tmp_path / 'out' / 'table.md').read_text()
  assert (
    'Means of fewer than all 6 images: pointing 2; energy in mask 2; rank corr. to random weights '
    "5; 3 images with no object in the data and 1 image with none of it in the model's view."
  ) in text


def test_more_images_reuse_what_is_there(setting, finished, tmp_path, monkeypatch):
  one_device(monkeypatch)
  run(setting, tmp_path, '--limit', '3')
  assert '3 of 6 images of 2 classes' in (tmp_path / 'table.md').read_text()
  records = (tmp_path / RESULTS).read_text().splitlines()
  run(setting, tmp_path, '--limit', '4')
  more = (tmp_path / RESULTS).read_text().splitlines()
  assert more[: len(records)] == records
  again = [json.loads(line) for line in more[len(records) :]]
  assert {line['image'] for line in again} == {3} and len(again) == 3
  assert values_of(tmp_path)['centre']['insertion']['mean'] != 0


@pytest.mark.parametrize(
  ('more', 'message'),
  [
    (('--target', 'odd'), '--evaluate explains the predicted class'),
    (('--layer', 'stag1'), "no layer 'stag1'; did you mean .*stage1"),
    (('--method', 'rise'), 'looks at no layer'),
    (('--model', 'digit_scenes'), 'has classes even, odd, the model .* 0, 1, 2 and 7 more'),
    (('--seed', '9'), r'other settings: seed \(0 there, 9 now\); give another --output'),
  ],
)
def test_what_cannot_be_evaluated(setting, finished, more, message):
  with pytest.raises(UserError, match=message) as caught:
    run(setting, finished, *more)
  assert '\n' not in str(caught.value)


def xml(*edges):
  names = ('xmin', 'ymin', 'xmax', 'ymax')
  box = ''.join(f'<{name}>{edge}</{name}>' for name, edge in zip(names, edges, strict=True))
  return f'<annotation><object><bndbox>{box}</bndbox></object></annotation>'


PLAIN = 'file,label\n0.png,even\n1.png,odd\n'
BOXED = 'file,label,xmin,ymin,xmax,ymax\n0.png,even,2,2,9,9\n1.png,odd,,,,\n'


@pytest.mark.parametrize(
  ('before', 'after'),
  [
    ((BOXED, {}), (BOXED.replace('9,9', '9,8'), {})),
    ((BOXED, {}), (BOXED + '0.png,even,12,12,20,20\n', {})),
    ((BOXED, {}), (BOXED.replace('2,2,9,9', ',,,'), {})),
    ((BOXED, {}), (BOXED.replace('odd,,,,', 'odd,1,1,8,8'), {})),
    ((PLAIN, {}), (BOXED, {})),
    ((PLAIN, {'0': xml(2, 2, 9, 9)}), (PLAIN, {'0': xml(2, 2, 9, 8)})),
    ((PLAIN, {'0': xml(2, 2, 9, 9)}), (PLAIN, {'1': xml(2, 2, 9, 9)})),
    ((PLAIN, {'0': xml(2, 2, 9, 9)}), (PLAIN, {'0': xml(2, 2, 9, 9), '1': xml(1, 1, 3, 3)})),
    ((PLAIN, {'0': xml(2, 2, 9, 9)}), (PLAIN, {})),
  ],
)
def test_results_are_not_gone_on_with_when_boxes_are_others(setting, tmp_path, before, after):
  data = tmp_path / 'data'
  data.mkdir()

  def opened(text, drawn):
    for number in range(2):
      Image.new('RGB', (32, 32)).save(data / f'{number}.png')
      (data / f'{number}.xml').unlink(missing_ok=True)
      if str(number) in drawn:
        (data / f'{number}.xml').write_text(drawn[str(number)])
    (data / 'labels.csv').write_text(text)
    words = ['--model', str(setting / 'model'), '--data', str(data / 'labels.csv')]
    words += ['--method', 'gradient', '--output', str(tmp_path / 'out')]
    return study.open_study(command.parse(['explain.py', '--evaluate', *words], ''))

  opened(*before)
  opened(*before)
  with pytest.raises(UserError, match=r'other settings: boxes.*; give another --output') as caught:
    opened(*after)
  assert '\n' not in str(caught.value)


def test_results_of_another_model_or_a_former_version(setting, finished, tmp_path):
  model = Classifier.load(setting / 'model')
  jax.tree.map(lambda leaf: leaf + 1, model).save(tmp_path / 'model')
  with pytest.raises(UserError, match='holds results of another model; give another --output'):
    run(setting, finished, '--model', str(tmp_path / 'model'))
  (tmp_path / RESULTS).write_text('{"settings": {"seed": 0}}\n{"method": "rise", "batch": 0}\n')
  with pytest.raises(UserError, match='another version of rest_jax; give another --output'):
    run(setting, tmp_path)
