"""Threads of the checkpoint writers: silent about what somebody is told already, and only then."""

import logging
import sys
import threading

import pytest

from rest_jax.train.quiet import quiet_threads

LATE = RuntimeError('Event loop is closed')


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
