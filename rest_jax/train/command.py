"""The command line of train.py: absl flags and an ml_collections config file, errors as one line.

The flags live in their own `FlagValues`, so parsing touches no global state.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import traceback
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from rest_jax import configs
from rest_jax.command_line import wants_help
from rest_jax.errors import UserError
from rest_jax.inputs import radius
from rest_jax.paths import check_folder, local, safe_name
from rest_jax.train.config import (
  OPEN,
  Config,
  check_config,
  check_key,
  default_config,
  describe,
  place_paths,
  without_effect,
)
from rest_jax.train.config_checks import RADII
from rest_jax.train.initial import adopt_init

_DEFAULT_CONFIG = 'digit_scenes'
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


def mode(argv: list[str]) -> str:
  """Returns 'train' or 'evaluate', as `--mode` says.

  Raises:
    UserError: another mode.
  """
  given = 'train'
  for position, argument in enumerate(argv[1:], start=1):
    if re.fullmatch(r'--?mode', argument):
      given = argv[position + 1] if position + 1 < len(argv) else ''
    elif match := re.fullmatch(r'--?mode=(.*)', argument):
      given = match[1]
  if given not in ('train', 'evaluate'):
    raise UserError(f'--mode is train or evaluate, not {given!r}')
  return given


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
  if wants_help(argv[1:]):
    print(_help(usage))
    return None
  program = Path(argv[0]).name
  file, variant, rest = _split(argv[1:])
  loaded = load_config(file, variant)
  _check_override_keys(loaded, rest)
  rest = _with_radii(rest)
  try:
    values = _define(loaded, rest)
    extra = values([argv[0], *rest])[1:]
  except (flags.Error, AttributeError, TypeError, ValueError) as error:
    raise UserError(f'{str(error).splitlines()[0]}; {program} --help lists the flags') from error
  if extra:
    raise UserError(f'unexpected argument {extra[0]!r}; values go to flags, see --help')
  config = _resolve(values, rest)
  _check_effects(config, rest)
  name = f'{file.stem}_{variant}' if variant else file.stem
  given = values['output'].value
  output = Path('work') / safe_name(name, 'run') if given is None else local(given, '--output')
  if values['more'].value is not None:
    output = _more(config, output, values['more'].value)
  check_folder(output)
  return Command(config, output, *given_processes(values))


def _more(config: Config, output: Path, epochs: float) -> Path:
  """Makes of a config, in place, that of a run which goes on after a finished one.

  Returns:
    Its work directory.

  Raises:
    UserError: there is no model of an earlier run.
  """
  if not (output / 'model' / 'config.json').is_file():
    raise UserError(f'--more goes on after a run, and {output} holds none: leave --more out')
  config.model.init, config.train.epochs = str(output / 'model'), epochs
  check_config(config)
  return output.with_name(f'{output.name}_more')


def define_processes(values: flags.FlagValues, what: str) -> None:
  """Defines the flags of several processes, which `what` together."""
  use: Any = {'flag_values': values}
  flags.DEFINE_string('coordinator', None, 'several hosts: host:port of process 0, or auto', **use)
  flags.DEFINE_integer('num_processes', None, f'how many processes {what} together', **use)
  flags.DEFINE_integer('process_id', None, 'which of them this is, from 0', **use)


def given_processes(values: flags.FlagValues) -> tuple[str | None, int | None, int | None]:
  """The values of these flags, as `distributed.initialize` takes them."""
  return values['coordinator'].value, values['num_processes'].value, values['process_id'].value


def load_config(file: Path | str, variant: str | None = None) -> Config:
  """Runs a config file.

  Args:
    file: Python file with a function `get_config`, or the name of a config that comes with the
      package; 'digit_scenes:full' names a variant too.
    variant: its argument; None calls it without one.

  Returns:
    The checked, locked config.

  Raises:
    UserError: the file fails, or its config has unknown keys or wrong values.
  """
  if not isinstance(file, Path):
    name, _, named = file.partition(':')
    file, variant = configs.find(name), variant or named or None
  spec = importlib.util.spec_from_file_location('experiment_config', file)
  if spec is None or spec.loader is None:
    raise UserError(f'config {file} is not a Python file')
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    config = module.get_config(*([] if variant is None else [variant]))
  except UserError:
    raise
  except Exception as error:
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
    place = f'{file}, line {lines[-1]}' if lines else str(file)
    reason = (str(error).splitlines() or [''])[0]
    raise UserError(f'config {place}: {type(error).__name__}: {reason}') from error
  check_config(config)
  return config.lock()


def _define(config: Config, argv: list[str]) -> flags.FlagValues:
  values = flags.FlagValues()
  use: Any = {'flag_values': values}
  config_flags.DEFINE_config_dict('config', config, sys_argv=argv, **use)
  flags.DEFINE_string('mode', 'train', "'train', or 'evaluate' with flags of its own", **use)
  flags.DEFINE_string('output', None, 'work directory; work/<config>[_variant] if not set', **use)
  flags.DEFINE_string('data_dir', None, 'where data sets are; short for --config.data.dir', **use)
  flags.DEFINE_integer('seed', None, 'seed of everything; short for --config.seed', **use)
  flags.DEFINE_integer('batch_size', None, 'short for --config.train.batch_size', **use)
  flags.DEFINE_float('epochs', None, 'short for --config.train.epochs', **use)
  more = 'after a finished run: so many epochs more, from its best model, in OUTPUT_more'
  flags.DEFINE_float('more', None, more, **use)
  define_processes(values, 'train')
  return values


def _help(usage: str) -> str:
  values = _define(default_config(), [])
  lines = [usage.strip(), '', 'Flags:']
  lines.append(
    f'  --config\n      config file, or FILE:VARIANT (default: {_DEFAULT_CONFIG}); '
    f'by name those of the package:\n      {", ".join(configs.names())}'
  )
  for name in (name for name in values if name != 'config'):
    shown = "the config's" if name in ('seed', *_SHORT) else values[name].default
    lines.append(f'  --{name}\n      {values[name].help} (default: {shown})')
  note = 'Keys of the config, with the defaults that config files start from:'
  return '\n'.join([*lines, '', note, describe()])


def _split(arguments: list[str]) -> tuple[Path, str | None, list[str]]:
  """Takes the config file out of the arguments."""
  rest, given = [], _DEFAULT_CONFIG
  queue = iter(arguments)
  for argument in queue:
    if re.fullmatch(r'--?config', argument):
      given = next(queue, '')
    elif match := re.fullmatch(r'--?config=(.*)', argument):
      given = match[1]
    else:
      rest.append(argument)
  path, _, variant = given.partition(':')
  return configs.find(path), variant or None, rest


def _check_override_keys(config: Config, arguments: list[str]) -> None:
  for argument in arguments:
    if match := re.match(r'--?(?:no)?config\.([^=]+)', argument):
      check_key(match[1])
      group, _, key = match[1].rpartition('.')
      options = config.model[group.removeprefix('model.')] if group in OPEN else ()
      if group in OPEN and key not in options:
        there = ', '.join(options) or 'none'
        raise UserError(
          f'this config has no {match[1]!r}, only {there}; '
          f'give all together: --config.{group}="{{{key!r}: ...}}"'
        )


def _check_effects(config: Config, arguments: list[str]) -> None:
  """Refuses keys on the command line that this config does not look at."""
  idle = without_effect(config, _given_keys(arguments))
  if idle:
    name, needs = next(iter(idle.items()))
    raise UserError(
      f'--config.{name} has no effect here: it is for {needs}; leave it out or set that'
    )


def _given_keys(arguments: list[str]) -> list[str]:
  """The keys of the config that the command line sets."""
  return [m[1] for a in arguments if (m := re.match(r'--?(?:no)?config\.([^=]+)', a))]


def _with_radii(arguments: list[str]) -> list[str]:
  """Radii as numbers: 8/255, which people write, is a text to the flags of a config."""
  found = list(arguments)
  for place, argument in enumerate(arguments):
    match = re.fullmatch(r'--?config\.([\w.]+)(?:=(.*))?', argument)
    if not match or match[1] not in RADII:
      continue
    name, value = match[1], match[2]
    if value is not None:
      # What the norm allows is checked with the whole config.
      found[place] = f'--config.{name}={radius(value, "l2", what=f"config key {name!r}")!r}'
    elif place + 1 < len(found):
      found[place + 1] = repr(radius(found[place + 1], 'l2', what=f'config key {name!r}'))
  return found


def _resolve(values: flags.FlagValues, arguments: list[str]) -> Config:
  config: Config = values['config'].value
  if values['seed'].value is not None:
    config.seed = values['seed'].value
  for name, (group, key) in _SHORT.items():
    if values[name].value is not None:
      config[group][key] = values[name].value
  place_paths(config)
  check_config(config)
  if config.model.as_init:
    adopt_init(config, _given_keys(arguments))
    check_config(config)
  return config
