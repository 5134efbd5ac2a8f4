"""Errors that are the user's to mend, and how a script ends on one."""

from __future__ import annotations

import difflib
import errno
import io
import os
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

from rest_jax.text import legible

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # where nothing more can be written
BROKEN_PIPE = 141  # what a shell reports of a program that SIGPIPE ended


class UserError(ValueError):
  """Bad input: the message is one line that says what is wrong, with which input, what to do."""


def did_you_mean(
  word: object,
  known: Iterable[str],
  otherwise: str | Iterable[str] | None = None,
  *,
  count: int = 3,
  cutoff: float = 0.6,
  shown: Callable[[str], str] = str,
) -> str:
  """The end of an error about a word that is not known.

  Args:
    word: what was given.
    known: what there is.
    otherwise: where nothing is near: other words to offer, or the whole text; all that are known
      by default.
    count: how many words are offered at most, the nearest first.
    cutoff: least similarity of a word, from 0 to 1 (that of `difflib`).
    shown: how a word is written.

  Returns:
    'did you mean stage1 or stage2?', or `otherwise`.
  """
  known = list(known)
  near = difflib.get_close_matches(str(word), known, count, cutoff)
  if not near:
    if isinstance(otherwise, str):
      return otherwise
    near = known if otherwise is None else otherwise
  return f'did you mean {" or ".join(map(shown, near))}?'


def as_line(error: object) -> str:
  """An error as one line for a terminal: no line breaks, nothing that steers the terminal."""
  return legible(' '.join(str(error).split()))


def run_script(main: Callable[[], int | None]) -> NoReturn:
  """Runs a script's `main` and exits with its status.

  A `UserError` becomes one line on stderr and exit status 2; anything else keeps its traceback,
  because it is a defect of ours. Where nobody reads the output any more (`| head`) the script ends
  in silence; characters that the terminal's encoding lacks are escaped.

  Args:
    main: called without arguments; returns an exit status or None for 0.
  """
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):  # what stands in for one may be anything
      stream.reconfigure(errors='backslashreplace')
  try:
    status = _status(main)
    sys.stdout.flush()
  except BrokenPipeError:
    status = BROKEN_PIPE
    _drop_output()
  except OSError as error:
    if error.errno not in FULL:
      raise
    status = 2
    _drop_output()
    place = 'the output' if error.filename is None else error.filename
    reason = f'cannot write {place}: {error.strerror}; free some space, or write elsewhere'
    print(f'error: {as_line(reason)}', file=sys.stderr)
  sys.exit(status)


def _status(main: Callable[[], int | None]) -> int | str | None:
  try:
    return main() or 0
  except SystemExit as end:  # of argparse, after its help
    return end.code
  except UserError as error:
    print(f'error: {as_line(error)}', file=sys.stderr)
    return 2


def _drop_output() -> None:
  """Sends what is left to nowhere: the interpreter would try to write it once more."""
  nowhere = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, sys.stdout.fileno())
