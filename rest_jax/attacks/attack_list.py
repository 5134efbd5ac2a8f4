"""The attacks that an evaluation knows by name."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from rest_jax.attacks.named import Attack
from rest_jax.attacks.threat import NORMS
from rest_jax.errors import UserError


class _Entry(NamedTuple):
  """A row of the table.

  Attributes:
    function: name in `rest_jax.attacks`.
    options: its further arguments.
    black_box: it asks for no gradient.
    minimum_norm: it looks for the nearest adversarial image.
    norms: what it can do.
    note: when to use it.
  """

  function: str
  options: dict[str, Any]
  black_box: bool
  minimum_norm: bool
  norms: tuple[str, ...]
  note: str


_TABLE = {
  'fgsm': _Entry('fgsm', {}, False, False, NORMS, 'one gradient step: a first look, and training'),
  'pgd': _Entry('pgd', {}, False, False, NORMS, 'the plain baseline; its step size matters'),
  'mi_fgsm': _Entry('mi_fgsm', {}, False, False, NORMS, 'momentum: perturbations that transfer'),
  'apgd_ce': _Entry(
    'apgd', {'loss': 'ce'}, False, False, NORMS, 'PGD that sets its own steps: the first choice'
  ),
  'apgd_dlr': _Entry(
    'apgd', {'loss': 'dlr'}, False, False, NORMS, 'where the scale of the logits hides gradients'
  ),
  'apgd_t': _Entry(
    'apgd', {'loss': 'dlr_targeted'}, False, False, NORMS, 'one run a target: strongest and slowest'
  ),
  'fab': _Entry('fab', {}, False, True, NORMS, 'how far is the nearest adversarial image'),
  'fab_t': _Entry(
    'fab', {'num_targets': 9}, False, True, NORMS, 'the same, with one gradient a step'
  ),
  'cw': _Entry('cw', {}, False, True, ('l2',), 'the same in L2, slower and by another way'),
  'deepfool': _Entry('deepfool', {}, False, True, ('l2', 'linf'), 'the same, quick and rough'),
  'square': _Entry('square', {}, True, False, NORMS, 'no gradients: a check on all the others'),
  'auto_attack': _Entry(
    'auto_attack', {}, False, False, NORMS, 'the number to report: APGD, FAB and Square in turn'
  ),
}


def list_attacks() -> list[str]:
  """Names of the attacks that `evaluate` knows, sorted."""
  return sorted(_TABLE)


def named_attack(name: str, *, label: str | None = None, **options: Any) -> Attack:
  """An attack of the list with options.

  Args:
    name: one of `list_attacks()`.
    label: names it in results, so that one attack may stand there with several options; its name
      by default.
    **options: arguments of its function.

  Returns:
    The attack.

  Raises:
    UserError: an unknown name or option, one that the threat gives, or a label that is no word.
  """
  if name not in _TABLE:
    raise UserError(f'unknown attack {name!r}; there are {", ".join(list_attacks())}')
  entry = _TABLE[name]
  # Not at the top: the package imports this module.
  function = getattr(importlib.import_module('rest_jax.attacks'), entry.function)
  return Attack(
    label=label or name,
    function=function,
    options={**entry.options, **options},
    black_box=entry.black_box,
    minimum_norm=entry.minimum_norm,
    norms=entry.norms,
  )


def as_attacks(attacks: Sequence[str | Attack], only: str | None = None) -> tuple[Attack, ...]:
  """Looks up what an evaluation was given.

  Args:
    attacks: names or attacks.
    only: 'black_box' or 'white_box' leaves out the others; None leaves out none.

  Returns:
    The attacks.

  Raises:
    UserError: an unknown name, two of one label, an unknown `only`, or nothing left.
  """
  if only not in (None, 'black_box', 'white_box'):
    raise UserError(f"only is 'black_box' or 'white_box', not {only!r}")
  given = [attacks] if isinstance(attacks, str | Attack) else list(attacks)
  found = [one if isinstance(one, Attack) else named_attack(one) for one in given]
  labels = [attack.label for attack in found]
  if twice := sorted({label for label in labels if labels.count(label) > 1}):
    raise UserError(f'two attacks are called {twice[0]!r}; give them labels')
  kept = tuple(a for a in found if only is None or a.black_box == (only == 'black_box'))
  if not kept:
    raise UserError(
      f'no {only} attack among {", ".join(labels) or "none"}; square and transfer are black-box'
      if only
      else 'no attacks; give names of list_attacks(), or Attacks'
    )
  return kept


def table() -> str:
  """The attacks as a Markdown table, as `docs/attacks.md` has it."""
  lines = ['| name | norms | use |', '|---|---|---|']
  for name, entry in _TABLE.items():
    lines.append(f'| `{name}` | {", ".join(entry.norms)} | {entry.note} |')
  return '\n'.join(lines) + '\n'
