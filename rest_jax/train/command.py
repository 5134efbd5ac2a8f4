"""The command line of train.py: absl flags and an ml_collections config file, errors as one line.

The flags live in their own `FlagValues`, so parsing touches no global state.
"""

from __future__ import annotations

import dataclasses
import re
import traceback
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from rest_jax.errors import UserError
from rest_jax.train.config import Config, check_config, check_key, describe

_DEFAULT_CONFIG = 'configs/digit_scenes.py'
# Flags that stand for one config key.
_SHORT = {
  'data_dir': ('data', 'dir'),
  'batch_size': ('train', 'batch_size'),
  'epochs': ('train', 'epochs'),
}


@dataclasses.dataclass(frozen=True)
class Command:
  """A parsed command line.

  Attributes:
    config: the resolved config.
    output: the work directory.
    coordinator: 'host:port' of process 0, None for one process.
    num_processes: number of processes, None for one.
    process_id: which process this is, None for one.
  """

  config: Config
  output: Path
  coordinator: str | None
  num_processes: int | None
  process_id: int | None


def parse(argv: list[str], usage: str) -> Command | None:
  """Parses a command line.

  Args:
    argv: as `sys.argv`, the script's name first.
    usage: text above the flags in `--help`.

  Returns:
    The command, None after `--help` was asked for and printed.

  Raises:
    UserError: unknown flag, config file, config key or value.
  """
  if any(arg in ('-h', '-help', '--help', '--helpfull', '--helpshort') for arg in argv[1:]):
    print(_help(usage))
    return None
  argv = _complete(argv)
  name = _config_name(argv)
  values = _define(argv)
  try:
    extra = values(argv)[1:]
  except Exception as error:
    raise _flag_error(error, name) from error
  if extra:
    raise UserError(f'unexpected argument {extra[0]!r}; values go to flags, see --help')
  config = _resolve(values)
  output = values['output'].value or Path('work') / name.replace('.py', '').replace(':', '_')
  several = (values[key].value for key in ('coordinator', 'num_processes', 'process_id'))
  return Command(config, Path(output), *several)


def _define(argv: list[str] | None) -> flags.FlagValues:
  values = flags.FlagValues()
  use: Any = {'flag_values': values}
  config_flags.DEFINE_config_file(
    'config', None, 'config file, with :variant where it has some', sys_argv=argv, **use
  )
  flags.DEFINE_string('output', None, 'work directory; work/<config>[_variant] if not set', **use)
  flags.DEFINE_string('data_dir', None, 'where data sets are; short for --config.data.dir', **use)
  flags.DEFINE_integer('seed', None, 'seed of everything; short for --config.seed', **use)
  flags.DEFINE_integer('batch_size', None, 'short for --config.train.batch_size', **use)
  flags.DEFINE_float('epochs', None, 'short for --config.train.epochs', **use)
  flags.DEFINE_string('coordinator', None, 'host:port of process 0, for several hosts', **use)
  flags.DEFINE_integer('num_processes', None, 'how many processes train together', **use)
  flags.DEFINE_integer('process_id', None, 'which of them this is, from 0', **use)
  return values


def _help(usage: str) -> str:
  values = _define(None)
  lines = [usage.strip(), '', 'Flags:']
  for name in values:
    default = _DEFAULT_CONFIG if name == 'config' else values[name].default
    shown = "the config's" if name in ('seed', *_SHORT) else default
    lines.append(f'  --{name}\n      {values[name].help} (default: {shown})')
  note = 'Keys of the config, with the defaults that config files start from:'
  return '\n'.join([*lines, '', note, describe()])


def _complete(argv: list[str]) -> list[str]:
  """Puts the config file first, where config_flags wants it, and refuses unknown keys."""
  rest, config = [], _DEFAULT_CONFIG
  arguments = iter(argv[1:])
  for arg in arguments:
    if re.fullmatch(r'--?config', arg):
      config = next(arguments, '')
    elif match := re.fullmatch(r'--?config=(.*)', arg):
      config = match[1]
    else:
      rest.append(arg)
    if match := re.match(r'--?(?:no)?config\.([^=]+)', arg):
      check_key(match[1])
  path = config.split(':', 1)[0]
  if not Path(path).is_file():
    near = ', '.join(sorted(str(p) for p in Path('configs').glob('*.py') if p.stem[0] != '_'))
    raise UserError(f'no config file {path!r}; there are: {near or "none in ./configs"}')
  return [argv[0], f'--config={config}', *rest]


def _config_name(argv: list[str]) -> str:
  return Path(argv[1].split('=', 1)[1].split(':', 1)[0]).name + ''.join(
    argv[1].split('=', 1)[1].partition(':')[1:]
  )


def _flag_error(error: BaseException, name: str) -> UserError:
  """Makes one line of what went wrong while flags were parsed or the config file was run."""
  chain = [error]
  while chain[-1].__context__ is not None:
    chain.append(chain[-1].__context__)
  for cause in reversed(chain):
    if isinstance(cause, UserError):
      return cause
  cause = chain[-1]
  if isinstance(cause, KeyError) and not isinstance(error, flags.Error):
    return UserError(f'config {name} has no key {cause}; give the group above it as a whole')
  if isinstance(error, flags.Error) and 'Error whilst parsing config' not in str(error):
    return UserError(f'{str(error).splitlines()[0]}; train.py --help lists the flags')
  file = name.split(':')[0]
  frames = [f for f in traceback.extract_tb(cause.__traceback__) if f.filename.endswith(file)]
  place = f'{file}, line {frames[-1].lineno}' if frames else file
  reason = (str(cause).splitlines() or [''])[0]
  return UserError(f'config {place}: {type(cause).__name__}: {reason}')


def _resolve(values: flags.FlagValues) -> Config:
  config: Config = values['config'].value
  # Before the short flags are put in: a config file may have returned anything.
  check_config(config)
  if values['seed'].value is not None:
    config.seed = values['seed'].value
  for name, (group, key) in _SHORT.items():
    if values[name].value is not None:
      config[group][key] = values[name].value
  check_config(config)
  return config
