"""What a model gives, and what of it is explained: a class's logit and probability, or a score."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rest_jax.errors import UserError
from rest_jax.inputs import is_known
from rest_jax.layers import describe, is_array
from rest_jax.ops import logits as ops_logits

OUTPUTS = ('softmax', 'sigmoid')
PROBABLE = (
  'the outputs look like probabilities (all in [0, 1], and each row sums to 1), and a softmax of '
  'those is wrong; give logits (jnp.log of them will do, of 1e-30 where they are 0)'
)
_NARROW = ((8, 7), (5, 10))  # bits of the exponent and of the fraction: bfloat16, float16
_FEW = 3  # rows under which logits of a narrow type may lie by chance as probabilities do


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


def distance_from_probabilities(logits: jax.Array) -> jax.Array:
  """How rows (B, K) differ from what a softmax gives: int32 (B,).

  0: not at all, to the rounding of float32, or of a narrower type that all of a row's numbers
  have; 1: by no more than bfloat16 rounds (a compiler keeps bits that the type has not); 2: they
  are no probabilities, as a single column never is.
  """
  count = logits.shape[-1]
  if count == 1:
    return jnp.full(logits.shape[:-1], 2, jnp.int32)
  off = jnp.abs(jnp.sum(logits, -1) - 1)
  exact = off <= float(jnp.finfo(jnp.float32).eps) * (8 + count**0.5)
  for exponent, fraction in _NARROW:
    narrow = (jax.lax.reduce_precision(logits, exponent, fraction) == logits).all(-1)
    exact |= narrow & (off <= 2.0**-fraction)
  # Exponentials, quotients and the sum of log2 K additions are each rounded by half of eps.
  near = off <= float(jnp.finfo(jnp.bfloat16).eps) * (1 + math.log2(count) / 2)
  inside = ((logits >= 0) & (logits <= 1)).all(-1)
  return jnp.where(inside & (exact | near), jnp.where(exact, 0, 1), 2)


def are_probable(distances: Any) -> bool:
  """Whether outputs so far from probabilities, int32 (B,), are some; of few rows chance may be.

  No where none are known: None, or inside jit.
  """
  if distances is None or not is_known(distances):
    return False
  most = int(np.max(distances, initial=0))
  return most == 0 or (most == 1 and len(distances) >= _FEW)


def look_probable(logits: Any) -> bool:
  """Whether logits (B, K) look like probabilities; no inside jit."""
  if not is_known(logits) or not logits.size or logits.min() < 0 or logits.max() > 1:
    return False
  return are_probable(distance_from_probabilities(jnp.asarray(logits)))


def refuse_probabilities(logits: Any) -> None:
  """Raises `UserError` where all rows (B, K) look like probabilities; nothing inside jit."""
  if look_probable(logits):
    raise UserError(PROBABLE)


def check_output(output: Any, scored: bool) -> None:
  """Raises `UserError` for an unknown kind of output, or for one beside a score of one's own."""
  if output is None:
    return
  if output not in OUTPUTS:
    raise UserError(f"output is 'softmax' or 'sigmoid', got {output!r}")
  if scored:
    raise UserError('with score=... output has no effect; leave it out')
