"""Drives algorithms over images: on the host through slots, image by image, attack after attack;
or as one loop, which may stand inside another compiled function."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from rest_jax.attacks import losses
from rest_jax.attacks.algorithm import Algorithm, in_chunks, run_from, select
from rest_jax.attacks.ball import distances
from rest_jax.attacks.judge import check_defined, undefined_logits
from rest_jax.attacks.losses import fooled, undefined_count
from rest_jax.attacks.queries import count_queries, fold_each, image_keys, logits_of, outputs_of
from rest_jax.attacks.slots import Found, Jobs, Keys, Progress, run_jobs
from rest_jax.attacks.threat import Inputs, Norm, check_count, check_host, check_key
from rest_jax.inputs import is_known

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


_CLEAN = 0x7FFFFFFF  # folded into the keys for the first question, beside restarts 0, 1, ...


class Ranked(Algorithm, Protocol):
  """An algorithm that also gives something for images on which it did not succeed.

  Attributes:
    targeted: whether success is to reach the target.
  """

  @property
  def targeted(self) -> bool: ...

  def outcome(self, state: Any) -> tuple[jax.Array, jax.Array]:
    """The image to return (B, H, W, C) and how good it is (B,), higher is better."""
    ...


def attack(
  algorithm: Ranked,
  inputs: Inputs,
  key: Any,
  *,
  restarts: int = 1,
  stop_early: bool = True,
  keep_clean: bool | None = None,
  query_batch: int | None = None,
) -> jax.Array:
  """Attacks every image.

  Args:
    algorithm: what to run.
    inputs: from `check_inputs`.
    key: PRNG key; image i gets `fold_in(key, i)`, whatever the chunks.
    restarts: runs; the best outcome is kept, a success before any other.
    stop_early: leave an image alone once it is adversarial.
    keep_clean: return an image that is misclassified from the start as it is; by default with
      `stop_early`.
    query_batch: images at a time; None for all.

  Returns:
    float32 (B, H, W, C): the outcomes.

  Raises:
    UserError: no key, a number of restarts or a query_batch below 1, or a model whose logits are
      not numbers before any attack.
  """
  check_count('restarts', restarts)
  if query_batch is not None:
    check_count('query_batch', query_batch)
  if not len(inputs.images):
    return inputs.images
  loss = cast(losses.LossName, getattr(algorithm, 'loss', 'margin'))
  if callable(loss):  # it knows no success
    stop_early = keep_clean = False
  keep_clean = stop_early if keep_clean is None else keep_clean
  keys = image_keys(check_key(key), inputs.images.shape[0])

  def chunk(arrays):
    (images, labels, _, chunk_keys, targets), numbers = arrays
    done = jnp.zeros(images.shape[:1], bool)
    if keep_clean:
      logits = clean_logits(inputs.model, images, chunk_keys, losses.takes_outputs(loss))
      if is_known(logits):
        check_defined(undefined_logits(np.asarray(logits)), logits.shape[1], numbers)
      done = _success(loss, logits, labels, _of_restart(targets, 0), algorithm.targeted)
      if is_known(done) and done.all():
        return images, jnp.zeros(images.shape[:1], jnp.int32)
    return _restarts(algorithm, inputs.model, *arrays[0], done, restarts, stop_early)

  arrays = (inputs.images, inputs.labels, inputs.eps, keys, inputs.targets)
  numbers = np.arange(inputs.images.shape[0])
  adv, queries = in_chunks(chunk, (arrays, numbers), query_batch)
  count_queries(queries)
  return adv


@functools.partial(jax.jit, static_argnames='outputs')
def clean_logits(
  model: Partial, images: jax.Array, keys: jax.Array, outputs: bool = False
) -> jax.Array:
  """Logits of the originals (B, K); a program of its own, which all attacks share.

  Args:
    model: what is attacked.
    images: (B, H, W, C).
    keys: (B,).
    outputs: what the model gives, and not logits of classes.
  """
  of = outputs_of if outputs else logits_of
  return of(model, images, fold_each(keys, _CLEAN)).astype(jnp.float32)


@functools.partial(jax.jit, static_argnames=('algorithm', 'restarts', 'stop_early'))
def _restarts(
  algorithm: Ranked,
  model: Partial,
  images: jax.Array,
  labels: jax.Array,
  eps: jax.Array,
  keys: jax.Array,
  targets: jax.Array | None,
  done: jax.Array,
  restarts: int,
  stop_early: bool,
):
  def once(kept, index):
    _, score, success = kept
    goals = _of_restart(targets, index)
    state = algorithm.init(model, images, labels, eps, fold_each(keys, index), goals)
    settled = success if stop_early else score == jnp.inf
    state = select(settled, _spent(algorithm, state), state)
    state = run_from(algorithm, model, state, stop_early)
    image, new = algorithm.outcome(state)
    better = jnp.where(state.success == success, new > score, state.success) & ~settled
    asked = jnp.where(settled, 0, state.iteration)
    return select(better, (image, new, state.success), kept), asked

  # Nothing is better than an image that fools by itself.
  score = jnp.where(done, jnp.inf, -jnp.inf)
  (best, _, _), asked = lax.scan(once, (images, score, done), jnp.arange(restarts))
  return best, jnp.sum(asked, axis=0)


_success = jax.jit(losses.success_of, static_argnums=(0, 4))


def _of_restart(targets: jax.Array | None, index: jax.Array | int) -> jax.Array | None:
  """Targets (B,) serve every restart; of (B, n) the restarts take one column after the other."""
  if targets is None or targets.ndim == 1:
    return targets
  return jnp.take(targets, index % targets.shape[1], axis=1)


def _spent(algorithm: Algorithm, state: Any) -> Any:
  return dataclasses.replace(state, iteration=jnp.full_like(state.iteration, algorithm.steps))


def keep_nearest(
  point: jax.Array,
  hit: jax.Array,
  adv: jax.Array,
  distance: jax.Array,
  images: jax.Array,
  norm: Norm,
) -> tuple[jax.Array, jax.Array]:
  """Takes points that fool and lie nearer to their image than what was found before.

  Args:
    point: (B, H, W, C), evaluated.
    hit: whether each fools the model, (B,).
    adv: the nearest so far (B, H, W, C), the image where there is none.
    distance: of `adv`, (B,); infinity where there is none.
    images: the originals.
    norm: of the distance.

  Returns:
    The new `adv` and `distance`.
  """
  new = distances(point, images, norm)
  nearer = hit & (new < distance)
  return select(nearer, point, adv), jnp.where(nearer, new, distance)


def attack_minimum(
  algorithm: Ranked, inputs: Inputs, key: Any, query_batch: int | None, stop_early: bool = False
) -> jax.Array:
  """Runs an attack of minimum norm; an image that is misclassified already stays as it is.

  Args:
    algorithm: what to run.
    inputs: from `check_inputs`.
    key: PRNG key, or None where only a random model would need one.
    query_batch: images at a time; None for all.
    stop_early: whether the first adversarial image found is the last.

  Returns:
    float32 (B, H, W, C), the nearest found, the original where there is none.
  """
  key = jax.random.key(0) if key is None else key
  return attack(
    algorithm, inputs, key, stop_early=stop_early, keep_clean=True, query_batch=query_batch
  )
