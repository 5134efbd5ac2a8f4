"""The processes of a run: how they find each other, how they agree, and what asks one to stop.

SIGTERM and Ctrl-C, asked once, let the loop save and end; asked twice, they end it at once.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import jax
import numpy as np

from rest_jax import program_cache
from rest_jax.errors import UserError

# A process that sends no sign of life for so long counts as dead; JAX then ends the others.
HEARTBEAT_SECONDS = 30
# What collectives (Gloo, NCCL) and JAX's coordination service say when a process is gone.
_LOST = re.compile(
  'closed by peer|connection (?:reset|refused|closed)|broken pipe|heartbeat|unhealthy|preempted'
  '|socket closed|coordination|remote process exited|nccl.*(?:abort|system error)|timed out',
  re.IGNORECASE,
)
# What asks a process to stop.
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def initialize(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
  """Joins the processes of a run; does nothing where no coordinator is given.

  Must come before anything that touches a device. Processes on CPU talk through Gloo.

  Args:
    coordinator: 'host:port' of process 0, or 'auto' where JAX can find the cluster by itself
      (TPU pod slices, SLURM, Open MPI, Kubernetes); then the others are not given.
    num_processes: how many there are.
    process_id: which one this is, from 0.

  Raises:
    UserError: only some of the three are given, they contradict each other, or the processes do
      not meet.
  """
  if coordinator is None and num_processes is None and process_id is None:
    return
  found: tuple = ()
  if coordinator != 'auto':
    if coordinator is None or num_processes is None or process_id is None:
      raise UserError('--coordinator, --num_processes and --process_id go together')
    if not 0 <= process_id < num_processes:
      raise UserError(f'--process_id {process_id} is not below --num_processes {num_processes}')
    found = (coordinator, num_processes, process_id)
  elif num_processes is not None or process_id is not None:
    raise UserError('--coordinator auto finds --num_processes and --process_id by itself')
  # Has an effect on CPU only; must be set before the backend starts.
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  try:
    jax.distributed.initialize(*found, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
  except (RuntimeError, ValueError) as error:
    reason = str(error).splitlines()[0]
    raise UserError(f'cannot join the run at --coordinator {coordinator}: {reason}') from error
  program_cache.leave()


@contextlib.contextmanager
def end_with_the_others(close: Callable[[], object] | None = None) -> Iterator[None]:
  """Ends this process with one line and status 1 when a process it works with is gone.

  Without the usual clean-up, which would wait for the missing process and then abort: every
  checkpoint on disk is complete.

  Args:
    close: ends processes of our own.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if jax.process_count() == 1 or not _LOST.search(str(error)):
      raise
    if close is not None:
      with contextlib.suppress(Exception):
        close()
    print(
      f'error: process {jax.process_index()} of {jax.process_count()} ends because another one '
      f'is gone ({str(error).splitlines()[0][:120]}); start all of them again with the same '
      'command, and the run goes on from its last checkpoint',
      file=sys.stderr,
    )
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def is_main() -> bool:
  """Whether this process is the one that writes and prints."""
  return jax.process_index() == 0


def any_process(flag: bool) -> bool:
  """Whether any process says so; with several processes all must call it at the same step."""
  if jax.process_count() == 1:
    return flag
  from jax.experimental import multihost_utils

  return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


class StopRequest:
  """Context manager; `requested` becomes True at the first SIGTERM or SIGINT."""

  def __init__(self) -> None:
    """Installs nothing yet."""
    self.requested = False
    self._old: dict[signal.Signals, Any] = {}

  def __enter__(self) -> StopRequest:
    # Python delivers signals to the main thread only; elsewhere the caller keeps them.
    if threading.current_thread() is threading.main_thread():
      self._old = {number: signal.signal(number, self._handle) for number in _SIGNALS}
    return self

  def __exit__(self, *_: object) -> None:
    self._restore()

  def shielding(self, items: Iterator[Any]) -> Iterator[Any]:
    """Passes on an iterator whose first item starts worker processes.

    A terminal sends Ctrl-C to the workers too; they would die with tracebacks while this process
    still waits for them. What is ignored at their start they go on ignoring.

    Args:
      items: the iterator.

    Yields:
      Its items.
    """
    old = signal.signal(signal.SIGINT, signal.SIG_IGN) if self._old else None
    try:
      first = next(items)
    finally:
      if old is not None:
        signal.signal(signal.SIGINT, old)
    yield first
    yield from items

  def _restore(self) -> None:
    for number, handler in self._old.items():
      signal.signal(number, handler)
    self._old = {}

  def _handle(self, number: int, frame: FrameType | None) -> None:
    if self.requested:
      self._restore()
      raise SystemExit(128 + number)
    self.requested = True
    if number == signal.SIGINT:
      # Not print: the signal may have come in the middle of one.
      os.write(2, b'\nStopping after this step; once more to stop at once.\n')
