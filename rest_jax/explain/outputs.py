"""What a model gives, and what of it is explained: a class's logit and probability, or a score."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rest_jax.errors import UserError
from rest_jax.layers import describe, is_array
from rest_jax.ops import logits as ops_logits

OUTPUTS = ('softmax', 'sigmoid')


def as_logits(out: Any, batch: int) -> jax.Array:
  """Logits of whatever a model returns.

  Args:
    out: an array (B, K), or (B,) for one logit; or a tree in which one array alone is (B, K), or
      one that has it under 'logits' (a key or an attribute).
    batch: B.

  Returns:
    float32 (B, K).

  Raises:
    UserError: there are no logits, or it is not plain which array they are.
  """
  found = _find_logits(out, batch)
  if found.ndim == 1:
    found = found[:, None]
  return found.astype(jnp.float32)


def _find_logits(out: Any, batch: int) -> Any:
  if is_array(out):
    if out.ndim in (1, 2) and out.shape[0] == batch:
      return out
    raise UserError(
      f'a model gives logits ({batch}, K), got {tuple(out.shape)}; of a model that gives something '
      'else say what is explained: score=lambda outputs: ..., one number an image; of a Segmenter '
      'images, question = segmenter.question(picture, label)'
    )
  if _has(out, 'boxes'):
    raise UserError(
      f'a model gives logits ({batch}, K), got {describe(out)} of a detector; explain what it says '
      'of one object, images, question = detector.question(picture, found, 0), or say what is '
      'explained: score=lambda outputs: ...'
    )
  named = out.get('logits') if isinstance(out, Mapping) else getattr(out, 'logits', None)
  if is_array(named) and named.ndim == 2 and named.shape[0] == batch:
    return named
  leaves = [leaf for leaf in jax.tree.leaves(out) if is_array(leaf)]
  fitting = [leaf for leaf in leaves if leaf.ndim == 2 and leaf.shape[0] == batch]
  fitting = [leaf for leaf in fitting if jnp.issubdtype(leaf.dtype, jnp.floating)]
  if len(fitting) == 1:
    return fitting[0]
  raise UserError(
    f'a model gives logits ({batch}, K), got {describe(out)}, where {len(fitting)} arrays could '
    'be the logits; give a function that returns them, such as lambda x: model(x)[0], or say what '
    'is explained: score=lambda outputs: ...'
  )


def _has(out: Any, name: str) -> bool:
  """Whether outputs have a part of a name, as a key or an attribute."""
  return name in out if isinstance(out, Mapping) else hasattr(out, name)


def as_scores(score: Callable[[Any], Any], out: Any, batch: int) -> jax.Array:
  """What a function of the user's own makes of the outputs, as one column: float32 (B, 1).

  Raises:
    UserError: it does not give one number an image.
  """
  made = score(out)
  if not is_array(made) or made.shape not in ((batch,), (batch, 1)):
    raise UserError(
      f'score gives one number an image, ({batch},), got {describe(made)}; sum or pick: '
      'lambda outputs: outputs[:, 3], or outputs.sum((1, 2))'
    )
  if not jnp.issubdtype(made.dtype, jnp.floating):
    raise UserError(f'score gives real numbers, which have a gradient, got {made.dtype}')
  return made.reshape(batch, 1).astype(jnp.float32)


def probabilities(logits: jax.Array, output: str | None) -> jax.Array:
  """Of logits (B, K): the softmax over K, or the sigmoid of each.

  Args:
    logits: float32 (..., K).
    output: 'softmax' or 'sigmoid'; None: the sigmoid of a single logit, the softmax of several.

  Raises:
    UserError: the softmax of a single logit, which is 1 whatever the image.
  """
  if output == 'softmax' and logits.shape[-1] == 1:
    raise UserError("the softmax of one logit is always 1; leave output out, or say 'sigmoid'")
  return jax.nn.sigmoid(logits) if output == 'sigmoid' else ops_logits.probabilities(logits)


def check_output(output: Any, scored: bool) -> None:
  """Raises `UserError` for an unknown kind of output, or for one beside a score of one's own."""
  if output is None:
    return
  if output not in OUTPUTS:
    raise UserError(f"output is 'softmax' or 'sigmoid', got {output!r}")
  if scored:
    raise UserError('with score=... output has no effect; leave it out')
