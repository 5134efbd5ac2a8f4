"""Attacks as values with a label, and those that an evaluation knows by name."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rest_jax.attacks.queries import counting
from rest_jax.attacks.threat import NORMS, Norm
from rest_jax.errors import UserError, did_you_mean
from rest_jax.evaluation.fingerprint import weights_hash

_OF_THREAT = ('norm', 'eps', 'targets')


@dataclasses.dataclass(frozen=True)
class Attack:
  """An attack to evaluate with.

  Attributes:
    label: names it in results; letters, digits and _.-
    function: called as `function(logits_fn, images, labels, key=..., norm=..., eps=...,
      targets=..., **options)`, with those of the named arguments that it has; key is one an image,
      (B,). It gives the adversarial images, or a pair of them and of the model evaluations spent on
      each, (B,). The batch is filled up with copies whose label is not what the model says.
    options: further arguments.
    black_box: it asks for no gradient of the model.
    minimum_norm: it looks for the nearest adversarial image instead of one within a radius.
    norms: what it can do.
  """

  label: str
  function: Callable[..., Any]
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  black_box: bool = False
  minimum_norm: bool = False
  norms: tuple[str, ...] = NORMS

  def __post_init__(self):
    if not re.fullmatch(r'[\w.-]+', self.label):
      raise UserError(f'the label of an attack is letters, digits and _.-, not {self.label!r}')
    self._check_options()

  def _check_options(self) -> None:
    """No option is ignored, and none takes the place of what the threat says."""
    taken = _accepted(self.function)
    for name in self.options:
      if name in _OF_THREAT:
        raise UserError(f'the attack {self.label} gets its {name} from the threat; leave it out')
      if taken is not None and name not in taken:
        known = sorted(taken - {*_OF_THREAT, 'logits_fn', 'images', 'labels', 'key'})
        raise UserError(
          f'the attack {self.label} has no option {name!r}; {did_you_mean(name, known)}'
        )

  def run(
    self,
    model: Any,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    key: jax.Array,
    norm: Norm,
    eps: float | None,
    targets: np.ndarray | None,
  ) -> tuple[np.ndarray, np.ndarray | None]:
    """Attacks a batch.

    Args:
      model: images to logits.
      images: float32 (B, H, W, C).
      labels: int32 (B,).
      key: PRNG keys (B,).
      norm: of the threat.
      eps: its radius; None for a minimum-norm attack.
      targets: int32 (B,), or None.

    Returns:
      float32 (B, H, W, C), and int64 (B,) or None where the attack does not count.

    Raises:
      UserError: targets for an attack that takes none, or what comes back is no batch of images.
    """
    arguments = self._arguments({'key': key, 'norm': norm, 'eps': eps, 'targets': targets})
    with counting(len(images)) as tally:
      result = self.function(model, images, labels, **arguments, **self.options)
    adv, queries = result if isinstance(result, tuple) else (result, None)
    if queries is None and tally.heard:
      queries = tally.queries
    adv = np.asarray(adv, np.float32)
    if adv.shape != images.shape:
      raise UserError(f'the attack {self.label} gave {adv.shape} for images {images.shape}')
    return adv, None if queries is None else np.asarray(queries).astype(np.int64)

  def _arguments(self, offered: dict[str, Any]) -> dict[str, Any]:
    """Those of the named arguments that the function has, with a value."""
    taken = _accepted(self.function)
    if offered['targets'] is not None and taken is not None and 'targets' not in taken:
      raise UserError(f'the attack {self.label} has no targets; leave it out of a targeted threat')
    return {
      name: value
      for name, value in offered.items()
      if value is not None and (taken is None or name in taken) and name not in self.options
    }

  def describe(self) -> dict[str, Any]:
    """JSON values that pin the attack in the header of its results."""
    name = getattr(self.function, '__qualname__', type(self.function).__name__)
    return {'function': name, 'options': json.loads(json.dumps(dict(self.options), default=_pin))}


def _pin(value: Any) -> Any:
  """What stands in a header for an option that JSON has not: the weights of a model, for one."""
  if isinstance(value, Attack):
    return value.describe()
  if isinstance(value, np.generic | np.ndarray | jax.Array) and np.ndim(value) < 2:
    return np.asarray(value).tolist()
  return weights_hash(value) or type(value).__name__


def _accepted(function: Callable[..., Any]) -> set[str] | None:
  """Names of a function's arguments; None where it takes any."""
  parameters = inspect.signature(function).parameters.values()
  if any(p.kind is p.VAR_KEYWORD for p in parameters):
    return None
  return {p.name for p in parameters}


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
