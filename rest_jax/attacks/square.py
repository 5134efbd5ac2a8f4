"""Square Attack; `square_steps.Square` is the algorithm."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rest_jax.attacks.cascade import Runs, attack_images, make_target, still_right
from rest_jax.attacks.checks import check_choice, check_count, check_inputs
from rest_jax.attacks.square_steps import Square
from rest_jax.attacks.threat import Norm
from rest_jax.errors import UserError


def square(
  logits_fn: Any,
  images: Any,
  labels: Any,
  *,
  key: Any,
  norm: Norm = 'linf',
  eps: Any,
  n_queries: int = 5000,
  p_init: float = 0.8,
  loss: str | None = None,
  rescale: bool = True,
  restarts: int = 1,
  targets: Any = None,
  query_batch: int | None = None,
) -> jax.Array:
  """Random search over square windows, with the model's logits alone.

  Andriushchenko, Croce, Flammarion & Hein, "Square Attack: a query-efficient black-box adversarial
  attack via random search", arXiv 1912.00049; in L1 "Mind the box", arXiv 2103.01208, section 4.2.

  Args:
    logits_fn: float32 images (B, H, W, C) in [0, 1] to logits (B, K), or a `Classifier`.
    images: floats (B, H, W, C) in [0, 1].
    labels: integers (B,).
    key: PRNG key; image i uses `fold_in(key, i)`.
    norm: 'linf', 'l2' or 'l1'.
    eps: radius in units of [0, 1], a number or (B,).
    n_queries: changes to try on each image, after the starting point.
    p_init: share of the pixels that the first windows change, over 0 and up to 1.
    loss: 'margin' or 'ce', of the label or the target; by default, as published, the margin, with
      targets the cross-entropy.
    rescale: stretches the schedule of window sizes, made for 10000 queries, to `n_queries`.
      AutoAttack does not.
    restarts: runs from different starts.
    targets: classes to reach, (B,); any wrong one by default.
    query_batch: images in a batch; every batch has this size, 64 on a CPU and 256 elsewhere by
      default.

  Returns:
    float32 (B, H, W, C), in the ball and in [0, 1]: adversarial images, the originals where none
    was found or where they are misclassified by themselves.

  Raises:
    UserError: bad input.
  """
  check_count('n_queries', n_queries)
  check_count('restarts', restarts)
  loss = loss or ('margin' if targets is None else 'ce')
  check_choice('loss', loss, ('margin', 'ce'))
  if not 0 < p_init <= 1:
    raise UserError(f'p_init is a share of the pixels, over 0 and up to 1, not {p_init!r}')
  inputs = check_inputs(logits_fn, images, labels, norm=norm, eps=eps, targets=targets)
  target = make_target('square', inputs, key, query_batch)
  algorithm = Square(
    norm, target.targeted, int(n_queries), float(p_init), loss, rescale=bool(rescale)
  )
  which = still_right(target)
  adv = target.images.copy()
  adv[which] = attack_images(target, (Runs(algorithm, int(restarts)),), which).adv
  return jnp.asarray(adv)
