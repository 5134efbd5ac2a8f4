"""SIGTERM and Ctrl-C: asked once, the loop saves and ends; asked twice, it ends at once."""

from __future__ import annotations

import signal
import threading
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

  def _restore(self) -> None:
    for number, handler in self._old.items():
      signal.signal(number, handler)
    self._old = {}

  def _handle(self, number: int, frame: FrameType | None) -> None:
    if self.requested:
      self._restore()
      raise KeyboardInterrupt
    self.requested = True
