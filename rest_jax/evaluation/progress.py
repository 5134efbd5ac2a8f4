"""What the user sees while a run goes on: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from tqdm import tqdm

_LINE_SECONDS = 30.0


class Progress:
  """Progress over the steps of a run, with images a second and the remaining time."""

  def __init__(self, total: int, start: int, batch_size: int, active: bool = True):
    """Starts at step `start` of `total`.

    Args:
      total: steps of the whole run.
      start: steps done already.
      batch_size: images a step.
      active: False shows nothing (processes other than the first).
    """
    self._total, self._batch, self._active = total, batch_size, active
    self._step = self._first = start
    self._began = self._spoke = time.monotonic()
    self._bar = None
    if active and sys.stderr.isatty():
      self._bar = tqdm(
        total=total * batch_size,
        initial=start * batch_size,
        unit='img',
        unit_scale=True,
        dynamic_ncols=True,
        smoothing=0.1,
      )

  def start_clock(self, step: int) -> None:
    """Measures the speed from here on; called after the first step, which compiles."""
    self._first, self._began = step, time.monotonic()

  def update(self, step: int) -> None:
    """Shows that `step` steps are done."""
    if self._bar is not None:
      self._bar.update((step - self._step) * self._batch)
    self._step = step
    if self._bar is None and time.monotonic() - self._spoke > _LINE_SECONDS:
      self.say(self.state())

  def state(self) -> str:
    """Returns step, speed and remaining time in words."""
    seconds = time.monotonic() - self._began
    steps = self._step - self._first
    if steps <= 0 or seconds <= 0:
      return f'step {self._step}/{self._total}'
    rate = steps / seconds
    left = clock((self._total - self._step) / rate)
    return f'step {self._step}/{self._total}, {rate * self._batch:.0f} img/s, {left} left'

  def say(self, text: str) -> None:
    """Prints a line without tearing the bar."""
    if not self._active:
      return
    self._spoke = time.monotonic()
    if self._bar is not None:
      self._bar.write(text)
    else:
      print(text, flush=True)

  def close(self) -> None:
    """Ends the bar."""
    if self._bar is not None:
      self._bar.close()


def clock(seconds: float) -> str:
  """Returns a duration in words, for example '1h02m', '3m05s' or '12s'."""
  whole = round(seconds)
  if whole >= 3600:
    return f'{whole // 3600}h{whole % 3600 // 60:02d}m'
  return f'{whole // 60}m{whole % 60:02d}s' if whole >= 60 else f'{whole}s'


@contextlib.contextmanager
def images_bar(total: int, done: int = 0) -> Iterator[Callable[[str, int], None]]:
  """A bar with the remaining time over the images of an evaluation; hidden off a terminal.

  Args:
    total: images, each counted in each case.
    done: how many are through before it begins.

  Yields:
    `through(label, images)`: so many more of a case.
  """
  hidden = not sys.stderr.isatty()
  with tqdm(total=total, initial=done, unit='img', dynamic_ncols=True, disable=hidden) as bar:

    def through(label: str, images: int) -> None:
      bar.set_description(label, refresh=False)
      bar.update(images)

    yield through
