"""Writing results: through temporary names, so that a kill leaves the old file or the new one.

A failure is one line that ends with `advice`, what to do about it: scripts say which flag gives
another place, functions which argument.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rest_jax.errors import FULL, UserError

ADVICE = 'free some space or give another --output'
_STEM = 120  # bytes of a name in its temporary one, which has to stay under 255


class WriteError(UserError):
  """A place that cannot be written to; `full` where nothing else there can be either."""

  def __init__(self, message: str, full: bool = False):
    """Keeps the line and whether the disk is the reason."""
    super().__init__(message)
    self.full = full


def write_error(place: object, reason: object, advice: str = ADVICE) -> WriteError:
  """The error about a place that cannot be written to.

  Args:
    place: a path or words.
    reason: an `OSError`, or words.
    advice: what to do about it.
  """
  full = isinstance(reason, OSError) and reason.errno in FULL
  words = (reason.strerror or reason) if isinstance(reason, OSError) else reason
  return WriteError(f'cannot write to {place}: {words}; {advice}', full)


@contextlib.contextmanager
def writing(place: object, advice: str = ADVICE) -> Iterator[None]:
  """Turns a failed write into one line about `place`, a path or words.

  Raises:
    WriteError: the disk is full, the place is read-only, or no directory.
  """
  try:
    yield
  except BrokenPipeError:  # of the terminal: whoever read the output has left
    raise
  except OSError as error:
    raise write_error(place, error, advice) from error


def temporary_path(path: Path) -> Path:
  """The name beside `path` that this thread writes to first; the ending stays, writers go by it."""
  writer = f'{os.getpid()}-{threading.get_ident()}'
  stem = os.fsdecode(os.fsencode(path.stem)[:_STEM])
  return path.with_name(f'.{stem}.{writer}{path.suffix}')


@contextlib.contextmanager
def replacing(path: Path, place: object = None, advice: str = ADVICE) -> Iterator[Path]:
  """Gives a temporary path beside `path` that takes its place at the end.

  Args:
    path: the file to be written; its folder is made.
    place: what the error is about; the file by default.
    advice: what to do about an error.

  Raises:
    WriteError: the folder or the file cannot be written.
  """
  temporary = temporary_path(path)
  with writing(path if place is None else place, advice):
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      yield temporary
      os.replace(temporary, path)
    finally:
      with contextlib.suppress(OSError):  # the first error is the one to report
        temporary.unlink(missing_ok=True)


def make_folder(folder: Path, advice: str = ADVICE) -> None:
  """Makes a folder and sees that it can be written to, before there is work to be lost.

  Raises:
    UserError: it cannot.
  """
  with writing(folder, advice):
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f'.write_test_{os.getpid()}'
    probe.write_text('x')
    probe.unlink()


def write_text(path: Path, text: str, place: object = None, advice: str = ADVICE) -> None:
  """Writes UTF-8 text; arguments and errors as `replacing`.

  Bytes of file names that are no UTF-8 (lone surrogates) are written as '\\udcff', which in JSON is
  the very character.
  """
  with replacing(path, place, advice) as temporary:
    temporary.write_text(text, encoding='utf-8', errors='backslashreplace')


def write_json(path: Path, value: Any, place: object = None, advice: str = ADVICE) -> None:
  """Writes indented JSON; NaN and infinity, which it has not, become null."""
  text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)
  write_text(path, text + '\n', place, advice)


def write_array(path: Path, array: np.ndarray) -> None:
  """Writes a .npy file; errors as `replacing`."""
  with replacing(path) as temporary:
    np.save(temporary, array, allow_pickle=False)


def _finite(value: Any) -> Any:
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if isinstance(value, dict):
    return {name: _finite(one) for name, one in value.items()}
  return [_finite(one) for one in value] if isinstance(value, list | tuple) else value
