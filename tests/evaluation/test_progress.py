"""What is shown: lines where there is no terminal, a bar where there is one."""

import io

import pytest

from rest_jax.evaluation import progress
from rest_jax.evaluation.progress import Progress, clock


@pytest.mark.parametrize(
  ('seconds', 'words'),
  [(0, '0s'), (59.4, '59s'), (60, '1m00s'), (3599.4, '59m59s'), (3600, '1h00m'), (90000, '25h00m')],
)
def test_durations(seconds, words):
  assert clock(seconds) == words


@pytest.fixture
def now(monkeypatch):
  """A clock that stands until it is moved."""
  moment = [0.0]
  monkeypatch.setattr(progress.time, 'monotonic', lambda: moment[0])
  return moment


def test_speed_and_remaining_time(now, capsys):
  shown = Progress(total=100, start=10, batch_size=8)
  now[0] = 50.0  # compiling
  shown.start_clock(11)
  assert shown.state() == 'step 10/100'
  now[0] = 60.0
  shown.update(31)
  assert shown.state() == 'step 31/100, 16 img/s, 34s left'
  assert capsys.readouterr().out == 'step 31/100, 16 img/s, 34s left\n'
  now[0] = 80.0  # too soon for another line
  shown.update(32)
  assert capsys.readouterr().out == ''
  shown.close()


def test_other_processes_are_silent(now, capsys):
  shown = Progress(total=10, start=0, batch_size=8, active=False)
  now[0] = 1000.0
  shown.update(5)
  shown.say('text')
  shown.close()
  assert capsys.readouterr() == ('', '')


def test_bar_on_a_terminal(monkeypatch):
  class Terminal(io.StringIO):
    def isatty(self):
      return True

  terminal, out = Terminal(), io.StringIO()
  monkeypatch.setattr(progress.sys, 'stderr', terminal)
  monkeypatch.setattr(progress.sys, 'stdout', out)
  shown = Progress(total=10, start=0, batch_size=8)
  shown.update(10)
  shown.say('a line')
  shown.close()
  assert '100%' in terminal.getvalue() and 'img/s' in terminal.getvalue()
  assert out.getvalue() == 'a line\n'
