"""Compiled programs, of which JAX keeps every one: on Linux a process can run out of room for them.

Each kernel of a program for the CPU is a few mappings of memory, and Linux gives a process 65,530
(`vm.max_map_count`). An evaluation of a dozen defended models gets there, and then LLVM ends the
process, whatever memory is free.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import jax

_LIMIT = Path('/proc/sys/vm/max_map_count')
_MAPPINGS = Path('/proc/self/maps')
_TURN = threading.Lock()
_IN_USE = threading.Lock()


@contextlib.contextmanager
def in_use() -> Iterator[None]:
  """Around a piece of work of one thread beside the main one: no programs are released meanwhile.

  Whoever waits to release them comes before the next piece.
  """
  with _TURN:
    _IN_USE.acquire()
  try:
    yield
  finally:
    _IN_USE.release()


def crowded(share: float = 0.4) -> bool:
  """Whether programs take much of the room that a process has; never where there is no limit.

  Args:
    share: of the mappings that Linux allows, in (0, 1).
  """
  try:
    limit = int(_LIMIT.read_text())
    with _MAPPINGS.open('rb') as file:
      count = sum(1 for _ in file)
  except (OSError, ValueError):
    return False
  return count >= share * limit


def release_programs(share: float = 0.4) -> bool:
  """Drops what JAX has compiled if its programs are `crowded`.

  To be called between pieces of work that share few programs; what is needed again compiles again.
  Work in another thread that is `in_use` is waited for.

  Args:
    share: as in `crowded`; with fewer nothing is done.

  Returns:
    Whether programs were dropped.
  """
  if not crowded(share):
    return False
  with _TURN, _IN_USE:
    jax.clear_caches()
  return True
