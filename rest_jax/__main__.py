"""`python -m rest_jax COMMAND ...`: the commands that come with the package."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from rest_jax.errors import UserError, did_you_mean, run_script

# Name: the module whose `main(argv)` runs it, argv being the words behind the name, and a line.
COMMANDS = {
  'predict': ('rest_jax.models.predict_command', 'name what pictures show'),
}


def main(argv: Sequence[str] | None = None) -> int | None:
  """Runs the command that the first word names.

  Args:
    argv: the words behind `python -m rest_jax`; `sys.argv` by default.

  Returns:
    The command's exit status.

  Raises:
    UserError: no command of that name, or whatever the command refuses.
  """
  words = list(sys.argv[1:] if argv is None else argv)
  if not words or words[0] in ('-h', '--help', 'help'):
    lines = (f'  {name:10} {line}' for name, (_, line) in COMMANDS.items())
    print('python -m rest_jax COMMAND ...\n\n' + '\n'.join(lines))
    print('\npython -m rest_jax COMMAND --help says what it takes.')
    return 0
  if words[0] not in COMMANDS:
    raise UserError(f'no command {words[0]!r}; {did_you_mean(words[0], COMMANDS)}')
  return importlib.import_module(COMMANDS[words[0]][0]).main(words[1:])


if __name__ == '__main__':
  run_script(main)
