"""Signals, and how processes find each other."""

import os
import signal
import threading

import pytest

from rest_jax.errors import UserError
from rest_jax.train import processes
from rest_jax.train.processes import StopRequest


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (('host:1', None, None), 'go together'),
    ((None, 2, None), 'go together'),
    ((None, None, 0), 'go together'),
    (('host:1', 2, 2), '--process_id 2 is not below'),
    (('host:1', 2, -1), '--process_id -1'),
  ],
)
def test_flags_that_contradict_each_other(arguments, message):
  with pytest.raises(UserError, match=message):
    processes.initialize(*arguments)


def test_one_process():
  processes.initialize(None, None, None)
  assert processes.is_main()
  assert [processes.any_process(flag) for flag in (True, False)] == [True, False]


def test_too_late_to_join(capfd):
  # The devices of this process are in use already.
  import jax

  jax.devices()
  with pytest.raises(UserError, match=r'cannot join the run at --coordinator'):
    processes.initialize('127.0.0.1:1', 1, 0)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_first_signal_asks_and_the_second_ends(number, capfd):
  before = signal.getsignal(number)
  with pytest.raises(SystemExit) as caught, StopRequest() as stop:
    assert not stop.requested
    os.kill(os.getpid(), number)
    assert stop.requested
    os.kill(os.getpid(), number)
  assert caught.value.code == 128 + number
  assert signal.getsignal(number) == before
  assert ('once more' in capfd.readouterr().err) == (number == signal.SIGINT)


def test_workers_are_started_while_ctrl_c_is_ignored():
  def handlers():
    while True:
      yield signal.getsignal(signal.SIGINT)

  with StopRequest() as stop:
    own = signal.getsignal(signal.SIGINT)
    stream = stop.shielding(handlers())
    assert [next(stream) for _ in range(3)] == [signal.SIG_IGN, own, own]
    assert signal.getsignal(signal.SIGINT) == own


def test_other_threads_leave_signals_alone():
  before = signal.getsignal(signal.SIGTERM)
  seen = []

  def body():
    with StopRequest() as stop:
      seen.append((stop.requested, signal.getsignal(signal.SIGTERM) == before))

  thread = threading.Thread(target=body)
  thread.start()
  thread.join()
  assert seen == [(False, True)]
