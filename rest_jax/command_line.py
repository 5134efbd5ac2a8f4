"""Command lines of explain.py and defend.py: one look of `--help`, every error one line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from rest_jax.errors import UserError, did_you_mean


class Flag(NamedTuple):
  """A flag, in the order of `--help`.

  Attributes:
    name: without dashes.
    options: what argparse gets.
    text: what it does.
  """

  name: str
  options: dict[str, Any]
  text: str


def parse_flags(
  argv: Sequence[str], usage: str, flags: Sequence[Flag], stray: str = ''
) -> dict[str, Any] | None:
  """Parses a command line; flags begin with one dash or two.

  Args:
    argv: as `sys.argv`, the script's name first.
    usage: text above the flags in `--help`.
    flags: what there is.
    stray: where arguments without a flag belong, for the error about one.

  Returns:
    The value of each flag by name, None after `--help` was asked for and printed.

  Raises:
    UserError: an unknown flag or a value that it does not take.
  """
  if any(arg in ('-h', '--help', '-help') for arg in argv[1:]):
    print(_help(usage, flags))
    return None
  parser = _Parser(Path(argv[0]).name, add_help=False, allow_abbrev=False, argument_default=None)
  for name, options, _ in flags:
    parser.add_argument(f'--{name}', f'-{name}', dest=name, **options)
  values, unknown = parser.parse_known_args(list(argv[1:]))
  if unknown:
    raise UserError(_unknown(unknown[0], flags, stray))
  return vars(values)


def split_list(texts: Sequence[str]) -> tuple[str, ...]:
  """The items of a flag that takes several: separated by spaces, commas or both."""
  return tuple(item for text in texts for item in text.split(',') if item)


def check_whole(values: dict[str, Any], names: Sequence[str], least: int = 1) -> None:
  """Raises `UserError` for a flag that is set to less than `least`."""
  for name in names:
    if values[name] is not None and values[name] < least:
      raise UserError(f'--{name} is {values[name]}; it takes a whole number from {least}')


def check_seed(seed: int) -> None:
  """Raises `UserError` for a seed that JAX does not take."""
  if not 0 <= seed < 2**32:
    raise UserError(f'--seed is {seed}; it takes a whole number from 0 to 2**32 - 1')


class _Parser(argparse.ArgumentParser):
  """An argument parser whose errors are ours."""

  def error(self, message: str) -> NoReturn:
    text = re.sub(r'argument (--\w+)(/-\w+)?:', r'\1:', message)
    raise UserError(f'{text}; {self.prog} --help lists the flags')


def _unknown(argument: str, flags: Sequence[Flag], stray: str) -> str:
  if not argument.startswith('-'):
    return f'unexpected argument {argument!r}; {stray or "values go to flags"}, see --help'
  name = argument.lstrip('-').split('=')[0]
  known = (flag.name for flag in flags)
  return f'unknown flag --{name}; {did_you_mean(name, known, "see --help", shown="--{}".format)}'


def _help(usage: str, flags: Sequence[Flag]) -> str:
  lines = [usage.strip(), '', 'Flags:']
  for name, options, text in flags:
    default = options.get('default', False if 'action' in options else None)
    shown = ' '.join(map(str, default)) or 'none' if isinstance(default, list) else default
    lines.append(f'  --{name}\n      {text} (default: {shown})')
  return '\n'.join(lines)
