"""The commands: `rest-jax COMMAND`, `python -m rest_jax COMMAND`, and the scripts of a clone.

A command is a module with `main(words, program)`: the words behind its name, and what the user
typed to get it, for `--help` and for errors. `COMMANDS` is the table of them.
"""

from __future__ import annotations

import functools
import gc
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import rest_jax
from rest_jax import allocator, program_cache
from rest_jax.command_line import wants_help
from rest_jax.errors import UserError, did_you_mean, run_script

# Name: the module whose `main(words, program)` runs it, and a line.
COMMANDS = {
  'train': ('rest_jax.commands.train', 'train a classifier, or judge one (--mode evaluate)'),
  'explain': ('rest_jax.commands.explain', 'show where in a picture a decision comes from'),
  'defend': ('rest_jax.commands.defend', 'attack a classifier, and measure defences'),
  'predict': ('rest_jax.models.predict_command', 'name what pictures show, or draw what is found'),
  'convert': ('rest_jax.models.convert', 'make a model directory of a PyTorch checkpoint'),
  'models': ('rest_jax.commands.models', 'list the models, their size and published accuracy'),
}
_COMPILING = ('train', 'explain', 'defend', 'predict')  # with a cache of compiled programs


def main(argv: Sequence[str] | None = None) -> int | None:
  """Runs the command that the first word names.

  Args:
    argv: the words behind `rest-jax`; `sys.argv` by default.

  Returns:
    The command's exit status.

  Raises:
    UserError: no command of that name, or whatever the command refuses.
  """
  words, program = list(sys.argv[1:] if argv is None else argv), _program()
  if words[:1] == ['--version']:
    print(f'rest_jax {rest_jax.__version__}')
    return 0
  if not words or words[0] in ('-h', '--help', 'help'):
    lines = (f'  {name:10} {line}' for name, (_, line) in COMMANDS.items())
    print(f'{program} COMMAND ...\n\n' + '\n'.join(lines))
    print(f'\n{program} COMMAND --help says what it takes; {program} --version which this is.')
    return 0
  if words[0] not in COMMANDS:
    raise UserError(f'no command {words[0]!r}; {did_you_mean(words[0], COMMANDS)}')
  return _run(words[0], words[1:], f'{program} {words[0]}')


def entry() -> NoReturn:
  """What the entry point `rest-jax` calls."""
  run_script(main)


def script(name: str) -> NoReturn:
  """What a script of the clone calls, such as train.py: the command of that name."""
  run_script(functools.partial(_run, name, sys.argv[1:], f'{name}.py'))


def _run(name: str, words: list[str], program: str) -> int | None:
  """Runs a command, with what it compiles kept for the next time."""
  # Imports and traces make many small objects that stay: looking through them, as often as Python
  # would, is a tenth of a short run.
  gc.set_threshold(*map(max, gc.get_threshold(), (10_000, 20, 20)))
  allocator.keep_pages()
  module = importlib.import_module(COMMANDS[name][0])
  if name not in _COMPILING:
    return module.main(words, program)
  words, place = program_cache.split_flag(words)
  if wants_help(words):
    try:
      return module.main(words, program)
    finally:  # argparse ends the process after its help
      print(program_cache.HELP)
  program_cache.use(place)
  return module.main(words, program)


def usage(text: str, name: str, program: str) -> str:
  """The text of `--help`, whose examples call the clone's script, for another way to call it."""
  return text if program == f'{name}.py' else text.replace(f'python {name}.py', program)


def _program() -> str:
  found = os.path.basename(sys.argv[0])
  return 'python -m rest_jax' if found == '__main__.py' or found.endswith('.py') else found
