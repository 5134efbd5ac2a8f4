"""Several processes: how they find each other and how they agree."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator

import jax
import numpy as np

from rest_jax.errors import UserError

# A process that sends no sign of life for so long counts as dead; JAX then ends the others.
HEARTBEAT_SECONDS = 30
# What collectives (Gloo, NCCL) and JAX's coordination service say when a process is gone.
_LOST = re.compile(
  'closed by peer|connection (?:reset|refused|closed)|broken pipe|heartbeat|unhealthy|preempted'
  '|socket closed|coordination|remote process exited|nccl.*(?:abort|system error)|timed out',
  re.IGNORECASE,
)


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
