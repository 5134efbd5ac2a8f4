"""Checkpoints: to the bit, best and last, half-written ones, those of another model."""

import functools
import logging
import shutil
import sys
import threading

import jax
import numpy as np
import optax
import pytest

from rest_jax.errors import UserError
from rest_jax.train import parallel, state
from rest_jax.train.checkpoints import Checkpoints, quiet_threads

LATE = RuntimeError('Event loop is closed')


@functools.cache
def make(model, mesh, seed=0, **options):
  def create():
    key = jax.random.key(seed)
    return state.create_state(model(**options), optax.adamw(1e-3), key, 8, ema=True)

  return parallel.replicate(create, mesh)(), jax.eval_shape(create)


@pytest.fixture
def mesh():
  return parallel.make_mesh(jax.devices()[:2])


@pytest.fixture
def opened(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  yield checkpoints
  checkpoints.close()


def meta(step):
  return {'step': step, 'iterator': {'next_batch': step}, 'last': None, 'seconds': 0.5}


def assert_equal(one, other):
  assert jax.tree.structure(one) == jax.tree.structure(other)
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_everything_comes_back_to_the_bit(opened, mesh, tiny_net):
  saved, template = make(tiny_net, mesh)
  opened.save_last(saved, meta(3))
  found, book = opened.restore_last(template, mesh)
  assert_equal(saved, found)
  assert book == meta(3)
  leaf = found.params['head']['kernel']
  assert leaf.sharding.is_fully_replicated and leaf.sharding.mesh == mesh
  assert found.batch_stats['norm']['count'].dtype == np.int32


def test_nothing_saved(opened, mesh, tiny_net):
  _, template = make(tiny_net, mesh)
  assert opened.restore_last(template, mesh) is None
  assert opened.restore_best(template, mesh) is None
  assert opened.best_meta() is None


def test_the_newest_two_and_the_best_are_kept(opened, mesh, tiny_net, tmp_path):
  saved, template = make(tiny_net, mesh)
  for step in (1, 2, 3, 3):  # a step that is there already is left alone
    opened.save_last(saved, meta(step))
  assert sorted(p.name for p in (tmp_path / 'checkpoints' / 'last').iterdir()) == ['2', '3']
  other, _ = make(tiny_net, mesh, seed=1)
  opened.save_best(saved, meta(1))
  opened.save_best(saved, meta(2))
  opened.save_best(other, meta(2))  # the same step, measured again after a kill
  assert [p.name for p in (tmp_path / 'checkpoints' / 'best').iterdir()] == ['2']
  assert opened.best_meta()['step'] == 2
  assert_equal(opened.restore_best(template, mesh)[0], other)
  opened.save_best(saved, meta(1))  # a better one at an earlier step, after a kill
  assert opened.best_meta()['step'] == 1


def test_a_broken_best_checkpoint_counts_as_none(opened, mesh, tiny_net, tmp_path, capsys):
  saved, template = make(tiny_net, mesh)
  opened.save_best(saved, meta(1))
  leave_nothing(tmp_path / 'checkpoints' / 'best' / '1')
  assert opened.best_meta() is None
  assert opened.restore_best(template, mesh) is None
  assert 'is skipped' in capsys.readouterr().out
  opened.save_best(saved, meta(2))
  assert opened.best_meta()['step'] == 2


def break_metadata(directory):
  (directory / 'state' / '_METADATA').write_text('{')


def break_arrays(directory):
  for path in (directory / 'state' / 'd').iterdir():
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def break_meta(directory):
  (directory / 'meta' / 'metadata').write_text('{"step": 2')


def leave_nothing(directory):
  shutil.rmtree(directory)
  directory.mkdir()


@pytest.mark.parametrize('damage', [break_metadata, break_arrays, break_meta, leave_nothing])
def test_a_broken_checkpoint_is_skipped(mesh, tiny_net, tmp_path, damage, capsys):
  saved, template = make(tiny_net, mesh)
  first = Checkpoints(tmp_path)
  first.save_last(saved, meta(1))
  first.save_last(saved, meta(2))
  first.close()
  damage(tmp_path / 'checkpoints' / 'last' / '2')

  second = Checkpoints(tmp_path)
  found, book = second.restore_last(template, mesh)
  assert book['step'] == 1
  assert_equal(found, saved)
  assert 'step 2 cannot be read' in capsys.readouterr().out
  # Training comes to step 2 again and must be able to save there.
  second.save_last(saved, meta(2))
  second.close()
  third = Checkpoints(tmp_path)
  assert third.restore_last(template, mesh)[1]['step'] == 2
  third.close()


def test_a_checkpoint_under_its_temporary_name_is_no_checkpoint(mesh, tiny_net, tmp_path):
  saved, template = make(tiny_net, mesh)
  first = Checkpoints(tmp_path)
  first.save_last(saved, meta(1))
  first.close()
  last = tmp_path / 'checkpoints' / 'last'
  shutil.copytree(last / '1', last / '2.orbax-checkpoint-tmp')
  second = Checkpoints(tmp_path)
  assert second.restore_last(template, mesh)[1]['step'] == 1
  second.close()
  assert sorted(p.name for p in last.iterdir()) == ['1']


def test_none_that_can_be_read(mesh, tiny_net, tmp_path):
  saved, template = make(tiny_net, mesh)
  first = Checkpoints(tmp_path)
  first.save_last(saved, meta(1))
  first.close()
  break_arrays(tmp_path / 'checkpoints' / 'last' / '1')
  second = Checkpoints(tmp_path)
  with pytest.raises(UserError, match=r'no checkpoint in .*last can be read; remove'):
    second.restore_last(template, mesh)
  second.close()


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (dict(num_classes=5), r'params/head/bias: \(3,\) there, \(5,\) here'),
    (dict(norm=False), r'batch_stats/norm/count: \(\) there, missing here'),
  ],
)
def test_a_checkpoint_of_another_model(opened, mesh, tiny_net, options, message):
  opened.save_last(make(tiny_net, mesh)[0], meta(1))
  _, template = make(tiny_net, mesh, **options)
  with pytest.raises(UserError, match=f'of another model.*{message}.*--output'):
    opened.restore_last(template, mesh)


