"""Frozen parts of a model, chosen by a regular expression over the paths of its parameters.

A pattern matches from the start of a path such as 'stage1/block0/attn/q/kernel': 'stem|stage1/'
freezes the stem and the first stage, and '(?!head/)' everything but the head (a linear probe).

Frozen parameters get no gradient, no state of the optimizer and no update: not a bit changes. A
module all of whose parameters are frozen runs as in evaluation, without dropout or stochastic
depth, and its batch norms use and keep their running statistics.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from typing import Any

import flax.linen as nn
from flax import traverse_util

from rest_jax.errors import UserError

Path = tuple[str, ...]


def split(params: Any, pattern: str) -> tuple[Any, Any]:
  """Parts parameters.

  Args:
    params: nested dictionaries of arrays, or of what stands for them.
    pattern: regular expression, matched from the start of 'module/.../name'; '' matches nothing.

  Returns:
    (trained, frozen), nested dictionaries without the other's leaves. Without a pattern `trained`
    is `params` itself.
  """
  if not pattern:
    return params, {}
  flat = traverse_util.flatten_dict(params)
  frozen = {path for path in flat if re.match(pattern, '/'.join(path))}
  parts = ({p: leaf for p, leaf in flat.items() if (p in frozen) == side} for side in (False, True))
  trained, kept = (traverse_util.unflatten_dict(part) for part in parts)
  return trained, kept


def merge(trained: Any, frozen: Any) -> Any:
  """Puts together what `split` parted."""
  if not frozen:
    return trained
  return traverse_util.unflatten_dict(
    traverse_util.flatten_dict(trained) | traverse_util.flatten_dict(frozen)
  )


def frozen_modules(params: Any, pattern: str) -> frozenset[Path]:
  """Paths of the modules that have parameters, all of them frozen."""
  trained, frozen = split(params, pattern)
  mixed = _modules(trained) if pattern else set()
  return frozenset(_modules(frozen) - mixed)


def _modules(params: Any) -> set[Path]:
  paths = traverse_util.flatten_dict(params)
  return {path[:end] for path in paths for end in range(len(path))}


def keep(new: Any, old: Any, modules: frozenset[Path]) -> Any:
  """Takes the leaves of frozen modules from `old`, the others from `new`.

  Averaging over devices, or over time, rounds even where all values are equal.

  Args:
    new: nested dictionaries, such as batch statistics.
    old: the same tree.
    modules: from `frozen_modules`.
  """
  if not modules:
    return new
  flat, before = traverse_util.flatten_dict(new), traverse_util.flatten_dict(old)
  return traverse_util.unflatten_dict(
    {path: before[path] if path[:-1] in modules else leaf for path, leaf in flat.items()}
  )


def evaluating(modules: frozenset[Path]) -> contextlib.AbstractContextManager[Any]:
  """Within it the modules at these paths run with `train=False`, and so does all they call."""
  if not modules:
    return contextlib.nullcontext()

  def interceptor(call, args, kwargs, context):
    if context.method_name == '__call__' and context.module.path in modules:
      bound = inspect.signature(context.orig_method).bind(*args, **kwargs)
      if 'train' in bound.signature.parameters:
        bound.arguments['train'] = False
        args, kwargs = bound.args, bound.kwargs
    return call(*args, **kwargs)

  return nn.intercept_methods(interceptor)


def check_pattern(params: Any, pattern: str) -> None:
  """Refuses a pattern that freezes nothing or everything.

  Args:
    params: of the model; shapes do.
    pattern: the config's `optim.freeze`.

  Raises:
    UserError: names some of the paths that there are.
  """
  if not pattern:
    return
  trained, frozen = split(params, pattern)
  if frozen and trained:
    return
  paths = ['/'.join(path) for path in traverse_util.flatten_dict(params)]
  modules = dict.fromkeys(path.split('/')[0] for path in paths)
  raise UserError(
    f'optim.freeze={pattern!r} matches {"every" if frozen else "no"} parameter; paths begin with '
    f'{", ".join(modules)}, for example {paths[0]}'
  )
