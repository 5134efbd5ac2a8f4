"""Compiled programs are dropped before Linux's limit of mappings ends the process."""

import gc
import threading

import jax
import pytest

from rest_jax import programs


@pytest.fixture
def mappings(monkeypatch, tmp_path):
  """Makes it look as if the process had so many mappings of 1,000 allowed."""
  monkeypatch.setattr(programs, '_LIMIT', tmp_path / 'limit')
  monkeypatch.setattr(programs, '_MAPPINGS', tmp_path / 'maps')
  tmp_path.joinpath('limit').write_text('1000\n')
  return lambda count: tmp_path.joinpath('maps').write_bytes(b'00-ff rw-p\n' * count)


@pytest.fixture
def traces():
  """A compiled function, and how often it was traced."""
  seen = []

  @jax.jit
  def double(x):
    seen.append(x.shape)
    return 2 * x

  assert float(double(1.0)) == 2
  return double, seen


def test_few_mappings_keep_the_programs(mappings, traces):
  function, seen = traces
  mappings(399)
  assert not programs.release_programs()
  function(1.0)
  assert len(seen) == 1


def test_many_mappings_drop_them(mappings, traces):
  function, seen = traces
  mappings(400)
  assert programs.release_programs()
  assert float(function(3.0)) == 6
  assert len(seen) == 2


def test_systems_without_a_limit(monkeypatch, tmp_path, traces):
  monkeypatch.setattr(programs, '_LIMIT', tmp_path / 'none')
  assert not programs.release_programs(share=1e-9)


def test_work_of_another_thread_is_waited_for(mappings):
  mappings(1000)
  order, busy, end = [], threading.Event(), threading.Event()

  def work():
    with programs.in_use():
      busy.set()
      end.wait(10)
      order.append('work')

  def release():
    programs.release_programs()
    order.append('released')

  threads = [threading.Thread(target=work), threading.Thread(target=release)]
  threads[0].start()
  assert busy.wait(10)
  threads[1].start()
  threads[1].join(0.2)
  assert threads[1].is_alive()
  end.set()
  for thread in threads:
    thread.join(10)
  assert order == ['work', 'released']


def test_real_programs_take_mappings_and_give_them_back():
  if not programs._MAPPINGS.exists():
    pytest.skip('no /proc/self/maps on this system')

  def count():
    return len(programs._MAPPINGS.read_bytes().splitlines())

  before = count()
  kept = [
    jax.jit(lambda x, i=i: jax.numpy.sin(x + i) @ x.T)(jax.numpy.ones((8, 8))) for i in range(9)
  ]
  assert len(kept) == 9 and (most := count()) > before
  assert programs.release_programs(share=1e-9)
  gc.collect()
  assert count() < most
