"""What a model is, in a line: what a console or a notebook shows of it."""

from __future__ import annotations

import math
from typing import Any

import jax

from rest_jax.text import legible, plural, shortened

_NAMED = 3  # class names that stand in the line
_NAME = 30  # characters of one


def summary(model: Any) -> str:
  """Names a model without its weights, which would fill thousands of lines.

  Args:
    model: a classifier, detector or segmenter: it has `config`, `class_names` and `variables`, a
      tree of arrays, of what stands for them under a trace, or of anything else.

  Returns:
    One line, such as "Classifier('rest_small', 10 classes: cat, dog, fox, ...; 13,700,000
    parameters)".
  """
  names = [shortened(legible(name), _NAME) for name in model.class_names[:_NAMED]]
  more = ['...'] if len(model.class_names) > _NAMED else []
  parts = [plural(len(model.class_names), 'class'), ', '.join(names + more)]
  classes = ': '.join(filter(None, parts))
  return f'{type(model).__name__}({model.config.model!r}, {classes}{_size(model)})'


def _size(model: Any) -> str:
  variables = model.variables
  weights = variables.get('params', ()) if hasattr(variables, 'get') else variables
  leaves = jax.tree.leaves(weights)
  if not leaves or not all(hasattr(leaf, 'shape') for leaf in leaves):  # it has no size
    return ''
  return f'; {sum(math.prod(leaf.shape) for leaf in leaves):,} parameters'
