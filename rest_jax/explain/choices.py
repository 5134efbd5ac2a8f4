"""What the user asked for by name: model, methods, target class. Part of the script explain.py."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rest_jax import explain
from rest_jax.errors import UserError, did_you_mean
from rest_jax.explain.command import Command
from rest_jax.explain.methods import METHODS, get_method
from rest_jax.models.classifier import Classifier
from rest_jax.opening import open_classifier as open_classifier
from rest_jax.text import plural


def choose_methods(names: Sequence[str]) -> tuple[str, ...]:
  """Names of the registry, each once, 'all' for every one.

  Raises:
    UserError: an unknown name; near ones are given.
  """
  chosen: dict[str, None] = {}
  for name in names:
    known = name.lower().replace('-', '_')
    every = explain.list_methods() if known == 'all' else [get_method(known).name]
    chosen |= dict.fromkeys(every)
  if not chosen:
    raise UserError('--method names no method; give one or more, or all')
  return tuple(chosen)


def usable_methods(names: Sequence[str], classifier: Classifier) -> tuple[tuple[str, ...], str]:
  """What 'all' means for a model: guided backpropagation is left out where there is no ReLU.

  Args:
    names: as the user gave them; one that is named outright stays, and fails with its reason.
    classifier: the model.

  Returns:
    The methods, and why one was left out ('' where none was).
  """
  methods = choose_methods(names)
  outright = 'guided_backprop' in (name.lower().replace('-', '_') for name in names)
  if outright or 'guided_backprop' not in methods:
    return methods, ''
  size = classifier.input_size
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  try:
    jax.eval_shape(lambda x: METHODS['guided_backprop'].fn(classifier, x, 0), images)
  except UserError as error:
    return tuple(m for m in methods if m != 'guided_backprop'), f'guided_backprop left out: {error}'
  return methods, ''


def check_own_flags(classifier: Classifier, methods: Sequence[str], command: Command) -> None:
  """Looks at the flags of some methods alone, before any picture is read or data prepared.

  Raises:
    UserError: a variant that none of the methods has, or a number of groups without Group-CAM, or
      beyond the layer's channels.
  """
  _check_variant(methods, command.variant)
  if command.groups is None:
    return
  if 'group_cam' not in methods:
    raise UserError(
      f'--groups {command.groups}: {", ".join(methods)} makes no groups; leave it out'
    )
  size = classifier.input_size
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  point = explain.tap(classifier, command.layer)
  channels = jax.eval_shape(lambda x: point.perturbed(x)[1], images).shape[-1]
  if command.groups > channels:
    raise UserError(
      f'--groups {command.groups}: {command.layer or "the default layer"} has '
      f'{plural(channels, "channel")}, and a group has one or more; give {channels} or fewer'
    )


def _check_variant(methods: Sequence[str], variant: str | None) -> None:
  """Raises `UserError` for a variant that none of the methods has."""
  known = {name: METHODS[name].variants for name in methods if METHODS[name].variants}
  if variant is None or any(variant in variants for variants in known.values()):
    return
  there = '; '.join(f'{name} has {" and ".join(variants)}' for name, variants in known.items())
  cure = there or f'{", ".join(methods)} has no variants; leave it out'
  raise UserError(f'--variant {variant!r} is of none of the methods: {cure}')


def method_options(method: str, command: Command) -> dict[str, Any]:
  """The options of a method that the command line sets.

  Args:
    method: name of the registry.
    command: the command line.

  Returns:
    Keyword arguments for `explain.explain`.
  """
  chosen = METHODS[method]
  names = ('query_batch', 'variant', 'groups')
  options: dict[str, Any] = {name: getattr(command, name) for name in names}
  if command.variant not in chosen.variants:  # of another method: this one keeps its default
    options.pop('variant')
  options = {name: v for name, v in options.items() if v is not None and name in chosen.options()}
  return options | ({'layer': command.layer} if chosen.needs_layer else {})


def choose_targets(target: str, class_names: Sequence[str], logits: np.ndarray) -> np.ndarray:
  """The classes to explain.

  Args:
    target: 'predicted', 'topN', a class name (capitals do not matter) or a class number; a name
      goes before a number, where classes are called by numbers.
    class_names: one a class.
    logits: (B, K).

  Returns:
    int32 (B, N), N = 1 but for 'topN'.

  Raises:
    UserError: no such class; near names are given.
  """
  count = len(class_names)
  ranked = np.argsort(-logits, axis=1, kind='stable')
  if target in class_names:
    return np.full((len(logits), 1), _only(target, class_names, target), np.int32)
  if target == 'predicted':
    return ranked[:, :1].astype(np.int32)
  if match := re.fullmatch(r'top(\d+)', target):
    return _top(int(match[1]), target, ranked)
  folded = [name.casefold() for name in class_names]
  if target.casefold() in folded:
    number = _only(target.casefold(), folded, target)
  elif re.fullmatch(r'-?\d+', target) and 0 <= int(target) < count:
    number = int(target)
  else:
    raise UserError(_no_class(target, class_names, folded))
  return np.full((len(logits), 1), number, np.int32)


def _only(name: str, names: Sequence[str], target: str) -> int:
  """The number of the class of a name.

  Raises:
    UserError: several are called so, which no map could stand for.
  """
  numbers = [number for number, other in enumerate(names) if other == name]
  if len(numbers) > 1:
    raise UserError(
      f'--target {target}: {len(numbers)} classes of the model are called so, capitals aside; give '
      f'the number of one: {", ".join(map(str, numbers[:10]))}'
    )
  return numbers[0]


def _top(wanted: int, target: str, ranked: np.ndarray) -> np.ndarray:
  if not 1 <= wanted <= ranked.shape[1]:
    raise UserError(
      f'--target {target}: the model has {plural(ranked.shape[1], "class")}, take top1 to top'
      f'{ranked.shape[1]}'
    )
  return ranked[:, :wanted].astype(np.int32)


def _no_class(target: str, class_names: Sequence[str], folded: list[str]) -> str:
  hint = did_you_mean(
    target.casefold(),
    folded,
    f'such as {", ".join(class_names[:3])}',
    shown=lambda name: class_names[folded.index(name)],
  )
  last = len(class_names) - 1
  return f'no class {target!r} in the model, which has numbers 0 to {last} and names; {hint}'
