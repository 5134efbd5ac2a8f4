"""The command line of explain.py: argparse with the look of train.py's help, errors as one line."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rest_jax.errors import UserError

# In the order of --help: (flag, what argparse gets, what it does).
_FLAGS: tuple[tuple[str, dict, str], ...] = (
  ('image', dict(nargs='+', default=[]), 'pictures: files, folders, glob patterns; "**" goes down'),
  (
    'model',
    dict(default='digit_scenes'),
    'model directory, name of the zoo, or an official PyTorch checkpoint (.pth, needs torch)',
  ),
  ('architecture', {}, 'model name of a .pth that is not called after it, such as rest_small'),
  ('method', dict(nargs='+', default=['group_cam']), 'one method, several, or all'),
  (
    'target',
    dict(default='predicted'),
    'class to explain: its name or number, predicted, or top3 for the three most probable',
  ),
  ('layer', {}, "layer of the CAM methods, such as stage3; the model's last sensible one if unset"),
  ('groups', dict(type=int), 'groups of Group-CAM; 32 if unset'),
  ('variant', {}, 'of Group-CAM: paper or latest; paper if unset'),
  ('curves', dict(action='store_true'), 'draw insertion and deletion curves'),
  ('animate', dict(action='store_true'), 'write a GIF of the insertion'),
  (
    'sanity',
    dict(action='store_true'),
    'draw maps while layers are re-initialised, last first (model randomisation test)',
  ),
  ('evaluate', dict(action='store_true'), 'measure methods on a data set instead of --image'),
  ('data', dict(default='digit_scenes'), 'for --evaluate: TFDS name or folder, its test split'),
  ('data_dir', {}, 'where TFDS data sets are; $TFDS_DATA_DIR or ~/tensorflow_datasets if unset'),
  ('limit', dict(type=int), 'for --evaluate: so many images of the split, its first ones'),
  ('output', {}, 'folder of the results; work/explain, or work/explain_DATA, if unset'),
  ('seed', dict(type=int, default=0), 'of the methods with chance and of the intervals'),
  ('batch_size', dict(type=int), 'maps computed together; 8 pictures, 50 images of a data set'),
  ('query_batch', dict(type=int), "masked images run together; each method's own if unset"),
)


@dataclasses.dataclass(frozen=True)
class Command:
  """A parsed command line; attributes are the flags of `explain.py --help`.

  `method` holds what the user said; `methods.choose` turns it into names of the registry.
  """

  image: tuple[str, ...]
  model: str
  architecture: str | None
  method: tuple[str, ...]
  target: str
  layer: str | None
  groups: int | None
  variant: str | None
  curves: bool
  animate: bool
  sanity: bool
  evaluate: bool
  data: str
  data_dir: str | None
  limit: int | None
  output: Path
  seed: int
  batch_size: int
  query_batch: int | None


def parse(argv: Sequence[str], usage: str) -> Command | None:
  """Parses a command line.

  Args:
    argv: as `sys.argv`, the script's name first.
    usage: text above the flags in `--help`.

  Returns:
    The command, None after `--help` was asked for and printed.

  Raises:
    UserError: an unknown flag, a value out of its range, or nothing to do.
  """
  if any(arg in ('-h', '--help', '-help') for arg in argv[1:]):
    print(_help(usage))
    return None
  parser = _Parser(add_help=False, allow_abbrev=False, argument_default=None)
  for name, options, _ in _FLAGS:
    parser.add_argument(f'--{name}', f'-{name}', dest=name, **options)
  values, unknown = parser.parse_known_args(list(argv[1:]))
  if unknown:
    raise UserError(_unknown(unknown[0]))
  return _check(vars(values))


class _Parser(argparse.ArgumentParser):
  """An argument parser whose errors are ours."""

  def error(self, message: str) -> NoReturn:
    text = re.sub(r'argument (--\w+)(/-\w+)?:', r'\1:', message)
    raise UserError(f'{text}; explain.py --help lists the flags')


def _unknown(argument: str) -> str:
  if not argument.startswith('-'):
    return f'unexpected argument {argument!r}; pictures go to --image, see --help'
  name = argument.lstrip('-').split('=')[0]
  near = difflib.get_close_matches(name, [flag for flag, _, _ in _FLAGS], 3)
  hint = f'did you mean {" or ".join(f"--{n}" for n in near)}?' if near else 'see --help'
  return f'unknown flag --{name}; {hint}'


def _check(values: dict) -> Command:
  if not values['evaluate'] and not values['image']:
    raise UserError('nothing to explain: give --image FILE, or --evaluate for a data set')
  if values['evaluate'] and values['image']:
    raise UserError('--evaluate measures a data set and takes no --image: leave one of them out')
  for name in ('groups', 'limit', 'batch_size', 'query_batch'):
    if values[name] is not None and values[name] < 1:
      raise UserError(f'--{name} is {values[name]}; it takes a whole number from 1')
  if not 0 <= values['seed'] < 2**32:
    raise UserError(f'--seed is {values["seed"]}; it takes a whole number from 0 to 2**32 - 1')
  values['image'] = tuple(values['image'])
  values['method'] = tuple(name for text in values['method'] for name in text.split(',') if name)
  evaluate = values['evaluate']
  place = f'work/explain_{Path(values["data"]).name}' if evaluate else 'work/explain'
  values['output'] = Path(values['output'] or place)
  values['batch_size'] = values['batch_size'] or (50 if evaluate else 8)
  return Command(**values)


def _help(usage: str) -> str:
  lines = [usage.strip(), '', 'Flags:']
  for name, options, text in _FLAGS:
    default = options.get('default', False if 'action' in options else None)
    shown = ' '.join(default) or 'none' if isinstance(default, list) else default
    lines.append(f'  --{name}\n      {text} (default: {shown})')
  return '\n'.join(lines)
