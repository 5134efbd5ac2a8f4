"""Errors that are the user's to mend, and how a script ends on one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(ValueError):
  """Bad input: the message is one line that says what is wrong, with which input, what to do."""


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
