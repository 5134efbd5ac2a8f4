"""Attacks with a label, as an evaluation takes them, and those that it knows by name."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import numpy as np

from rest_jax.docstrings import composed
from rest_jax.errors import UserError, did_you_mean
from rest_jax.evaluation.fingerprint import weights_hash
from rest_jax.inputs import NORMS, Norm

_OF_THREAT = ('norm', 'eps', 'targets')
C = TypeVar('C', bound=type)
P = ParamSpec('P')


class _Entry(NamedTuple):
  """A row of the table: the class of a value, some of its fields, and when to use it."""

  value: type
  options: dict[str, Any]
  note: str


_TABLE: dict[str, _Entry] = {}


def register(name: str, note: str, **options: Any) -> Callable[[C], C]:
  """Makes a class of attacks known by a name: to `evaluate`, `list_attacks` and defend.py.

  Args:
    name: letters, digits and _.-
    note: when to use it, a few words.
    **options: fields that go with the name.

  Returns:
    A decorator of a frozen dataclass: an `IterativeAttack`, or whatever has its fields `norm` and,
    where it takes targets, `targeted`, its class attributes `norms`, `gradients` and
    `minimum_norm`, and its method `run`.

  Raises:
    UserError: the name is taken, or no word.
  """
  _check_label(name)
  if name in _TABLE:
    raise UserError(f'there is an attack {name!r} already')

  def keep(value: C) -> C:
    _TABLE[name] = _Entry(value, options, note)
    return value

  return keep


def list_attacks() -> list[str]:
  """Names of the attacks that `evaluate` knows, sorted."""
  return sorted(_TABLE)


def table() -> str:
  """The attacks as a Markdown table, as `docs/attacks.md` has it."""
  lines = ['| name | norms | use |', '|---|---|---|']
  for name in list_attacks():
    entry = _TABLE[name]
    lines.append(f'| `{name}` | {", ".join(entry.value.norms)} | {entry.note} |')
  return '\n'.join(lines) + '\n'


@dataclasses.dataclass(frozen=True)
class Attack:
  """An attack to evaluate with.

  Attributes:
    label: names it in results; letters, digits and _.-
    function: an attack as a value (`APGD(loss='ce')`) or its class. Or a function of one's own,
      called as `function(logits_fn, images, labels, key=..., norm=..., eps=..., targets=...,
      **options)`, with those of the named arguments that it has; key is one an image, (B,). It
      gives the adversarial images, or a pair of them and of the model evaluations spent on each,
      (B,). The batch is filled up with copies whose label is not what the model says.
    options: further arguments, or fields of the class.
    black_box: it asks for no gradient of the model; a value says so itself, as it does the rest.
    minimum_norm: it looks for the nearest adversarial image instead of one within a radius.
    norms: what it can do.
  """

  label: str
  function: Any
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  black_box: bool = False
  minimum_norm: bool = False
  norms: tuple[str, ...] = NORMS

  def __post_init__(self):
    _check_label(self.label)
    if dataclasses.is_dataclass(self.function) and not isinstance(self.function, type):
      self._set(options={**_changed(self.function), **self.options}, function=type(self.function))
    self._check_options()
    if self._is_value:
      value: Any = self.function
      black_box = self.black_box or not value.gradients
      self._set(black_box=black_box, minimum_norm=value.minimum_norm, norms=value.norms)
      value(**self.options)  # bad values are found now

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
    taken = self._taken()
    if targets is not None and taken is not None and 'targets' not in taken:
      raise UserError(f'the attack {self.label} has no targets; leave it out of a targeted threat')
    offered = {'key': key, 'eps': eps, 'targets': targets}
    if self._is_value:
      call, options = self.function(**{**self.options, 'norm': norm}).run, {}
    else:
      call, options = self.function, self.options
      offered['norm'] = norm
    named = {
      name: value
      for name, value in offered.items()
      if value is not None and (taken is None or name in taken) and name not in options
    }
    result = call(model, images, labels, **named, **options)
    adv, queries = result if isinstance(result, tuple) else (result, None)
    adv = np.asarray(adv, np.float32)
    if adv.shape != images.shape:
      raise UserError(f'the attack {self.label} gave {adv.shape} for images {images.shape}')
    return adv, None if queries is None else np.asarray(queries).astype(np.int64)

  def describe(self) -> dict[str, Any]:
    """JSON values that pin the attack in the header of its results."""
    name = getattr(self.function, '__qualname__', type(self.function).__name__)
    return {'function': name, 'options': json.loads(json.dumps(dict(self.options), default=_pin))}

  @property
  def _is_value(self) -> bool:
    return isinstance(self.function, type) and hasattr(self.function, 'run')

  def _taken(self) -> set[str] | None:
    """Names of the arguments that it can be given; None for any."""
    if not self._is_value:
      return _accepted(self.function)
    fields = {field.name for field in dataclasses.fields(self.function)}
    return fields | {'key', 'eps'} | ({'targets'} if 'targeted' in fields else set())

  def _check_options(self) -> None:
    """No option is ignored, and none takes the place of what the threat says."""
    taken = self._taken()
    for name in self.options:
      if name in _OF_THREAT:
        raise UserError(f'the attack {self.label} gets its {name} from the threat; leave it out')
      if taken is not None and (name not in taken or (self._is_value and name == 'targeted')):
        known = sorted(taken - {*_OF_THREAT, 'logits_fn', 'images', 'labels', 'key', 'targeted'})
        raise UserError(
          f'the attack {self.label} has no option {name!r}; {did_you_mean(name, known)}'
        )

  def _set(self, **values: Any) -> None:
    for name, value in values.items():
      object.__setattr__(self, name, value)


# What faces say of the arguments that many of them have.
_SHARED = {
  'logits_fn': 'float32 images (B, H, W, C) in [0, 1] to logits (B, K), or a `Classifier`.',
  'images': 'floats (B, H, W, C) in [0, 1].',
  'labels': 'integers (B,).',
  'key': 'PRNG key; image i uses `fold_in(key, i)`.',
  'norm': "'linf', 'l2' or 'l1'.",
  'eps': 'radius in units of [0, 1], a number or (B,); infinity for no limit but [0, 1].',
  'steps': 'gradient steps.',
  'step_size': 'length of a step in units of [0, 1]; a part of what is compiled.',
  'restarts': 'runs from different starts.',
  'targets': 'classes to reach, (B,); any wrong one by default.',
  'output': "'sigmoid' where the K outputs are decisions, each by itself, and labels (B, K).",
  'query_batch': 'images at a time; None for all.',
}
_RETURNS = 'float32 (B, H, W, C), in the ball and in [0, 1].'
_CASTS: dict[Any, Callable[[Any], Any]] = {'bool': bool, 'float': float}


def face(value: type, **fixed: Any) -> Callable[[Callable[P, jax.Array]], Callable[P, jax.Array]]:
  """Makes a function of an attack, for those that many people call.

  Args:
    value: class of the attack. Arguments with the name of a field are those; the others, with
      `key`, go to its `run`.
    **fixed: fields that are no arguments.

  Returns:
    A decorator of a function without a body, whose signature and docstring say what there is to
    give. What is said of an argument that many attacks have comes from a table, and so does what
    comes back and what is raised. `key` is `jax.random.key(0)` where None is the default.
  """
  types = {field.name: field.type for field in dataclasses.fields(value)}

  def make(function: Callable[P, jax.Array]) -> Callable[P, jax.Array]:
    signature = inspect.signature(function)
    free = signature.parameters['key'].default is None

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> jax.Array:
      try:
        bound = signature.bind(*args, **kwargs)
      except TypeError as error:
        raise TypeError(f'{function.__name__}(): {error}') from None
      bound.apply_defaults()
      given = bound.arguments
      if free and given['key'] is None:
        given['key'] = jax.random.key(0)
      fields = {n: _CASTS.get(types[n], _same)(given.pop(n)) for n in [*given] if n in types}
      return value(**fields, **fixed).run(**given).images

    shared = {**_SHARED, 'key': 'PRNG key; only random models need one.'} if free else _SHARED
    call.__doc__ = composed(function, signature, shared, _RETURNS, 'bad input.')
    return call

  return make


def _same(value: Any) -> Any:
  return value


def named_attack(name: str, *, label: str | None = None, **options: Any) -> Attack:
  """An attack of the list with options.

  Args:
    name: one of `list_attacks()`.
    label: names it in results, so that one attack may stand there with several options; its name
      by default.
    **options: fields of its value.

  Returns:
    The attack.

  Raises:
    UserError: an unknown name or option, one that the threat gives, or a label that is no word.
  """
  if name not in _TABLE:
    raise UserError(f'unknown attack {name!r}; there are {", ".join(list_attacks())}')
  entry = _TABLE[name]
  return Attack(label or name, entry.value, {**entry.options, **options})


def as_attacks(attacks: Any, only: str | None = None) -> tuple[Attack, ...]:
  """Looks up what an evaluation was given.

  Args:
    attacks: names, values or `Attack`s; one or several.
    only: 'black_box' or 'white_box' leaves out the others; None leaves out none.

  Returns:
    The attacks.

  Raises:
    UserError: an unknown name, two of one label, an unknown `only`, or nothing left.
  """
  if only not in (None, 'black_box', 'white_box'):
    raise UserError(f"only is 'black_box' or 'white_box', not {only!r}")
  several = isinstance(attacks, Sequence) and not isinstance(attacks, str)
  found = [as_attack(one) for one in (attacks if several else [attacks])]
  labels = [attack.label for attack in found]
  if twice := sorted({label for label in labels if labels.count(label) > 1}):
    raise UserError(f'two attacks are called {twice[0]!r}; give them labels: Attack(label, attack)')
  kept = tuple(a for a in found if only is None or a.black_box == (only == 'black_box'))
  if not kept:
    raise UserError(
      f'no {only} attack among {", ".join(labels) or "none"}; square and transfer are black-box'
      if only
      else 'no attacks; give names of list_attacks(), or Attacks'
    )
  return kept


def as_attack(attack: Any) -> Attack:
  """One attack of any form: a name, a value, an `Attack`.

  A value is labelled with the name that it is registered under, else with that of its class.

  Raises:
    UserError: an unknown name.
  """
  if isinstance(attack, Attack | str):
    return attack if isinstance(attack, Attack) else named_attack(attack)
  if not dataclasses.is_dataclass(attack) or isinstance(attack, type):
    raise UserError(
      f'an attack is one of list_attacks(), a value such as APGD() or an Attack, not {attack!r:.50}'
    )
  return Attack(_label_of(attack), attack)


def _label_of(value: Any) -> str:
  fitting = [
    (len(entry.options), name)
    for name, entry in _TABLE.items()
    if entry.value is type(value)
    and all(getattr(value, field) == wanted for field, wanted in entry.options.items())
  ]
  return max(fitting)[1] if fitting else type(value).__name__.lower()


def _changed(value: Any) -> dict[str, Any]:
  """The fields of a value that are not as by default, but for what a threat says."""
  return {
    field.name: getattr(value, field.name)
    for field in dataclasses.fields(value)
    if field.name not in ('norm', 'targeted') and getattr(value, field.name) != field.default
  }


def _check_label(label: str) -> None:
  if not re.fullmatch(r'[\w.-]+', label):
    raise UserError(f'the label of an attack is letters, digits and _.-, not {label!r}')


def _pin(value: Any) -> Any:
  """What stands in a header for an option that JSON has not: the weights of a model, for one."""
  if isinstance(value, Attack):
    return value.describe()
  if isinstance(value, np.generic | np.ndarray | jax.Array) and np.ndim(value) < 2:
    return np.asarray(value).tolist()
  return weights_hash(value) or type(value).__name__


def _accepted(function: Callable[..., Any]) -> set[str] | None:
  """Names of the arguments of a function of one's own; None where it takes any."""
  parameters = inspect.signature(function).parameters.values()
  if any(p.kind is p.VAR_KEYWORD for p in parameters):
    return None
  return {p.name for p in parameters}
