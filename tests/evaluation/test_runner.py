"""The one way of evaluating: nothing twice, one size of batch, all devices, kills at any moment."""

import collections
import os
import pathlib
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from rest_jax import programs
from rest_jax.evaluation.batches import Images
from rest_jax.evaluation.records import RESULTS, Records
from rest_jax.evaluation.runner import Replicas, count_left, run


def pieces(counts, first=0):
  """Pieces of so many images each, whose value is the double of their index."""
  for count in counts:
    indices = np.arange(first, first + count)
    yield Images(indices, {'value': 2.0 * indices, 'none': None})
    first += count


class Work:
  """Remembers what it was asked for."""

  def __init__(self):
    self.calls = collections.Counter()

  def __call__(self, case, batch, device):
    self.calls.update((case, int(index)) for index in batch.indices)
    assert batch['value'].shape == (batch.size,) and batch['none'] is None
    np.testing.assert_array_equal(batch['value'][: batch.count], 2.0 * batch.indices)
    assert (batch['value'][batch.filler] == batch['value'][batch.count - 1]).all()
    return {'y': batch['value'] + len(case), 'label': [case] * batch.count}


@hypothesis.given(
  st.lists(st.integers(0, 7), max_size=4), st.integers(1, 5), st.booleans(), st.integers(1, 4)
)
def test_every_image_of_every_case_once(counts, size, packed, devices):
  size = size if packed else max([size, *counts])
  records, work = Records(None, {}), Work()
  through = collections.Counter()
  run(
    ['a', 'bb'],
    pieces(counts),
    records,
    work,
    size=size,
    packed=packed,
    devices=jax.local_devices()[:devices],
    progress=lambda label, count: through.update({label: count}),
  )
  total = sum(counts)
  assert set(work.calls.values()) <= {1} and len(work.calls) == 2 * total
  for case in ('a', 'bb'):
    assert records.column(case, 'y', range(total)) == [2.0 * i + len(case) for i in range(total)]
    assert records.column(case, 'label', range(total)) == [case] * total
    assert through[case] == total


@hypothesis.given(st.sets(st.integers(0, 19)), st.booleans())
def test_what_is_there_is_not_done_again(known, packed):
  records, work, sizes = Records(None, {}), Work(), []
  records.add('a', sorted(known), {'y': [-1.0] * len(known)})

  def counted(case, batch, device):
    sizes.append(batch.count)
    return work(case, batch, device)

  run(['a'], pieces([4] * 5), records, counted, size=4, packed=packed, devices=[None])
  assert [i for i in range(20) if records.rows('a')[i]['y'] == -1.0] == sorted(known)
  if packed:
    assert {index for _, index in work.calls} == set(range(20)) - known
  else:  # whole pieces of which something is missing
    assert all(size == 4 for size in sizes)
    assert len(sizes) == sum(not set(range(k, k + 4)) <= known for k in range(0, 20, 4))


def test_a_piece_is_packed_into_full_batches():
  records, sizes = Records(None, {}), []
  records.add('a', [0, 2, 4, 6, 8], {'y': [0.0] * 5})

  def work(case, batch, device):
    sizes.append(batch.count)
    return {'y': batch['value']}

  run(['a'], pieces([12]), records, work, size=3, devices=[None])
  assert sizes == [3, 3, 1]


def test_a_case_may_hang_on_the_records_of_earlier_ones():
  """As an attack at a radius, which takes over what a smaller one fooled."""
  records, work = Records(None, {}), Work()

  def settle(case, piece):
    if case == 'large':
      known = [i for i in piece.indices.tolist() if records.rows('small')[i]['y'] < 20]
      records.add('large', known, {'y': [0.0] * len(known)})

  run(['small', 'large'], pieces([9, 6]), records, work, size=2, settle=settle)
  assert [i for i in range(15) if ('large', i) in work.calls] == list(range(8, 15))
  assert all(('small', i) in work.calls for i in range(15))


def test_cases_of_a_piece_and_what_is_left():
  records, work = Records(None, {}), Work()

  def cases(piece):
    return ['a', 'first'] if piece.indices[0] == 0 else ['a']

  assert count_left(['a'], pieces([3, 3]), records) == 6
  run(cases, pieces([3, 3]), records, work, size=3, packed=False)
  assert set(records.rows('first')) == {0, 1, 2} and len(records.rows('a')) == 6
  assert count_left(['a', 'b'], pieces([3, 3]), records) == 6


def test_pieces_without_work_are_not_read():
  records = Records(None, {})
  records.add('a', range(4), {})

  def read():
    raise AssertionError('read')

  run(['a'], [Images(range(4), read=read)], records, Work(), size=2)
  reads = []
  piece = Images(range(4, 8), read=lambda: reads.append(1) or {'value': np.arange(8.0, 16.0, 2)})

  def work(case, batch, device):
    return {'y': batch['value']}

  run(['a', 'b'], [piece], records, work, size=1)
  assert reads == [1] and records.rows('b')[7] == {'y': 14.0}


