"""The runner of the benchmarks: its registry, turns, figures, report and arguments.

Sides are stand-ins here, but for one real process.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks import cases, measuring, report, run, worker  # noqa: E402
from benchmarks.cases import Case, Options, Ours, Theirs  # noqa: E402
from benchmarks.measuring import Budget  # noqa: E402
from benchmarks.processes import Pool, Side, SideError  # noqa: E402
from benchmarks.suites import growth  # noqa: E402
from benchmarks.work import Work  # noqa: E402
from rest_jax.errors import UserError, run_script  # noqa: E402

BUDGET = Budget(repeats=3, least=1, seconds=100)
SECONDS = {'a': [9.0, 1.0, 2.0, 4.0], 'b': [9.0, 3.0, 4.0, 2.0]}  # the first of each warms up


class FakeSide:
  """Answers with the seconds that it was given, and notes what it was asked."""

  def __init__(self, log, who):
    self.log, self.who, self.queues = log, who, {}

  def ask(self, what, **question):
    self.log.append((what, question.get('slot')))
    if what == 'prepare':
      if question['task'] == 'broken':
        raise SideError('OutOfMemory: no room')
      self.queues[question['slot']] = iter(SECONDS[question['params']['values']])
      more = {'batch': 16} if question['params'].get('batch') == 0 else {}
      self.log.append(question['params'])
      return {'setup': 0.5, 'first': 7.0, 'peak': 1000, **more}
    if what == 'run':
      return {'seconds': next(self.queues[question['slot']]), 'processor': 1.0}
    return {}

  def close(self):
    self.log.append(('close', self.who))


class FakePool(Pool):
  """Hands out stand-ins."""

  def __init__(self):
    super().__init__('cpu', 'python')
    self.log = []
    self.about = {'ours': {'versions': {'jax': '1'}, 'device': 'toy'}}

  def start(self, side):
    self.log.append(('start', side))
    return FakeSide(self.log, side)

  def get(self, side):
    if side not in self.kept:
      self.kept[side] = self.start(side)  # type: ignore[assignment]
    return self.kept[side]


@pytest.fixture
def pool(monkeypatch):
  monkeypatch.setattr(measuring, 'PAUSE', 0.0)
  return FakePool()


def case(**options):
  sides = {
    'mine': Ours('work', {'values': 'a', **options.pop('mine', {})}),
    'other': Theirs(options.pop('task', 'work'), {'values': 'b', **options.pop('other', {})}),
  }
  return Case({'model': 'toy', 'batch': 4}, sides, items=4, **options)


def test_sides_take_turns_and_the_ratio_is_round_by_round(pool):
  record = measuring.measure(case(), pool, BUDGET, {'python': 'p'})
  turns = [slot for what, slot in (e for e in pool.log if isinstance(e, tuple)) if what == 'run']
  assert turns == ['mine', 'other'] * 4
  assert record['sides']['mine']['seconds'] == [1, 2, 4]
  # 3/1, 4/2, 2/4: the median of the ratios is 2, the ratio of the medians would be 1.5.
  assert record['ratios'] == {'other': {'median': 2.0, 'least': 0.5, 'most': 3.0}}
  assert pool.log.count(('start', 'ours')) == 1 and ('close', 'ours') not in pool.log


def test_without_the_peer_ours_alone_is_measured(pool):
  record = measuring.measure(case(), pool, BUDGET, {})
  assert record['sides']['other'] == {'absent': 'python'} and not record['ratios']
  assert record['sides']['mine']['seconds'] == [1, 2, 4]
  assert ('start', 'theirs') not in pool.log


def test_a_side_that_fails_leaves_the_other(pool):
  record = measuring.measure(case(task='broken'), pool, BUDGET, {'python': 'p'})
  assert record['sides']['other'] == {'error': 'OutOfMemory: no room'}
  assert record['sides']['mine']['seconds'] == [1, 2, 4] and not record['ratios']


def test_alone_runs_one_side_after_the_other_at_the_batch_that_fits(pool):
  one = case(alone=True, mine={'batch': 0}, other={'batch': 0})
  notes = []
  record = measuring.measure(
    one, pool, BUDGET, {'python': 'p'}, lambda r: notes.append(len(r['sides']))
  )
  events = [e for e in pool.log if isinstance(e, tuple) and e[0] in ('start', 'run', 'close')]
  first, second = [('run', 'mine')] * 4, [('run', 'other')] * 4
  assert events == [
    ('start', 'ours'), *first, ('close', 'ours'), ('start', 'theirs'), *second, ('close', 'theirs')
  ]  # fmt: skip
  assert record['items'] == 16 and [e for e in pool.log if isinstance(e, dict)][1]['batch'] == 16
  assert notes == [1, 2] and record['ratios']['other']['median'] == 2


def test_once_times_the_first_call_in_a_new_process(pool):
  record = measuring.measure(case(once=True), pool, BUDGET, {'python': 'p'})
  assert record['sides']['mine']['seconds'] == [7.0] and record['ratios']['other']['median'] == 1
  assert ('run', 'mine') not in pool.log and ('close', 'ours') in pool.log


def test_a_budget_ends_the_rounds(pool):
  budget = Budget(repeats=3, least=2, seconds=0.0)
  record = measuring.measure(case(), pool, budget, {'python': 'p'})
  assert len(record['sides']['mine']['seconds']) == 2


def test_checkouts_reach_the_tasks_that_need_one(pool):
  sides = {'x': Ours('work', {'values': 'a'}), 'y': Theirs('work', {'values': 'b'}, 'rest')}
  measuring.measure(Case({}, sides), pool, BUDGET, {'rest': '/ResT', 'python': 'p'})
  assert [e.get('checkout') for e in pool.log if isinstance(e, dict)] == [None, '/ResT']


def test_every_suite_has_cases_and_tasks_that_exist(tmp_path):
  assert {'forward', 'gradient', 'training', 'memory', 'attention', 'cams', 'curves'} < {
    *cases.SUITES
  }
  for suite in cases.SUITES.values():
    for options in (Options(output=tmp_path), Options(quick=True, output=tmp_path)):
      found = suite.cases(options)
      assert found, suite.name
      for one in found:
        assert next(iter(one.sides.values())).who == 'ours'
        for side in one.sides.values():
          json.dumps(dict(side.params))
          assert side.peer is None or side.peer in cases.PEERS
          module, _, function = side.task.rpartition('.')
          source = ROOT / 'benchmarks' / side.who / f'{module}.py'
          assert f'\ndef {function}(' in source.read_text('utf-8')
  assert not list(tmp_path.iterdir())  # naming cases writes nothing


def test_the_report_has_one_format(tmp_path, pool):
  options = Options(quick=True, output=tmp_path)
  written = report.Report(options, {'matmul float32': 1e9, 'copy': 1e9}, {'python': 'p'})
  suite = cases.Suite('toys', 'Toys', 'What they mean.', lambda options: [])
  records = written.add(suite)
  for one in (case(), case(task='broken')):
    pool.kept.clear()
    measuring.measure(one, pool, BUDGET, {'python': 'p'}, written.noting(records, pool.about))
  records[0]['sides']['mine'].update(flops=1e9, bytes=5e8, loops=False)
  written.write(last=True)
  content = json.loads((tmp_path / 'benchmarks.json').read_text())
  assert content['format'] == report.FORMAT and content['quick'] and len(content['load']) == 2
  assert [len(s['records']) for s in content['suites']] == [2]
  assert content['suites'][0]['records'][0]['sides']['mine']['seconds'] == [1, 2, 4]
  text = (tmp_path / 'benchmarks.md').read_text()
  assert '## toys: Toys' in text and 'A quick run' in text
  rows = [line for line in text.splitlines() if line.startswith('| toy ')]
  assert rows[0].split('|')[3].strip() == '2 s (1 s-4 s)' and '2.00 (0.50-3.00)' in rows[0]
  assert '| 50% | 25% |' in rows[0]  # 1e9 operations and 5e8 bytes in 2 s
  assert 'failed' in rows[1] and '- other: failed, OutOfMemory: no room' in text


@pytest.mark.parametrize(
  ('value', 'text'), [(2.0, '2 s'), (0.0124, '12.4 ms'), (3e-6, '3 µs'), (83.25, '83.2 s')]
)
def test_seconds_have_a_unit(value, text):
  assert report.seconds(value) == text


@pytest.mark.parametrize('power', [0.5, 1.0, 2.0])
def test_an_exponent_is_the_slope_in_logarithms(power):
  sizes = [10, 20, 40, 80]
  assert growth.exponent(sizes, [3 * s**power for s in sizes]) == pytest.approx(power)


def test_growth_concludes_with_exponents_and_a_figure(tmp_path):
  records = [
    {
      'case': {'work': 'forward', 'grows': 'tokens', 'size': size},
      'sides': {
        'ours': {'seconds': [size / 10], 'peak': size**2},
        'peer': {'absent': 'rest'},
      },
    }
    for size in (10, 20, 40)
  ]
  table, figure = growth.conclude(records, tmp_path)
  cells = [cell.text for cell in table.rows[0]]
  assert cells == ['forward: tokens', 'ours', '10 to 40', '1.00', '2.00'] and len(table.rows) == 1
  assert figure.path.read_bytes().startswith(b'\x89PNG')


WRONG = {
  'no suite': ['--suite', 'forwards'],
  'no peer': ['--peers', 'torch=/x'],
  'no path': ['--peers', 'rest'],
  'not a checkout': ['--peers', 'rest=/'],
  'no interpreter': ['--peers', 'python=/nowhere'],
  'a device': ['--device', 'tpu'],
  'no rounds': ['--repeats', '0'],
  'no time': ['--seconds', '-1'],
  'not a number': ['--seconds', 'nan'],
  'no case': ['--suite', 'denoisers', '--cases', 'nothing'],
  'no flag': ['--fast'],
}


@pytest.mark.parametrize('arguments', WRONG.values(), ids=WRONG)
def test_bad_arguments_end_with_status_2_before_any_work(arguments, monkeypatch, capsys, tmp_path):
  monkeypatch.setattr(sys, 'argv', ['run.py', *arguments, '--output', str(tmp_path / 'out')])
  monkeypatch.setattr(Pool, 'start', lambda *args: pytest.fail('work was begun'))
  with pytest.raises(SystemExit) as end:
    run_script(run.main)
  lines = capsys.readouterr().err.splitlines()
  assert end.value.code == 2 and len(lines) == 1 and lines[0].startswith('error: ')
  assert not (tmp_path / 'out').exists()


def test_peers_without_torch_are_refused(tmp_path):
  (tmp_path / 'models').mkdir()
  (tmp_path / 'models/rest.py').write_text('')
  with pytest.raises(UserError, match='python=PATH'):
    run.peers_of([f'rest={tmp_path}'])
  python = tmp_path / 'python'
  python.write_text('#!/bin/sh\nexit 1\n')
  python.chmod(0o755)
  with pytest.raises(UserError, match='has no torch'):
    run.peers_of([f'python={python}'])


def test_list_names_cases_and_does_nothing(monkeypatch, capsys, tmp_path):
  words = ['run.py', '--suite', 'attention', '--list', '--output', str(tmp_path / 'out')]
  monkeypatch.setattr(sys, 'argv', words)
  assert run.main() == 0
  text = capsys.readouterr().out
  assert text.startswith('attention: ') and '(rest)' in text and not (tmp_path / 'out').exists()


def test_a_worker_counts_memory_over_what_there_was():
  held: int | None = None
  made = worker.Worker.__new__(worker.Worker)
  made.side, made.work = 'ours', {}
  hooks: Any = SimpleNamespace(device_peak=lambda: None, held=lambda: held)
  made.hooks = hooks
  if not worker.settle():
    pytest.skip('this system does not tell a process its memory')
  work, size, before = Work(lambda: bytearray(64 * 2**20)), 2**20, worker.resident()
  for held in (None, 0, 100 * size):
    found = (made._peak(work, before) or 0) - (held or 0)
    assert 60 * size < found < 80 * size


def test_a_process_answers_reports_errors_and_ends():
  side = Side('ours', sys.executable, 'cpu')
  try:
    assert side.about['versions']['jax']
    params = {'quick': True, 'dtype': 'float32'}
    found = side.ask('prepare', slot='x', task='machine.matmul', params=params, peak=False)
    assert found['flops'] == 2 * 768**3 and found['first'] > 0
    assert side.ask('run', slot='x', calls=2)['seconds'] > 0
    with pytest.raises(SideError, match='No module named'):
      side.ask('prepare', slot='y', task='no.task', params={}, peak=False)
    assert side.ask('drop') == {}
  finally:
    side.close()
  assert side.process.returncode == 0


def test_what_was_measured_with_other_weights_is_forgotten(tmp_path, monkeypatch):
  """One table is of one training; runs, by hand, of models of which two begin alike."""
  monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
  from benchmarks.autoattack import Results

  path = tmp_path / 'table.json'
  results = Results(path)
  for model in ('plain', 'plain_more', 'robust'):
    results.of_weights(model, f'{model} 1')
    results.values.setdefault('clean', {})[model] = 0.5
    for library in ('ours', 'official'):
      results.put(library, f'{model} linf 8/255 all', {'robust': 0.25})
  before = path.read_text()
  for model in ('plain', 'plain_more', 'robust'):
    results.of_weights(model, f'{model} 1')  # the same weights: nothing changes
  assert path.read_text() == before
  Results(path).of_weights('plain', 'plain 2')
  values = Results(path).values
  assert set(values['runs']) == {'plain_more linf 8/255 all', 'robust linf 8/255 all'}
  assert values['clean'] == {'plain_more': 0.5, 'robust': 0.5}
  assert values['weights'] == {
    'plain': 'plain 2',
    **{m: f'{m} 1' for m in ('plain_more', 'robust')},
  }
  # Runs of before weights were written down are of weights that nobody knows.
  path.write_text(json.dumps({'runs': {'old linf 8/255 fab_t': {'ours': {}}}, 'versions': {}}))
  results = Results(path)
  results.of_weights('old', 'old 1')
  assert results.get('ours', 'old linf 8/255 fab_t') is None and not results.values['runs']
