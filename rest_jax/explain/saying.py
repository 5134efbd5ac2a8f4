"""What explain.py says while it works: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from rest_jax.errors import UserError, as_line
from rest_jax.evaluation.progress import clock
from rest_jax.files import WriteError
from rest_jax.text import legible

_TICK, _SILENCE = 1.0, 5.0  # seconds; between lines more and more


class Progress:
  """Says what is being done, and what became of each picture: a line on stdout, or on stderr.

  Attributes:
    failed: pictures so far that could not be explained.
  """

  def __init__(self, pictures: int, methods: int):
    """Begins with no map of `pictures` times `methods`."""
    self.failed = 0
    self._methods, self._total = methods, pictures * methods
    self._made, self._doing = 0, ''
    self._began = self._spoke = time.monotonic()
    self._bar = tqdm(
      total=self._total,
      unit='map',
      disable=not sys.stderr.isatty(),
      dynamic_ncols=True,
      bar_format='{desc}{n_fmt}/{total_fmt} |{bar}| {elapsed}<{remaining}',
    )

  @contextlib.contextmanager
  def ticking(self) -> Iterator[None]:
    """While this lasts, time is seen to go by, and the bar ends with it."""
    over = threading.Event()

    def tick() -> None:
      while not over.wait(_TICK):
        self._bar.refresh()
        if self._bar.disable and time.monotonic() - self._spoke > self._patience():
          with contextlib.suppress(OSError):  # nobody reads any more: the main thread will see
            self._print(self._state())

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
      yield
    finally:
      over.set()
      thread.join()
      self._bar.close()

  def _patience(self) -> float:
    """Seconds without a line: few at the beginning, more of a long run."""
    return max(_SILENCE, (time.monotonic() - self._began) / 4)

  def _state(self) -> str:
    passed = clock(time.monotonic() - self._began)
    return f'{self._doing}: {self._made} of {self._total} maps after {passed}'

  def _print(self, line: str) -> None:
    self._spoke = time.monotonic()
    with self._bar.external_write_mode():
      print(legible(line), flush=True)

  def doing(self, what: str) -> None:
    """What is being done from now on."""
    self._doing = what
    self._bar.set_description(what)

  def made(self, maps: int) -> None:
    """So many more maps are there, or will never be."""
    self._made += maps
    self._bar.update(maps)

  def done(self, line: str) -> None:
    """A picture was explained and written."""
    self._print(line)

  @contextlib.contextmanager
  def guarding(self, file: Path) -> Iterator[None]:
    """Whatever is wrong with one picture is reported, and the others go on.

    Raises:
      WriteError: the disk is full, which ends it for all of them.
      BrokenPipeError: nobody reads the output any more.
    """
    try:
      yield
    except BrokenPipeError:
      raise
    except WriteError as error:
      if error.full:
        raise
      self._fail(error)
    except UserError as error:
      self._fail(error)
    except Exception as error:  # decoders and drawing know no common class of errors
      self._fail(f'{file}: {type(error).__name__}: {error}')

  def _fail(self, error: object) -> None:
    self.failed += 1
    self._bar.write(f'error: {as_line(error)}', file=sys.stderr)
