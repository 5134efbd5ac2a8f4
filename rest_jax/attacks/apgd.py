"""Auto-PGD: the attack; `apgd_steps.APGD` is the algorithm."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from rest_jax.attacks import losses
from rest_jax.attacks.algorithm import in_chunks
from rest_jax.attacks.apgd_steps import APGD
from rest_jax.attacks.checks import Inputs, check_count, check_key
from rest_jax.attacks.loss_inputs import LossName, is_own, loss_inputs, loss_name
from rest_jax.attacks.queries import image_keys
from rest_jax.attacks.runner import attack, clean_logits
from rest_jax.attacks.threat import Norm
from rest_jax.errors import UserError


def apgd(
  logits_fn: Any,
  images: Any,
  labels: Any,
  *,
  key: Any,
  norm: Norm = 'linf',
  eps: Any,
  steps: int = 100,
  loss: LossName = 'ce',
  output: str = 'softmax',
  restarts: int = 1,
  targets: Any = None,
  num_targets: int | None = None,
  large_radii: bool = False,
  stop_early: bool = True,
  query_batch: int | None = None,
) -> jax.Array:
  """Auto-PGD: a gradient attack that sets its own step sizes.

  Croce & Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
  parameter-free attacks", 2020, section 3; in L1 "Mind the box! l1-APGD for sparse adversarial
  attacks on image classifiers", 2021, section 4.

  Args:
    logits_fn: float32 images (B, H, W, C) in [0, 1] to logits (B, K), or a `Classifier`.
    images: floats (B, H, W, C) in [0, 1].
    labels: integers (B,).
    key: PRNG key; image i uses `fold_in(key, i)`.
    norm: 'linf', 'l2' or 'l1'.
    eps: radius in units of [0, 1], a number or (B,).
    steps: gradient steps.
    loss: 'ce', 'dlr', 'margin' or 'dlr_targeted'. The last without `targets` is APGD-T of
      AutoAttack: any wrong class counts, and each restart is run towards each of the classes
      that follow in the logits of the image. Where a model has too few classes for the DLR, three
      and four, these two follow the margin instead, as in `auto_attack`. Or a function of your
      own, as in `pgd`.
    output: as in `pgd`.
    restarts: runs from different starts.
    targets: classes to reach, (B,); any wrong one by default. With 'dlr' its ratio is that of the
      target's logit and the highest other one.
    num_targets: how many classes APGD-T tries, 9 by default; all others where there are fewer.
    large_radii: begin with three and two times the radius, as AutoAttack does in L1.
    stop_early: leave an image alone once it is adversarial, one misclassified from the start
      too.
    query_batch: images at a time; None for all.

  Returns:
    float32 (B, H, W, C), in the ball and in [0, 1]: of an image that was fooled an adversarial
    point, of another the one of highest loss.

  Raises:
    UserError: bad input.
  """
  check_count('steps', steps)
  each = loss == 'dlr_targeted' and targets is None and output == 'softmax'
  if num_targets is not None and not each:
    raise UserError("num_targets are those of loss='dlr_targeted' without targets; leave them out")
  chosen = loss if each else loss_name(loss, targets, output)
  inputs = loss_inputs(logits_fn, images, labels, chosen, norm, eps, targets, fall_back=True)
  if each:
    num_targets = 9 if num_targets is None else num_targets
    check_count('num_targets', num_targets)
    count = min(num_targets, inputs.num_classes - 1)
    restarts *= count
    inputs = _with_targets(inputs, count, key, query_batch) if len(inputs.images) else inputs
  if not is_own(chosen) and inputs.num_classes < losses.MIN_CLASSES.get(str(chosen), 0):
    chosen = str(chosen).replace('dlr', 'margin')
  algorithm = APGD(norm, int(steps), chosen, targets is not None, large_radii=bool(large_radii))
  return attack(
    algorithm, inputs, key, restarts=restarts, stop_early=stop_early, query_batch=query_batch
  )


def _with_targets(inputs: Inputs, count: int, key: Any, query_batch: int | None) -> Inputs:
  keys = image_keys(check_key(key), len(inputs.images))

  def chunk(arrays):
    images, labels, chunk_keys = arrays
    return _next_classes(clean_logits(inputs.model, images, chunk_keys), labels, count)

  arrays = (inputs.images, inputs.labels, keys)
  return inputs._replace(targets=in_chunks(chunk, arrays, query_batch))


@functools.partial(jax.jit, static_argnames='count')
def _next_classes(logits: jax.Array, labels: jax.Array, count: int) -> jax.Array:
  """The classes of the highest logits other than the label, (B, count)."""
  own = jnp.arange(logits.shape[1])[None] == labels[:, None]
  order = jnp.argsort(jnp.where(own, jnp.inf, logits), axis=1, descending=True, stable=True)
  return order[:, 1 : count + 1].astype(jnp.int32)
