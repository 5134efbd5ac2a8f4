"""Several processes: how they find each other and how they agree."""

from __future__ import annotations

import jax
import numpy as np

from rest_jax.errors import UserError


def initialize(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
  """Joins the processes of a run; does nothing where no coordinator is given.

  Must come before anything that touches a device. Processes on CPU talk through Gloo.

  Args:
    coordinator: 'host:port' of process 0.
    num_processes: how many there are.
    process_id: which one this is, from 0.

  Raises:
    UserError: only some of the three are given, or they contradict each other.
  """
  if coordinator is None and num_processes is None and process_id is None:
    return
  if coordinator is None or num_processes is None or process_id is None:
    raise UserError('--coordinator, --num_processes and --process_id go together')
  if not 0 <= process_id < num_processes:
    raise UserError(f'--process_id {process_id} is not below --num_processes {num_processes}')
  # Has an effect on CPU only; must be set before the backend starts.
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  try:
    jax.distributed.initialize(coordinator, num_processes, process_id)
  except (RuntimeError, ValueError) as error:
    reason = str(error).splitlines()[0]
    raise UserError(f'cannot join the run at --coordinator {coordinator}: {reason}') from error


def is_main() -> bool:
  """Whether this process is the one that writes and prints."""
  return jax.process_index() == 0


def any_process(flag: bool) -> bool:
  """Whether any process says so; with several processes all must call it at the same step."""
  if jax.process_count() == 1:
    return flag
  from jax.experimental import multihost_utils

  return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))
