"""Carlini & Wagner's L2 attack; `cw_steps.CW` is the algorithm."""

from __future__ import annotations

from typing import Any

import jax

from rest_jax.attacks.checks import check_count, check_inputs
from rest_jax.attacks.cw_steps import CW
from rest_jax.attacks.minimum import attack_minimum
from rest_jax.errors import UserError


def cw(
  logits_fn: Any,
  images: Any,
  labels: Any,
  *,
  key: Any = None,
  steps: int = 1000,
  search_steps: int = 9,
  learning_rate: float = 0.01,
  initial_const: float = 1e-3,
  confidence: float = 0.0,
  abort_early: bool = True,
  targets: Any = None,
  query_batch: int | None = None,
) -> jax.Array:
  """Carlini & Wagner's attack of minimum L2 norm: "Towards evaluating the robustness", 2017.

  Args:
    logits_fn: float32 images (B, H, W, C) in [0, 1] to logits (B, K), or a `Classifier`.
    images: floats (B, H, W, C) in [0, 1].
    labels: integers (B,).
    key: PRNG key; only random models need one.
    steps: Adam's iterations in each of the rounds.
    search_steps: rounds of the binary search over the constant c.
    learning_rate: Adam's, in tanh space.
    initial_const: the first c, above 0, for margins in units of the image's own, so that logits of
      any scale give the same images.
    confidence: margin of logits by which an image must be misclassified, from 0.
    abort_early: end a round of an image whose objective no longer falls.
    targets: classes to reach, (B,); any wrong one by default.
    query_batch: images at a time; None for all.

  Returns:
    float32 (B, H, W, C) in [0, 1]: the nearest adversarial image found, the original where there
    is none or where it is one already. `attacks.distances` measures how far.

  Raises:
    UserError: bad input.
  """
  check_count('steps', steps)
  check_count('search_steps', search_steps)
  for name, value in [('learning_rate', learning_rate), ('initial_const', initial_const)]:
    if not 0 < value < float('inf'):
      raise UserError(f'{name} is a number above 0, not {value!r}')
  if not 0 <= confidence < float('inf'):
    raise UserError(f'confidence is a number from 0, not {confidence!r}')
  algorithm = CW(
    rounds=int(search_steps),
    iterations=int(steps),
    learning_rate=float(learning_rate),
    weight=float(initial_const),
    confidence=float(confidence),
    abort_early=bool(abort_early),
    targeted=targets is not None,
  )
  inputs = check_inputs(logits_fn, images, labels, norm='l2', targets=targets)
  return attack_minimum(algorithm, inputs, key, query_batch)
