"""The command line of defend.py."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rest_jax.attacks.registry import list_attacks, named_attack
from rest_jax.command_line import (
  DATA_DIR_FLAG,
  MODEL_FLAGS,
  Flag,
  check_seed,
  check_whole,
  parse_flags,
  split_list,
)
from rest_jax.defend.denoise.denoisers import DENOISERS, list_denoisers
from rest_jax.defend.protection import DRAWS
from rest_jax.errors import UserError, did_you_mean
from rest_jax.inputs import NORMS, check_norm, radius
from rest_jax.paths import check_folder, safe_name

# One of each family, none of them slow.
DEFAULT_DEFENCES = ('gaussian', 'jpeg', 'pca')
DEFAULT_EPS = {'linf': ('4/255', '8/255'), 'l2': ('0.5', '1'), 'l1': ('6', '12')}
DEFAULT_LIMIT = 100
DEFAULT_STRENGTH = '0.5'
PGD_STEPS = 20
_ALIASES = {'apgd': 'apgd_ce', 'autoattack': 'auto_attack', 'aa': 'auto_attack'}


_FLAGS = (
  Flag('attack', dict(nargs='+', default=['pgd']), 'one or several of'),
  Flag('norm', dict(default='linf'), f'what bounds the perturbation: {", ".join(NORMS)}'),
  Flag(
    'eps',
    dict(nargs='+', default=[]),
    'radii, in units of [0, 1], such as 8/255; if unset '
    + ', '.join(f'{" ".join(radii)} in {norm}' for norm, radii in DEFAULT_EPS.items()),
  ),
  Flag(
    'steps',
    dict(type=int),
    f"gradient steps of the attacks that have such; {PGD_STEPS} of pgd, the others' own if unset",
  ),
  *MODEL_FLAGS,
  Flag('data', dict(default='digit_scenes'), 'TFDS name, folder, or CSV of labels', 'name'),
  DATA_DIR_FLAG,
  Flag('split', {}, 'of the data; test, else validation, all of a folder without splits, if unset'),
  Flag(
    'limit', dict(type=int, default=DEFAULT_LIMIT), 'a sample of so many images, balanced by class'
  ),
  Flag(
    'defense',
    dict(nargs='+', default=list(DEFAULT_DEFENCES)),
    'one, several, all or none; NAME@LAYER denoises features, such as non_local@stage2; there are',
  ),
  Flag(
    'strength',
    dict(nargs='+', default=[]),
    'of every defence, one or several, from 0 (nothing) to 1 (its strongest); '
    f'{DEFAULT_STRENGTH} if unset',
  ),
  Flag(
    'adaptive',
    dict(action=argparse.BooleanOptionalAction, default=True),
    'attack through the defences too; --no-adaptive leaves that out',
  ),
  Flag(
    'draws', dict(type=int), f'of a random defence, for gradients and predictions; {DRAWS} if unset'
  ),
  Flag(
    'study',
    dict(choices=('noise',)),
    'noise: what denoisers leave of the perturbation alone, and the harm that this still does',
  ),
  Flag('output', {}, 'folder of the results; work/defend_DATA if unset', 'path'),
  Flag('seed', dict(type=int, default=0), 'of the attacks, of random defences and of the sample'),
  Flag('batch_size', dict(type=int, default=50), 'images attacked together'),
)


def _flags() -> tuple[Flag, ...]:
  """The flags; what is registered by now is named in their help."""
  known = {'attack': list_attacks(), 'defense': list_denoisers()}
  named = (f._replace(text=f'{f.text} {", ".join(known.get(f.name, ()))}'.rstrip()) for f in _FLAGS)
  return tuple(named)


@dataclasses.dataclass(frozen=True)
class Command:
  """A parsed command line; attributes are the flags of `defend.py --help`.

  `defense` holds names of the registry, 'all' resolved; `eps` and `strength` are numbers.
  """

  attack: tuple[str, ...]
  norm: str
  eps: tuple[float, ...]
  steps: int | None
  model: str
  architecture: str | None
  ema: bool
  data: str
  data_dir: str | None
  split: str | None
  limit: int
  defense: tuple[str, ...]
  strength: tuple[float, ...]
  adaptive: bool
  draws: int
  study: str | None
  output: Path
  seed: int
  batch_size: int


def parse(argv: Sequence[str], usage: str) -> Command | None:
  """Parses a command line.

  Args:
    argv: as `sys.argv`, the script's name first.
    usage: text above the flags in `--help`.

  Returns:
    The command, None after `--help` was asked for and printed.

  Raises:
    UserError: an unknown flag, attack, norm or defence, or a value out of its range.
  """
  values = parse_flags(argv, usage, _flags(), stray='attacks go to --attack, defences to --defense')
  return None if values is None else _check(values)


def _check(values: dict[str, Any]) -> Command:
  check_whole(values, ('steps', 'limit', 'draws', 'batch_size'))
  check_seed(values['seed'])
  check_norm(values['norm'])
  values['attack'] = _attacks(split_list(values['attack']), values['norm'])
  eps = split_list(values['eps']) or DEFAULT_EPS[values['norm']]
  values['eps'] = tuple(dict.fromkeys(radius(text, values['norm'], what='--eps') for text in eps))
  values['defense'] = _defences(split_list(values['defense']))
  _check_use(values)
  strengths = map(_strength, split_list(values['strength']) or (DEFAULT_STRENGTH,))
  values['strength'] = tuple(dict.fromkeys(strengths))
  values['draws'] = values['draws'] or DRAWS
  data = safe_name(Path(values['data']).resolve().name, 'data')
  values['output'] = check_folder(Path(values['output'] or f'work/defend_{data}'))
  return Command(**values)


def _check_use(values: dict[str, Any]) -> None:
  """Refuses flags that would change nothing beside the others."""
  if values['steps'] is not None and not any(map(takes_steps, values['attack'])):
    raise UserError(f'--steps: {" and ".join(values["attack"])} takes no steps; leave it out')
  named = values['defense']
  if values['strength'] and not named:
    raise UserError('--strength is that of defences, and --defense is none; leave it out')
  if not values['adaptive'] and not named:
    raise UserError('--no-adaptive is about defences, and --defense is none; leave it out')
  if values['draws'] is not None and not has_random(named):
    random = ', '.join(name for name, info in DENOISERS.items() if info.random)
    raise UserError(f'--draws is for random defences ({random}), and none is here; leave it out')


def has_random(names: Sequence[str]) -> bool:
  """Whether one of these defences draws at random."""
  return any('@' not in name and DENOISERS[name].random for name in names)


def takes_steps(attack: str) -> bool:
  """Whether an attack of the list has a number of gradient steps to choose."""
  return 'steps' in inspect.signature(named_attack(attack).function).parameters


def _attacks(names: Sequence[str], norm: str) -> tuple[str, ...]:
  """Names of the list, each once; those that people say for them are understood."""
  chosen = {}
  for name in names:
    known = name.lower().replace('-', '_')
    known = _ALIASES.get(known, known)
    if known not in list_attacks():
      hint = did_you_mean(known, [*list_attacks(), *_ALIASES], list_attacks())
      raise UserError(f'--attack: there is no attack {name!r}; {hint}')
    if norm not in (norms := named_attack(known).norms):
      raise UserError(f'--attack {known} has no norm {norm!r}; it has {", ".join(norms)}')
    chosen[known] = None
  if not chosen:
    raise UserError(f'--attack names no attack; there are {", ".join(list_attacks())}')
  return tuple(chosen)


def _defences(names: Sequence[str]) -> tuple[str, ...]:
  """Names of the registry, each once; names with a layer stay as they are."""
  chosen: dict[str, None] = {}
  for name in names:
    known = name if '@' in name else name.lower().replace('-', '_')
    if known == 'none':
      continue
    if known != 'all' and '@' not in known and known not in DENOISERS:
      hint = did_you_mean(known, list_denoisers())
      raise UserError(f'--defense: there is no {name!r}; {hint}')
    chosen |= dict.fromkeys(list_denoisers() if known == 'all' else [known])
  return tuple(chosen)


def _strength(text: str) -> float:
  try:
    value = float(text)
  except ValueError:
    value = float('nan')
  if not 0 <= value <= 1:
    raise UserError(f'--strength is {text}; it takes numbers from 0 (nothing) to 1')
  return value
