"""Records on disk: what a kill leaves, what other settings and former versions are refused with."""

import json
import resource

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from rest_jax.errors import UserError
from rest_jax.evaluation import records as records_lib
from rest_jax.evaluation.fingerprint import pin, same_model, weights_hash
from rest_jax.evaluation.records import RESULTS, Records
from rest_jax.recipes import digest

MODEL = {'weights': 'abc', 'probe': [1.0, None, -2.5]}


def test_rows_come_back_from_disk(tmp_path):
  path = tmp_path / 'new' / RESULTS
  first = Records(path, {'seed': 1, 'budget': (1, 2)}, model=MODEL)
  first.add(
    'pgd',
    [5, 7],
    {'distance': np.array([0.1, 0.2], np.float32), 'success': np.array([True, False])},
  )
  first.add('a:b', np.array([5]), {'name': ['x'], 'queries': jnp.arange(1)})
  again = Records(path, {'budget': [1, 2], 'seed': 1}, model=MODEL)
  for records in (first, again):
    assert records.rows('pgd') == {
      5: {'distance': float(np.float32(0.1)), 'success': True},
      7: {'distance': float(np.float32(0.2)), 'success': False},
    }
    assert records.rows('a:b') == {5: {'name': 'x', 'queries': 0}}
    assert records.rows('none') == {}
    assert records.column('pgd', 'success', [7, 5]) == [False, True]


def test_in_memory_it_is_as_on_disk(tmp_path):
  columns = {'loss': np.array([np.nan, np.inf, 1.5]), 'target': [None, 3, 4]}
  for records in (Records(None, {}), Records(tmp_path / RESULTS, {})):
    records.add('case', range(3), columns)
    assert records.column('case', 'loss', range(3)) == [None, None, 1.5]
    assert records.column('case', 'target', range(3)) == [None, 3, 4]
  lines = (tmp_path / RESULTS).read_text().splitlines()
  for line in lines:
    json.loads(line, parse_constant=pytest.fail)


def test_a_later_row_takes_the_place_of_an_earlier_one(tmp_path):
  records = Records(tmp_path / RESULTS, {})
  records.add('case', [1, 2], {'x': [1, 2]})
  before = records.rows('case')
  records.add('case', [2], {'x': [3]})
  assert before[2] == {'x': 2}
  assert Records(tmp_path / RESULTS, {}).column('case', 'x', [1, 2]) == [1, 3]


@hypothesis.given(st.data())
def test_wherever_a_kill_cuts_the_file(tmp_path_factory, data):
  path = tmp_path_factory.mktemp('cut') / RESULTS
  records = Records(path, {'seed': 1})
  for first in range(0, 6, 2):
    records.add('case', [first, first + 1], {'x': [first, first + 1]})
  whole = path.read_bytes()
  cut = data.draw(st.integers(0, len(whole)))
  path.write_bytes(whole[:cut])
  again = Records(path, {'seed': 1})
  there = max(whole[:cut].count(b'\n') - 1, 0)
  assert again.rows('case') == {i: {'x': i} for i in range(there)}
  again.add('case', range(there, 6), {'x': list(range(there, 6))})
  assert Records(path, {'seed': 1}).rows('case') == {i: {'x': i} for i in range(6)}


@pytest.mark.parametrize('damage', ['{"case": 1', 'null', '{"case": "a"}', '[1]', '{"image": 1}'])
def test_a_damaged_line_is_named(tmp_path, damage):
  path = tmp_path / RESULTS
  Records(path, {}).add('case', [1, 2], {})
  lines = path.read_text().splitlines()
  path.write_text('\n'.join([lines[0], damage, lines[2]]) + '\n')
  with pytest.raises(UserError, match=r'results\.jsonl, line 2 is damaged; remove that line'):
    Records(path, {})
  assert Records(path, {}, replace=True).rows('case') == {}
  assert Records(path, {}).rows('case') == {}


def test_other_settings_are_named_in_one_line(tmp_path):
  path = tmp_path / RESULTS
  Records(path, {'seed': 1, 'layer': None, 'budget': {'masks': list(range(60))}})
  with pytest.raises(UserError) as caught:
    Records(path, {'seed': 2, 'layer': 'stage2'}, place='--output')
  assert str(caught.value) == (
    f'{path} holds results of other settings: budget, layer (None there, stage2 now), '
    'seed (1 there, 2 now); give another --output, or remove it'
  )


