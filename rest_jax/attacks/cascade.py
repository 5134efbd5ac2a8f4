"""Attacks one after another, each on the images that all before it left correct."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from rest_jax.attacks.algorithm import Algorithm
from rest_jax.attacks.checks import Inputs, check_count, check_host, check_key
from rest_jax.attacks.counting import count_queries
from rest_jax.attacks.judge import check_defined
from rest_jax.attacks.losses import fooled, undefined_count
from rest_jax.attacks.queries import fold_each, image_keys, logits_of
from rest_jax.attacks.scheduler import Found, Jobs, Keys, Progress, run_jobs

# Images in a batch where the caller does not say: small ones waste less at the end of an attack,
# and a CPU is no quicker with more.
SLOTS = {'cpu': 64}
ACCELERATOR_SLOTS = 256
# Folded into the keys of the questions that belong to no attack.
_ASKING = 0x7FFFFFFF
# Numbers that each attack has for its runs on an image.
_RUNS = 1 << 20


class Runs(NamedTuple):
  """Runs of one algorithm on each image.

  Attributes:
    algorithm: what to run.
    restarts: how often, from different starts.
    num_targets: classes to head for, those of the highest logits after the label's; 0: none.
    number: tells its random numbers from those of other runs on the same image.
  """

  algorithm: Algorithm
  restarts: int = 1
  num_targets: int = 0
  number: int = 0


class Target(NamedTuple):
  """What is attacked, on the host.

  Attributes:
    model: a `Partial` of images to logits.
    images: float32 (N, H, W, C).
    labels: int32 (N,).
    targets: int32 (N,), the classes wanted; the labels where any wrong one is.
    eps: float32 (N,).
    keys: PRNG keys of the images.
    num_classes: of the model.
    targeted: whether the targets are wanted.
    slots: images in a batch.
  """

  model: Partial
  images: np.ndarray
  labels: np.ndarray
  targets: np.ndarray
  eps: np.ndarray
  keys: Keys
  num_classes: int
  targeted: bool
  slots: int


def make_target(name: str, inputs: Inputs, key: jax.Array, query_batch: int | None) -> Target:
  """Moves checked inputs to the host; image i gets the key `fold_in(key, i)`.

  Raises:
    UserError: inputs that are traced, no key, or a query_batch below 1.
  """
  check_host(name, inputs, key)
  if query_batch is not None:
    check_count('query_batch', query_batch)
  labels = np.asarray(inputs.labels)
  keys = image_keys(check_key(key), len(labels))
  return Target(
    model=inputs.model,
    images=np.asarray(inputs.images),
    labels=labels,
    targets=labels if inputs.targets is None else np.asarray(inputs.targets),
    eps=np.asarray(inputs.eps),
    keys=Keys(np.asarray(jax.random.key_data(keys)), jax.random.key_impl(keys)),
    num_classes=inputs.num_classes,
    targeted=inputs.targets is not None,
    slots=query_batch or SLOTS.get(jax.default_backend(), ACCELERATOR_SLOTS),
  )


def is_fooled(target: Target, images: np.ndarray, which: np.ndarray) -> np.ndarray:
  """Which of the images (n, H, W, C) fool the model; they are versions of the `which`-th (n,)."""

  return _judged(target, images, which)[:, 0] > 0


def wrong_already(target: Target) -> np.ndarray:
  """Which of the images are fooled as they are, bool (N,).

  Raises:
    UserError: the model's logits of some are not numbers.
  """
  judged = _judged(target, target.images, np.arange(len(target.labels)))
  check_defined(judged[:, 1], target.num_classes)
  return judged[:, 0] > 0


def still_right(target: Target) -> np.ndarray:
  """Numbers of the images that there is something to attack in: not fooled, a radius over 0.

  Raises:
    UserError: the model's logits of some are not numbers.
  """
  return np.flatnonzero(~wrong_already(target) & (target.eps > 0))


def _judged(target: Target, images: np.ndarray, which: np.ndarray) -> np.ndarray:
  """For each image (n, 2): whether it fools the model, and how many logits are not numbers."""

  def chunk(rows):
    image = which[rows]
    arrays = (images[rows], target.labels[image], target.targets[image], target.keys.take(image))
    return _fooled(target.model, *arrays, target.targeted)

  return in_batches(chunk, len(which), target.slots, np.zeros((0, 2), np.int32))


def ranking(target: Target, which: np.ndarray) -> np.ndarray:
  """The classes of images by falling logit, the label before all others: (n, K)."""

  def chunk(rows):
    image = which[rows]
    arrays = (target.images[image], target.labels[image], target.keys.take(image))
    return _ranking(target.model, *arrays)

  return in_batches(chunk, len(which), target.slots, np.zeros((0, target.num_classes), int))


@functools.partial(jax.jit, static_argnames='targeted')
def _fooled(model, images, labels, targets, keys, targeted: bool):
  logits = logits_of(model, images, fold_each(keys, _ASKING))
  lost = fooled(logits, labels, targets, targeted)
  return jnp.stack([lost.astype(jnp.int32), undefined_count(logits)], axis=1)


@jax.jit
def _ranking(model, images, labels, keys):
  logits = logits_of(model, images, fold_each(keys, _ASKING))
  own = jnp.arange(logits.shape[1], dtype=labels.dtype)[None] == labels[:, None]
  logits = jnp.where(own, jnp.inf, logits)
  return jnp.argsort(logits, axis=1, descending=True, stable=True).astype(jnp.int32)


def in_batches(
  function: Callable[[np.ndarray], jax.Array], count: int, size: int, none: np.ndarray
) -> np.ndarray:
  """Calls `function` on `size` row numbers at a time, always so many: one compiled form."""
  parts = [none]
  for first in range(0, count, size):
    rows = np.arange(first, first + size)
    parts.append(np.asarray(function(np.where(rows < count, rows, first)))[: count - first])
  return np.concatenate(parts)


def attack_images(
  target: Target,
  runs: tuple[Runs, ...],
  which: np.ndarray,
  *,
  stop_early: bool = True,
  distance: Callable[[np.ndarray], float] | None = None,
  progress: Progress | None = None,
) -> Found:
  """Attacks some of the images with some runs, and confirms what they found.

  Args:
    target: what is attacked.
    runs: one after another.
    which: int (n,), the images.
    stop_early: leave an image alone after its first success.
    distance: of a perturbation; the least is kept. Without it, the first success.
    progress: called with finished and all jobs of the runs at work.

  Returns:
    What was found, for (n,) images; a success is one that the model confirms.
  """
  total = Found(target.images[which], np.zeros(len(which), bool), np.zeros(len(which), np.int64))
  least = np.full(len(which), np.inf)
  for run in runs:
    left = np.flatnonzero(~total.success) if stop_early else np.arange(len(which))
    if not len(left):
      break
    found = run_jobs(
      run.algorithm,
      target.model,
      _jobs(target, run, which[left]),
      slots=target.slots,
      stop_early=stop_early,
      distance=distance,
      progress=progress,
    )
    total.steps[left] += found.steps
    count_queries(found.steps * getattr(run.algorithm, 'queries_per_step', 1), which[left])
    found = found._replace(success=_confirmed(target, found, which[left]))
    _merge(total, least, found, left, target.images[which], distance)
  return total


def _confirmed(target: Target, found: Found, which: np.ndarray) -> np.ndarray:
  """The successes that a second evaluation finds too."""
  success = found.success.copy()
  rows = np.flatnonzero(success)
  success[rows] = is_fooled(target, found.adv[rows], which[rows])
  return success


def _merge(total: Found, least: np.ndarray, found: Found, rows: np.ndarray, images, distance):
  """Takes over the successes of `rows` that are nearer than what there was."""
  for adv, image in zip(found.adv[found.success], rows[found.success], strict=True):
    far = distance(adv - images[image]) if distance else 0.0
    if far < least[image]:
      total.adv[image], least[image], total.success[image] = adv, far, True


def _jobs(target: Target, run: Runs, which: np.ndarray) -> Jobs:
  """All images towards their first target, then all towards their second, and so on."""
  count = len(which)
  targets = target.targets[which][:, None]
  if run.num_targets:
    targets = ranking(target, which)[:, 1 : run.num_targets + 1]
  order = np.repeat(np.arange(targets.shape[1]), run.restarts)
  turns = np.repeat(np.arange(len(order)), count)
  return Jobs(
    images=target.images[which],
    labels=target.labels[which],
    eps=target.eps[which],
    image=np.tile(np.arange(count), len(order)),
    targets=targets[:, order].T.reshape(-1).astype(np.int32),
    number=(run.number * _RUNS + turns).astype(np.int32),
    keys=Keys(target.keys.data[which], target.keys.impl),
  )
