"""Keeps the threads of Orbax and TensorStore from writing to the terminal when a write fails.

The failure itself is raised to whoever asked for the write, who says it in a line. What the threads
have to add, a hundred tracebacks on a full disk, says nothing more and buries that line.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any

_LOGGERS = ('absl', 'orbax', 'tensorstore')
# What TensorStore's threads find when they come back to a write that was given up.
_LATE = 'Event loop is closed'


@contextlib.contextmanager
def quiet_threads() -> Iterator[None]:
  """While it lasts, the writers' loggers are silent; after a failure, late threads stay so.

  Raises:
    Exception: what the body raised.
  """
  silence, forgotten = _Nothing(), _Forgotten()
  before = sys.excepthook, threading.excepthook, sys.unraisablehook
  for name in _LOGGERS:
    logging.getLogger(name).addFilter(silence)
  logging.getLogger('asyncio').addFilter(forgotten)
  _silence_late_threads()
  try:
    yield
    # Not after a failure: late threads come until the process ends.
    sys.excepthook, threading.excepthook, sys.unraisablehook = before
    logging.getLogger('asyncio').removeFilter(forgotten)
  finally:
    for name in _LOGGERS:
      logging.getLogger(name).removeFilter(silence)


class _Nothing(logging.Filter):
  """Lets no record through."""

  def filter(self, record: logging.LogRecord) -> bool:
    return False


class _Forgotten(logging.Filter):
  """Lets through all but errors of writes that nobody waited for, because another had failed."""

  def filter(self, record: logging.LogRecord) -> bool:
    return 'never retrieved' not in record.getMessage()


def _silence_late_threads() -> None:
  """Drops the tracebacks of late threads, which are about nothing that could be done."""
  main, threads, ignored = sys.excepthook, threading.excepthook, sys.unraisablehook

  def quiet(kind: Any, error: Any, trace: Any) -> None:
    if not _is_late(error):
      main(kind, error, trace)

  def quiet_threads(found: Any) -> None:
    if not _is_late(found.exc_value):
      threads(found)

  def quiet_ignored(found: Any) -> None:
    if not _is_late(found.exc_value):
      ignored(found)

  sys.excepthook, threading.excepthook, sys.unraisablehook = quiet, quiet_threads, quiet_ignored


def _is_late(error: object) -> bool:
  return isinstance(error, RuntimeError) and _LATE in str(error)