@pytest.mark.parametrize(
  'header',
  [
    '{"settings": {"seed": 1}}',  # of explain.py, once
    '{"format": 1, "model": {"weights": "abc", "probe": []}, "seed": "0"}',  # of attacks, once
    '{}',
  ],
)
def test_results_of_a_former_version_get_a_line(tmp_path, header):
  path = tmp_path / RESULTS
  path.write_text(f'{header}\n{{"method": "rise", "batch": 0}}\n')
  with pytest.raises(UserError, match='another version of rest_jax; give another output_dir'):
    Records(path, {'seed': 1})


@pytest.mark.parametrize('header', ['nonsense', '[]'])
def test_what_is_no_header(tmp_path, header):
  path = tmp_path / RESULTS
  path.write_text(f'{header}\n')
  with pytest.raises(UserError, match='line 1 is damaged; remove the file'):
    Records(path, {})


@pytest.mark.parametrize(
  'model',
  [
    {'weights': 'abd', 'probe': [1.0, None, -2.5]},
    {'weights': 'abc', 'probe': [1.1, None, -2.5]},
    {'weights': 'abc', 'probe': [1.0, 0.0, -2.5]},
    {'weights': 'abc', 'probe': [1.0]},
  ],
)
def test_another_model(tmp_path, model):
  Records(tmp_path / RESULTS, {}, model=MODEL)
  with pytest.raises(UserError, match=r'of another model .* say which model it is with model_id'):
    Records(tmp_path / RESULTS, {}, model=model)
  near = MODEL | {'probe': [1.0001, None, -2.5]}
  Records(tmp_path / RESULTS, {}, model=near)


def test_a_pin_is_of_weights_facts_and_answers():
  weights = {'a': jnp.arange(3.0), 'b': jnp.zeros((2, 2))}
  assert weights_hash(weights) == weights_hash({'b': np.zeros((2, 2), np.float32), **weights})
  assert len({weights_hash(weights), weights_hash({'a': jnp.arange(3.0)}), None}) == 3
  assert weights_hash(weights, 'vgg') != weights_hash(weights)
  assert weights_hash(lambda x: x) is None
  one = pin(lambda x: x, probe=np.array([[1.0, np.nan]]))
  assert one == {'weights': None, 'probe': [1.0, None], 'code': digest(lambda x: x)}
  named = pin(weights, probe=[1.0], model_id='mine')
  assert named == {'weights': 'id mine', 'probe': [], 'code': None}
  # What was kept before code was pinned is of the same model; with other code it is not.
  assert same_model({'weights': None, 'probe': [1.0, None]}, one)
  assert not same_model(one, pin(lambda x: x + 0, probe=np.array([[1.0, np.nan]])))
  assert same_model(one, one) and not same_model(one, pin(weights)) and same_model(None, None)
  assert not same_model(one, None) and not same_model(None, one) and not same_model('x', one)


def test_a_write_that_is_cut_off_leaves_whole_lines(tmp_path):
  path = tmp_path / RESULTS
  records = Records(path, {})
  records.add('case', [0], {'x': [0]})
  whole, (soft, hard) = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 10, hard))  # ten bytes more are taken
  try:
    with pytest.raises(UserError, match='cannot write to'):
      records.add('case', [1, 2], {'x': [1, 2]})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert path.read_bytes() == whole
  records.add('case', [1], {'x': [1]})
  assert Records(path, {}).column('case', 'x', [0, 1]) == [0, 1]


def test_a_write_that_fails_leaves_whole_lines(tmp_path, monkeypatch):
  records = Records(tmp_path / RESULTS, {})
  records.add('case', [0], {'x': [0]})

  def full(_):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(records_lib.os, 'fsync', full)
    with pytest.raises(UserError, match='No space left on device; free some space'):
      records.add('case', [1], {'x': [1]})
  assert set(records.rows('case')) == {0}
  records.add('case', [1], {'x': [1]})
  assert Records(tmp_path / RESULTS, {}).column('case', 'x', [0, 1]) == [0, 1]
