"""Models as arguments of compiled functions: weights as data, code as a constant.

`explain` and `attacks` take any function of images. Compiled functions take it as one argument, a
`jax.tree_util.Partial`, so that they compile once for a model's code and shapes, not once for each
set of weights, and so that weights are never baked into a program as constants: there they would
stay what they were, whatever becomes of the model, and stay in memory after it is gone.
`recipes.py` takes a callable apart and puts it together again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

from rest_jax.errors import UserError
from rest_jax.hidden_modules import find_module
from rest_jax.recipes import Recipe, as_recipe, has_hash, is_code


def as_function(model: Any) -> Partial:
  """Turns whatever computes from images into a pytree that can be called.

  Arrays become data of compiled functions, as they are when this is called: those of a pytree (a
  `Classifier`, an Equinox or NNX module, a `Partial`), of the pytree of a bound method, of the
  arguments of a `functools.partial`, and those that a Python function encloses, has as defaults
  or names as globals, or that an object holds as attributes. Everything else is code, compared by
  value where it can be, numbers in attributes, lists and dictionaries too: two functions of equal
  code compile once, and what was changed in place is another function. A list that the function
  itself writes to is compared by identity.

  Args:
    model: a callable.

  Returns:
    A `Partial` that calls it; itself where it is one without arrays in its code.

  Raises:
    UserError: it cannot be called, or a function encloses an NNX module. That may be changed after
      the function was compiled; given as it is, or as an argument of a `Partial`, it is data.
  """
  if not callable(model):
    raise UserError(
      f'a model is a function of images or a Classifier, not {type(model).__name__}; '
      'of a Linen module and its variables, lambda x: module.apply(variables, x) is one'
    )
  refuse_modules(model)
  if isinstance(model, Partial):
    return _partial(model)
  if _is_tree_of_arrays(model):
    return Partial(_call, model)
  recipe, leaves = as_recipe(model)
  if is_code(recipe) and has_hash(model):
    return Partial(model)
  return Partial(_Made(recipe), *leaves)


def _call(model: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
  return model(*args, **kwargs)


def _is_tree_of_arrays(model: Any) -> bool:
  leaves = jax.tree.leaves(model)
  if any(leaf is model for leaf in leaves):
    return False  # no pytree: a leaf by itself
  return bool(leaves) and all(isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves)


def refuse_modules(model: Any) -> None:
  """Raises `UserError`, with the line to write instead, where a function hides a mutable module."""
  name = find_module(model)
  if name is not None:
    raise UserError(
      f'the model encloses the mutable module {name!r}, whose later changes a compiled function '
      f'would not see; give {name} itself, {name}.method, or '
      f'jax.tree_util.Partial(lambda {name}, x: {name}(x), {name})'
    )


def _partial(model: Partial) -> Partial:
  """A `Partial` whose function encloses arrays gets them as arguments."""
  if isinstance(model.func, _Made):
    return model
  recipe, leaves = as_recipe(model.func)
  if is_code(recipe):
    return model
  return Partial(_Made(recipe), *leaves, *model.args, **model.keywords)


class _Made:
  """The function of a `Partial` whose arguments are a recipe's leaves, then those of the call."""

  def __init__(self, recipe: Recipe):
    self.recipe = recipe

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    count = self.recipe.count
    return self.recipe.join(list(args[:count]))(*args[count:], **kwargs)

  def __eq__(self, other: object) -> bool:
    return type(other) is type(self) and other.recipe == self.recipe  # pyright: ignore

  def __hash__(self) -> int:
    return hash(self.recipe)

  @property
  def __wrapped__(self) -> Any:
    """The callable where it holds no arrays: who looks for what is jitted finds it."""
    if self.recipe.count:
      raise AttributeError('__wrapped__')
    return self.recipe.join([])