def test_keys_are_those_of_the_images():
  key = jax.random.key(3)
  batch = Images([5, 9, 11], {}).batch(np.array([0, 2]), 4)
  expected = [jax.random.fold_in(key, i) for i in (5, 11, 11, 11)]
  found = jax.random.key_data(batch.keys(key))
  np.testing.assert_array_equal(found, np.stack([jax.random.key_data(k) for k in expected]))


def test_all_devices_are_busy_and_hold_the_model():
  model = {'scale': jnp.float32(3.0)}
  together, used = threading.Barrier(4, timeout=60), set()
  replicas = Replicas(model)

  def work(case, batch, device):
    placed = replicas(device)
    assert placed['scale'].devices() == {device} and replicas(device) is placed
    assert jnp.zeros(()).devices() == {device}
    together.wait()  # four batches are under way at once
    used.add(device)
    return {'y': placed['scale'] * batch['value'].astype(np.float32)}

  records, alone = Records(None, {}), Records(None, {})
  run(['a'], pieces([16]), records, work, size=2)
  assert used == set(jax.local_devices())
  together = threading.Barrier(1)
  run(['a'], pieces([16]), alone, work, size=2, devices=jax.local_devices()[:1])
  assert records.column('a', 'y', range(16)) == alone.column('a', 'y', range(16))
  assert Replicas(model)(None) is model


def test_few_batches_are_taken_by_the_devices_that_have_compiled():
  used = []

  def work(case, batch, device):
    used.append(device)
    return {'y': batch['value']}

  run(['a', 'b', 'c'], pieces([2]), Records(None, {}), work, size=2, settle=lambda *_: None)
  assert len(set(used)) == 1


@pytest.mark.parametrize('devices', [1, 4])
def test_an_error_keeps_what_is_done(devices):
  records = Records(None, {})

  def work(case, batch, device):
    if 6 in batch.indices:
      raise KeyboardInterrupt if devices == 1 else RuntimeError('broken')
    return {'y': batch['value']}

  with pytest.raises((KeyboardInterrupt, RuntimeError)):
    run(['a'], pieces([40]), records, work, size=2, devices=jax.local_devices()[:devices])
  assert set(range(6)) <= set(records.rows('a')) and 6 not in records.rows('a')
  assert len(records.rows('a')) < 40


def test_programs_are_released_between_cases_with_nothing_under_way(monkeypatch):
  running, released = set(), []
  monkeypatch.setattr(programs, 'crowded', lambda: True)

  def release():
    assert not running
    released.append(1)

  monkeypatch.setattr(programs, 'release_programs', release)

  def work(case, batch, device):
    running.add(threading.get_ident())
    time.sleep(0.01)
    running.discard(threading.get_ident())
    return {}

  run(['a', 'b'], pieces([8]), Records(None, {}), work, size=1)
  assert len(released) == 2


SCRIPT = textwrap.dedent(
  """
  import pathlib, sys, time
  import jax, numpy as np
  from rest_jax.evaluation.batches import Images
  from rest_jax.evaluation.records import Records
  from rest_jax.evaluation.runner import run
  folder = pathlib.Path(sys.argv[1])

  def work(case, batch, device):
    with (folder / 'calls').open('a') as file:
      file.write(''.join(f'{case} {i}\\n' for i in batch.indices))
    time.sleep(0.02)
    return {'y': batch['value'] * len(case)}

  def settle(case, piece):
    if case == 'bbb':
      known = [i for i in piece.indices.tolist() if records.rows('a')[i]['y'] % 3 == 0]
      records.add(case, known, {'y': [0.0] * len(known)})

  records = Records(folder / 'results.jsonl', {'seed': 0})
  pieces = [Images(range(k, k + 30), {'value': np.arange(k, k + 30.0)}) for k in (0, 30)]
  print('begins', flush=True)
  run(['a', 'bbb'], pieces, records, work, size=4, settle=settle)
  """
)


def test_killed_at_random_moments_it_ends_with_the_same_results(tmp_path):
  script = tmp_path / 'script.py'
  script.write_text(SCRIPT)

  def start(folder):
    folder.mkdir(exist_ok=True)
    command = [sys.executable, str(script), str(folder)]
    env = os.environ | {'PYTHONPATH': str(pathlib.Path(__file__).parents[2])}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)

  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  with start(whole) as process:
    assert process.wait() == 0
  chance, kills = random.Random(0), 0
  for _ in range(4):
    with start(killed) as process:
      assert process.stdout is not None and process.stdout.readline() == 'begins\n'
      time.sleep(chance.uniform(0.0, 0.12))
      os.kill(process.pid, signal.SIGKILL)
      kills += process.wait() == -signal.SIGKILL
  with start(killed) as process:
    assert process.wait() == 0
  assert kills >= 2
  results = [Records(folder / RESULTS, {'seed': 0}) for folder in (whole, killed)]
  for case in ('a', 'bbb'):
    assert results[0].rows(case) == results[1].rows(case) and len(results[0].rows(case)) == 60
  calls = [(folder / 'calls').read_text().splitlines() for folder in (whole, killed)]
  assert len(calls[0]) == len(set(calls[0])) and set(calls[0]) == set(calls[1])
  # At a kill each of the four devices loses the batch at hand.
  assert len(calls[1]) - len(calls[0]) <= kills * 4 * 4
