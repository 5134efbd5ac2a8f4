"""FAB, the Fast Adaptive Boundary attack; `fab_steps.FAB` is the algorithm."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rest_jax.attacks.cascade import (
  Runs,
  Target,
  attack_images,
  in_batches,
  make_target,
  still_right,
)
from rest_jax.attacks.checks import check_count, check_inputs
from rest_jax.attacks.fab_search import final_search
from rest_jax.attacks.fab_steps import FAB
from rest_jax.attacks.threat import Norm
from rest_jax.errors import UserError

_ORDERS = {'linf': np.inf, 'l2': 2, 'l1': 1}


def fab(
  logits_fn: Any,
  images: Any,
  labels: Any,
  *,
  key: Any,
  norm: Norm = 'linf',
  eps: Any = None,
  steps: int = 100,
  restarts: int = 1,
  targets: Any = None,
  num_targets: int | None = None,
  query_batch: int | None = None,
) -> jax.Array:
  """The nearest adversarial images that projections to the decision boundary find.

  Croce & Hein, "Minimally distorted Adversarial Examples with a Fast Adaptive Boundary Attack",
  arXiv 1907.02044, algorithm 1, with a final search along the line to each image found.

  Args:
    logits_fn: float32 images (B, H, W, C) in [0, 1] to logits (B, K), or a `Classifier`.
    images: floats (B, H, W, C) in [0, 1].
    labels: integers (B,).
    key: PRNG key; image i uses `fold_in(key, i)`.
    norm: 'linf', 'l2' or 'l1', what is kept small.
    eps: radius in units of [0, 1], a number or (B,), within which restarts begin and adversarial
      images count; by default all count, and restarts begin within 0.3, 1 and 5.
    steps: iterations.
    restarts: runs; the first begins at the image, the others at random points.
    targets: classes to reach, (B,); any wrong one by default.
    num_targets: runs towards this many classes, those of the highest logits after the label's
      (FAB-T, one gradient a step), in place of a gradient for each class; 0, the default, for the
      latter. Not together with targets.
    query_batch: images in a batch; every batch has this size, 64 on a CPU and 256 elsewhere by
      default.

  Returns:
    float32 (B, H, W, C): the nearest adversarial image found, the original where there is none or
    where it is misclassified by itself. `distances` measures them.

  Raises:
    UserError: bad input.
  """
  check_count('steps', steps)
  check_count('restarts', restarts)
  if num_targets is not None and targets is not None:
    raise UserError('num_targets are chosen by fab where no targets are given; leave out one')
  num_targets = num_targets or 0
  check_count('num_targets', num_targets, 0)
  inputs = check_inputs(logits_fn, images, labels, norm=norm, eps=eps, targets=targets)
  target = make_target('fab', inputs, key, query_batch)
  runs = _runs(target, norm, int(steps), int(restarts), int(num_targets))
  which = still_right(target)
  found = attack_images(
    target,
    runs,
    which,
    stop_early=False,
    distance=lambda delta: float(np.linalg.norm(delta.ravel(), _ORDERS[norm])),
  )
  adv = target.images.copy()
  adv[which] = found.adv
  which = which[found.success]
  adv[which] = _search(target, adv, which)
  return jnp.asarray(adv)


def _runs(
  target: Target, norm: Norm, steps: int, restarts: int, num_targets: int
) -> tuple[Runs, ...]:
  """One from each image itself, the others from random points."""
  count = 0 if target.targeted else min(num_targets, target.num_classes - 1)
  to_target = target.targeted or count > 0
  first = FAB(norm, target.targeted, to_target, steps)
  if restarts == 1:
    return (Runs(first, num_targets=count),)
  again = dataclasses.replace(first, random_start=True)
  return Runs(first, num_targets=count), Runs(again, restarts - 1, num_targets=count, number=1)


def _search(target: Target, adv: np.ndarray, which: np.ndarray) -> np.ndarray:
  def chunk(rows):
    image = which[rows]
    arrays = (target.images, adv, target.labels, target.targets)
    arrays = (*(array[image] for array in arrays), target.keys.take(image))
    return final_search(target.model, *arrays, target.targeted)

  return in_batches(chunk, len(which), target.slots, target.images[:0])