def test_a_place_that_cannot_be_written(tmp_path, mesh, tiny_net):
  (tmp_path / 'checkpoints').write_text('a file')
  with pytest.raises(UserError, match=r'cannot write to the work directory'):
    Checkpoints(tmp_path)


@pytest.fixture
def hooks(monkeypatch):
  """What reaches the hooks that were there before."""
  seen = []
  monkeypatch.setattr(sys, 'excepthook', lambda kind, error, trace: seen.append(str(error)))
  monkeypatch.setattr(threading, 'excepthook', lambda found: seen.append(str(found.exc_value)))
  monkeypatch.setattr(sys, 'unraisablehook', lambda found: seen.append(str(found.exc_value)))
  monkeypatch.setattr(logging.getLogger('asyncio'), 'filters', [])
  return seen


def report(error):
  sys.excepthook(type(error), error, None)
  threading.excepthook(threading.ExceptHookArgs((type(error), error, None, None)))


def test_a_failed_write_keeps_late_threads_silent(hooks, caplog):
  with pytest.raises(OSError, match='full'), quiet_threads():
    logging.getLogger('absl').error('a traceback of a thread')
    report(LATE)
    raise OSError('full')
  report(LATE)
  report(RuntimeError('another one'))
  logging.getLogger('asyncio').error('_GatheringFuture exception was never retrieved')
  logging.getLogger('absl').error('later')
  assert hooks == ['another one', 'another one']
  assert [record.getMessage() for record in caplog.records] == ['later']


def test_nothing_is_left_of_a_write_that_went_well(hooks):
  before = sys.excepthook, threading.excepthook, sys.unraisablehook
  with quiet_threads():
    report(LATE)
  assert (sys.excepthook, threading.excepthook, sys.unraisablehook) == before
  report(LATE)
  assert hooks == [str(LATE)] * 2
  assert not logging.getLogger('asyncio').filters
