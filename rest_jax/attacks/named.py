"""Attacks as values: a function with its options, and what an evaluation has to know of it."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from rest_jax.attacks.counting import counting
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
