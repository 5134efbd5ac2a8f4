"""Models as arguments of compiled functions: weights as data, code as a constant.

`explain` and `attacks` take any function of images. Compiled functions take it as one argument, a
`jax.tree_util.Partial`, so that they compile once for a model's code and shapes, not once for each
set of weights, and so that weights are never baked into a program as constants.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

from rest_jax.errors import UserError


def as_function(model: Any) -> Partial:
  """Turns whatever computes from images into a pytree that can be called.

  Args:
    model: a callable pytree of arrays (a `Classifier`, an Equinox module, a `Partial`), or any
      other callable. Of the latter the code is part of the compiled program and so is what it
      encloses: the same function object compiles once, a new lambda each time compiles anew.

  Returns:
    A `Partial` that calls it; itself where it is one.

  Raises:
    UserError: it cannot be called.
  """
  if isinstance(model, Partial):
    return model
  if not callable(model):
    raise UserError(
      f'a model is a function of images or a Classifier, not {type(model).__name__}; '
      'of a Linen module and its variables, lambda x: module.apply(variables, x) is one'
    )
  if _is_tree_of_arrays(model):
    return Partial(_call, model)
  return Partial(_hashable(model))


def _call(model: Callable[..., Any], *args, **kwargs) -> Any:
  return model(*args, **kwargs)


def _is_tree_of_arrays(model: Any) -> bool:
  leaves = jax.tree.leaves(model)
  if any(leaf is model for leaf in leaves):
    return False  # no pytree: a leaf by itself
  return bool(leaves) and all(isinstance(leaf, (jax.Array, np.ndarray)) for leaf in leaves)


def _hashable(function: Callable[..., Any]) -> Callable[..., Any]:
  """A compiled function's constant needs a hash; an object without one stands for itself."""
  try:
    hash(function)
  except TypeError:
    return _ByIdentity(function)
  return function


class _ByIdentity:
  """Compares and hashes by identity what it wraps."""

  def __init__(self, function: Callable[..., Any]):
    self.function = function

  def __call__(self, *args, **kwargs) -> Any:
    return self.function(*args, **kwargs)

  def __eq__(self, other: object) -> bool:
    return isinstance(other, _ByIdentity) and other.function is self.function

  def __hash__(self) -> int:
    return id(self.function)
