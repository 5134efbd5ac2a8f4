"""The command line of explain.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rest_jax.command_line import (
  DATA_DIR_FLAG,
  MODEL_FLAGS,
  Flag,
  check_seed,
  check_whole,
  parse_flags,
  split_list,
)
from rest_jax.errors import UserError
from rest_jax.explain.methods import list_methods
from rest_jax.paths import check_folder, safe_name

_FLAGS = (
  Flag(
    'image',
    dict(nargs='+', default=[]),
    'pictures: files, folders, glob patterns; "**" goes down',
    'name',
  ),
  Flag(
    'model',
    {},
    'work directory, model directory, name of the zoo, checkpoint (.pth, .safetensors) or\n'
    '      hf://owner/name; efficientnet_lite0 if unset, digit_scenes to --evaluate on those',
    'model',
  ),
  *MODEL_FLAGS[1:],
  Flag('method', dict(nargs='+', default=['group_cam']), 'one method, several, or all of {}'),
  Flag(
    'target',
    dict(default='predicted'),
    'class to explain: its name or number, predicted, or top3 for the three most probable',
  ),
  Flag(
    'layer', {}, "layer of the CAM methods, such as stage3; the model's last sensible one if unset"
  ),
  Flag('groups', dict(type=int), 'groups of Group-CAM; 32 if unset'),
  Flag('variant', {}, 'of Group-CAM: paper or latest; of Score-CAM: paper or code; paper if unset'),
  Flag('curves', dict(action='store_true'), 'draw insertion and deletion curves'),
  Flag('animate', dict(action='store_true'), 'write a GIF of the insertion'),
  Flag(
    'sanity',
    dict(action='store_true'),
    'draw maps while layers are re-initialised, last first (model randomisation test)',
  ),
  Flag('evaluate', dict(action='store_true'), 'measure methods on a data set instead of --image'),
  Flag(
    'data',
    {},
    'for --evaluate: TFDS name, folder, or CSV of labels; digit_scenes if unset',
    'name',
  ),
  DATA_DIR_FLAG,
  Flag('split', {}, 'for --evaluate: of the data; test, else validation, all of a plain folder'),
  Flag(
    'fine_steps',
    dict(action='store_true'),
    "for --evaluate: insertion and deletion in 112 steps too, as Group-CAM's latest code has them",
  ),
  Flag('limit', dict(type=int), 'for --evaluate: a sample of so many images, balanced by class'),
  Flag('output', {}, 'folder of the results; work/explain, or work/explain_DATA, if unset', 'path'),
  Flag(
    'seed',
    dict(type=int, default=0),
    'of the methods with chance, of the sample and of the intervals',
  ),
  Flag('batch_size', dict(type=int), 'maps computed together; 8 pictures, 50 images of a data set'),
  Flag('query_batch', dict(type=int), "masked images run together; each method's own if unset"),
)

_OF_PICTURES = ('curves', 'animate', 'sanity')
_OF_DATA = ('data', 'data_dir', 'split', 'fine_steps', 'limit')


@dataclasses.dataclass(frozen=True)
class Command:
  """A parsed command line; attributes are the flags of `explain.py --help`.

  `method` holds what the user said; `methods.choose` turns it into names of the registry.
  """

  image: tuple[str, ...]
  model: str
  architecture: str | None
  ema: bool
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
  split: str | None
  fine_steps: bool
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
  values = parse_flags(argv, usage, [_named(f) for f in _FLAGS], stray='pictures go to --image')
  return None if values is None else _check(values)


def _named(flag: Flag) -> Flag:
  """--method with the names of all methods that there are by now, any other flag as it is."""
  return flag._replace(text=flag.text.format(', '.join(list_methods())))


def _check(values: dict) -> Command:
  if not values['evaluate'] and not values['image']:
    raise UserError('nothing to explain: give --image FILE, or --evaluate for a data set')
  if values['evaluate'] and values['image']:
    raise UserError('--evaluate measures a data set and takes no --image: leave one of them out')
  _check_use(values)
  check_whole(values, ('groups', 'limit', 'batch_size', 'query_batch'))
  check_seed(values['seed'])
  values['data'] = values['data'] or 'digit_scenes'
  values['image'] = tuple(values['image'])
  values['model'] = values['model'] or _model(values)
  values['method'] = split_list(values['method'])
  evaluate = values['evaluate']
  data = safe_name(Path(values['data']).resolve().name, 'data')
  place = f'work/explain_{data}' if evaluate else 'work/explain'
  values['output'] = check_folder(Path(values['output'] or place))
  values['batch_size'] = values['batch_size'] or (50 if evaluate else 8)
  return Command(**values)


def _check_use(values: dict) -> None:
  """Raises `UserError` for a flag of the command's other half, which would have no effect."""
  names, place = (_OF_PICTURES, '--image') if values['evaluate'] else (_OF_DATA, '--evaluate')
  unused = [name for name in names if values[name] not in (None, False)]
  if unused:
    raise UserError(f'--{unused[0]} has an effect with {place} alone; leave it out')


def _model(values: dict) -> str:
  """The model where none is named: one for photographs, or the one of the embedded data set."""
  embedded = values['evaluate'] and values['data'] == 'digit_scenes'
  return 'digit_scenes' if embedded else 'efficientnet_lite0'
