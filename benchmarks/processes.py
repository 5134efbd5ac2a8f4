"""The processes that do the work: started, asked, stopped while it is not their turn, ended."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.worker import MARK
from rest_jax import allocator

ROOT = Path(__file__).resolve().parents[1]


class SideError(Exception):
  """A side that cannot do its work: one line."""


def environment(side: str, device: str) -> dict[str, str]:
  """Of a side's process: our code found, the device chosen, no memory taken in advance.

  Both sides keep the pages that they free, as our commands do.
  """
  paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
  found = {**os.environ, 'PYTHONPATH': os.pathsep.join(paths), 'PYTHONWARNINGS': 'ignore'}
  found |= allocator.variables()
  if side == 'ours':
    found['JAX_PLATFORMS'] = 'cpu' if device == 'cpu' else 'cuda,cpu'
    # No memory is taken in advance, since the other side needs some too, and none is out of reach.
    found['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'
    found['XLA_PYTHON_CLIENT_MEM_FRACTION'] = '0.95'
  return found


class Side:
  """A process of one side, which holds pieces of work in slots."""

  def __init__(self, side: str, python: str, device: str):
    """Starts it.

    Args:
      side: 'ours' or 'theirs'.
      python: interpreter.
      device: 'cpu' or 'gpu'.
    """
    command = [python, '-m', 'benchmarks.worker', side, '--device', device]
    self.stopped = False
    self.process = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      cwd=ROOT,
      env=environment(side, device),
    )
    try:
      self.about = self.ask('about')
    except SideError:
      self.close()
      raise

  def ask(self, what: str, **question: Any) -> dict[str, Any]:
    """Asks, and waits for the answer.

    Raises:
      SideError: it could not, or the process has ended.
    """
    assert self.process.stdin is not None and self.process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
      self.process.stdin.write(json.dumps({'do': what, **question}) + '\n')
      self.process.stdin.flush()
    for line in self.process.stdout:
      if line.startswith(MARK):
        found = json.loads(line[len(MARK) :])
        if 'error' in found:
          raise SideError(found['error'])
        return found
    raise SideError(f'its process ended with status {self.process.wait()}; see the lines above')

  def tree(self) -> list[Any]:
    """The process and its children, as psutil knows them; empty without psutil."""
    if importlib.util.find_spec('psutil') is None:
      return []
    import psutil

    try:
      top = psutil.Process(self.process.pid)
      return [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
      return []

  def processor_seconds(self) -> float:
    """Seconds of processor time of the whole tree so far."""
    total = 0.0
    for process in self.tree():
      times = process.cpu_times()
      total += times.user + times.system
    return total

  def largest_child(self) -> int | None:
    """Resident bytes of the largest process that it has started; None if there is none."""
    return max((child.memory_info().rss for child in self.tree()[1:]), default=None)

  def turn(self, awake: bool) -> None:
    """Lets the tree go on, or stops it."""
    for process in self.tree():
      process.resume() if awake else process.suspend()
    self.stopped = not awake

  def close(self) -> None:
    """Ends the process and what it has started."""
    if self.stopped:
      self.turn(awake=True)
    tree = self.tree()[1:]
    for stream in (self.process.stdin, self.process.stdout):
      with contextlib.suppress(OSError):
        stream.close()  # type: ignore[union-attr]
    for process in tree:
      with contextlib.suppress(Exception):  # gone already
        process.kill()
    try:
      self.process.wait(timeout=5)
    except subprocess.TimeoutExpired:
      self.process.kill()
      self.process.wait()


class Pool:
  """The processes of a run: one of each side that stays, and others for a case alone."""

  def __init__(self, device: str, python: str | None = None):
    """Starts nothing yet.

    Args:
      device: 'cpu' or 'gpu'.
      python: interpreter of the peers; None: there are none.
    """
    self.device = device
    self.pythons = {'ours': sys.executable, 'theirs': python}
    self.kept: dict[str, Side] = {}
    self.about: dict[str, dict[str, Any]] = {}

  def start(self, side: str) -> Side:
    """A new process, which the caller closes."""
    python = self.pythons[side]
    if python is None:
      raise SideError('no interpreter for the peers: --peers python=PATH')
    process = Side(side, python, self.device)
    self.about[side] = process.about
    return process

  def get(self, side: str) -> Side:
    """The process of a side that stays; a new one where it has ended."""
    if side in self.kept and self.kept[side].process.poll() is not None:
      self.kept.pop(side).close()
    if side not in self.kept:
      self.kept[side] = self.start(side)
    return self.kept[side]

  def close(self) -> None:
    """Ends those that stay."""
    while self.kept:
      self.kept.popitem()[1].close()
