"""Command lines of explain.py and defend.py: one look of `--help`, every error one line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

from rest_jax import paths
from rest_jax.errors import UserError, did_you_mean


class Flag(NamedTuple):
  """A flag, in the order of `--help`.

  Attributes:
    name: without dashes.
    options: what argparse gets.
    text: what it does.
    place: 'path' for one on this machine, 'name' for a name that may be a path, 'model' for such a
      name of a model; both may begin with
      '~', and 'None' is none where that is the default.
    also: other names that are understood.
  """

  name: str
  options: dict[str, Any]
  text: str
  place: Literal['', 'path', 'name', 'model'] = ''
  also: tuple[str, ...] = ()


# What every script says of a model in the same words.
MODEL_FLAGS = (
  Flag(
    'model',
    dict(default='digit_scenes'),
    'work directory, model directory, name of the zoo, checkpoint (.pth, .safetensors), or\n'
    '      hf://owner/name',
    'model',
  ),
  Flag(
    'architecture',
    {},
    'model name of a checkpoint that is not called after it, such as rest_small',
    also=('model_name',),
  ),
  Flag('ema', dict(action='store_true'), 'of a checkpoint: take its averaged weights'),
)
DATA_DIR_FLAG = Flag(
  'data_dir',
  {},
  'where TFDS data sets are; $TFDS_DATA_DIR or ~/tensorflow_datasets if unset',
  'path',
)


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
  if wants_help(argv[1:]):
    print(_help(usage, flags))
    return None
  parser = Parser(Path(argv[0]).name, add_help=False, allow_abbrev=False, argument_default=None)
  for flag in flags:
    spelt = [f'{dashes}{name}' for name in (flag.name, *flag.also) for dashes in ('--', '-')]
    parser.add_argument(*spelt, dest=flag.name, **flag.options)
  _check_once(argv[1:], flags)
  parsed, unknown = parser.parse_known_args(list(argv[1:]))
  if unknown:
    raise UserError(_unknown(unknown[0], flags, stray))
  values = vars(parsed)
  return values | {flag.name: _placed(flag, values[flag.name]) for flag in flags if flag.place}


def _placed(flag: Flag, value: Any) -> Any:
  """The value of a flag that names places: expanded, and refused where it cannot be one."""
  if isinstance(value, list):
    return [_placed(flag, one) for one in value]
  if value is None or (value == 'None' and flag.options.get('default') is None):
    return None
  kinds = {'path': paths.local, 'name': paths.expanded, 'model': paths.model_name}
  return str(kinds[flag.place](value, f'--{flag.name}'))


def _check_once(arguments: Sequence[str], flags: Sequence[Flag]) -> None:
  """Of a flag that is given twice argparse forgets the first one, in silence."""
  given = [a.lstrip('-').split('=')[0] for a in arguments if a.startswith('-')]
  for flag in flags:
    count = sum(map(given.count, (flag.name, *flag.also)))
    if count > 1:
      cure = 'put its values behind one' if 'nargs' in flag.options else 'leave one of them out'
      raise UserError(f'--{flag.name} is given {count} times; {cure}')


def wants_help(words: Sequence[str]) -> bool:
  """Whether a command line, without the program's name, asks for help."""
  return any(word in ('-h', '-help', '--help', '--helpfull', '--helpshort') for word in words)


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


class Parser(argparse.ArgumentParser):
  """An argument parser whose errors are ours."""

  def error(self, message: str) -> NoReturn:
    text = re.sub(r'argument (--\w+)(/--?\w+)*:', r'\1:', message)
    raise UserError(f'{text}; {self.prog} --help lists the flags')


def _unknown(argument: str, flags: Sequence[Flag], stray: str) -> str:
  if not argument.startswith('-'):
    return f'unexpected argument {argument!r}; {stray or "values go to flags"}, see --help'
  name = argument.lstrip('-').split('=')[0]
  known = (spelt for flag in flags for spelt in (flag.name, *flag.also))
  return f'unknown flag --{name}; {did_you_mean(name, known, "see --help", shown="--{}".format)}'


def _help(usage: str, flags: Sequence[Flag]) -> str:
  lines = [usage.strip(), '', 'Flags:']
  for name, options, text, *_ in flags:
    default = options.get('default', False if 'action' in options else None)
    shown = ' '.join(map(str, default)) or 'none' if isinstance(default, list) else default
    lines.append(f'  --{name}\n      {text} (default: {shown})')
  return '\n'.join(lines)
