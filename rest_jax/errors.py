"""Errors that are the user's to mend, and how a script ends on one."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn


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


def run_script(main: Callable[[], int | None]) -> NoReturn:
  """Runs a script's `main` and exits with its status.

  A `UserError` becomes one line on stderr and exit status 2; anything else keeps its traceback,
  because it is a defect of ours.

  Args:
    main: called without arguments; returns an exit status or None for 0.
  """
  try:
    status = main() or 0
  except UserError as error:
    print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
    status = 2
  sys.exit(status)
