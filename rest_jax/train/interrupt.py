"""SIGTERM and Ctrl-C: asked once, the loop saves and ends; asked twice, it ends at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


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
