"""Drives algorithms over images: through slots, one attack after another, or as one loop.

Outside of a trace a batch of slots runs them (`slots.py`). Inside another compiled function, where
nothing can be looked at, the same algorithm is one loop over the whole batch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

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
from rest_jax.attacks.queries import (
  fold_each,
  image_keys,
  logits_of,
  logits_once,
  operations,
  outputs_once,
)
from rest_jax.attacks.slots import GRAIN, Found, Jobs, Keys, Progress, Sizes, run_jobs
from rest_jax.attacks.threat import Given, Inputs, check_given, check_host, check_key
from rest_jax.attacks.wrappers import grain_of
from rest_jax.evaluation.batches import batch_rows
from rest_jax.inputs import Norm, check_count
from rest_jax.ops.platform import is_traced, jit

A = TypeVar('A', bound=Algorithm)

# Images in a batch where the caller does not say: small ones waste less at the end of an attack,
# and a CPU is no quicker with more.
SLOTS = {'cpu': 64}
ACCELERATOR_SLOTS = 256
# Folded into the keys of the questions that belong to no attack.
_ASKING = _CLEAN = 0x7FFFFFFF
# Numbers that each attack of a cascade has for its runs on an image.
_RUNS = 1 << 20


class Outcome(NamedTuple):
  """What an attack gives.

  Attributes:
    images: float32 (B, H, W, C), in the ball and in [0, 1].
    queries: int64 (B,), forward passes that its steps took for each image; what is asked beside
      them is left out (is it correct at all, which classes come next). None under a trace.
  """

  images: jax.Array
  queries: np.ndarray | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class IterativeAttack(Algorithm):
  """An algorithm that attacks by itself. A new attack is a frozen dataclass of it, with `init` and
  `step`, that is registered: `registry.register`."""

  def run(
    self,
    logits_fn: Any,
    images: Any,
    labels: Any,
    *,
    key: Any,
    eps: Any = None,
    targets: Any = None,
  ) -> Outcome:
    """Attacks images.

    Args:
      logits_fn: float32 images (B, H, W, C) in [0, 1] to logits (B, K), or a `Classifier`.
      images: floats (B, H, W, C) in [0, 1].
      labels: integers (B,).
      key: PRNG key; image i uses `fold_in(key, i)`; or one an image, (B,).
      eps: radius, a number or (B,); None for an attack of minimum norm.
      targets: classes to reach, (B,); any wrong one by default.

    Returns:
      What it found: the original of an image that was misclassified already, or, of an attack
      that gives nothing else, where nothing was found.

    Raises:
      UserError: bad input.
    """
    if not self.minimum_norm:
      check_given(eps)
    return self.carry_out(Given(logits_fn, images, labels, eps, targets), key)

  def carry_out(self, given: Given, key: Any) -> Outcome:
    """`run`, for attacks that look at what they are given, or are driven, in their own way."""
    inputs = given.checked(self.norm, norms=self.norms)
    algorithm = dataclasses.replace(self, targeted=given.targets is not None)
    return attack(algorithm, inputs, key, query_batch=self.query_batch)


# Fields that say how an attack is driven and are no part of its program.
_DRIVING = ('query_batch', 'restarts', 'stop_early', 'num_targets', 'output')


def program_of(algorithm: A) -> A:
  """The algorithm with what only its driver reads left as it is by default: equal ones compile
  once."""
  fields = {field.name: field.default for field in dataclasses.fields(algorithm)}
  return dataclasses.replace(
    algorithm, **{name: fields[name] for name in _DRIVING if name in fields}
  )


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


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
  """What a cascade attacks, on the host.

  Attributes:
    model: a `Partial` of images to logits.
    images: float32 (N, H, W, C).
    labels: int32 (N,).
    targets: int32 (N,), the classes wanted; the labels where any wrong one is.
    eps: float32 (N,).
    keys: PRNG keys of the images.
    num_classes: of the model.
    targeted: whether the targets are wanted.
    slots: images in a batch, at most.
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
  _sizes: dict[Any, Sizes] = dataclasses.field(default_factory=dict)

  def sizes(self, algorithm: Algorithm) -> Sizes:
    """The sizes of batch of an algorithm, which its later runs take over."""
    if algorithm not in self._sizes:
      given = (self.model, self.images, self.keys, self.slots)
      row = functools.partial(_row_cost, algorithm, *given)
      self._sizes[algorithm] = Sizes(self.slots, row, grain_of(self.model, GRAIN))
    return self._sizes[algorithm]

  def wrong_already(self) -> np.ndarray:
    """Which of the images are fooled as they are, bool (N,).

    Raises:
      UserError: the model's logits of some are not numbers.
    """
    check_defined(self._clean[:, 1], self.num_classes)
    return self._clean[:, 0] > 0

  def still_right(self) -> np.ndarray:
    """Numbers of the images that there is something to attack in: not fooled, a radius over 0.

    Raises:
      UserError: the model's logits of some are not numbers.
    """
    return np.flatnonzero(~self.wrong_already() & (self.eps > 0))

  def ranking(self, which: np.ndarray) -> np.ndarray:
    """The classes of images by falling logit, the label before all others: (n, K)."""
    return self._clean[which, 2:]

  def is_fooled(self, images: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Which images (n, H, W, C) fool the model; they are versions of the `which`-th (n,)."""
    return self._ask(images, which)[:, 0] > 0

  @functools.cached_property
  def _clean(self) -> np.ndarray:
    """What the model says of the images as they are."""
    return self._ask(self.images, np.arange(len(self.labels)))

  def _ask(self, images: np.ndarray, which: np.ndarray) -> np.ndarray:
    """For each image (n, 2 + K): whether it fools, how many logits are no numbers, the ranking."""

    def chunk(rows):
      image = which[rows]
      arrays = (images[rows], self.labels[image], self.targets[image], self.keys.take(image))
      return _answers(self.model, *arrays, self.targeted)

    none = np.zeros((0, 2 + self.num_classes), np.int32)
    return in_batches(chunk, len(which), self.slots, none)


def make_target(name: str, inputs: Inputs, key: jax.Array, query_batch: int | None) -> Target:
  """Moves checked inputs to the host; image i gets the key `fold_in(key, i)`.

  Raises:
    UserError: inputs that are traced, no key, or a query_batch below 1.
  """
  check_host(name, inputs, key)
  if query_batch is not None:
    check_count('query_batch', query_batch)
  labels = np.asarray(inputs.labels)
  return Target(
    model=inputs.model,
    images=np.asarray(inputs.images),
    labels=labels,
    targets=labels if inputs.targets is None else np.asarray(inputs.targets),
    eps=np.asarray(inputs.eps),
    keys=Keys.of(image_keys(check_key(key), len(labels))),
    num_classes=inputs.num_classes,
    targeted=inputs.targets is not None,
    slots=query_batch or SLOTS.get(jax.default_backend(), ACCELERATOR_SLOTS),
  )


@functools.partial(jit, static_argnames='targeted')
def _answers(model, images, labels, targets, keys, targeted: bool):
  """One program for all that a cascade asks beside its steps: compiling another takes longer."""
  logits = logits_of(model, images, fold_each(keys, _ASKING))
  lost = fooled(logits, labels, targets, targeted)
  own = jnp.arange(logits.shape[1], dtype=labels.dtype)[None] == labels[:, None]
  order = jnp.argsort(jnp.where(own, jnp.inf, logits), axis=1, descending=True, stable=True)
  columns = (lost[:, None], undefined_count(logits)[:, None], order)
  return jnp.concatenate([column.astype(jnp.int32) for column in columns], axis=1)


def _row_cost(
  algorithm: Algorithm, model: Partial, images: np.ndarray, keys: Keys, size: int
) -> float:
  """Floating-point operations of a step on one image; a gradient's are twice a forward pass's.

  Counted on a batch of `size`, of which the model has been asked before, and so been traced.
  """
  rows = np.arange(size) % len(images)
  forward = operations(model, images[rows], keys.take(rows)) / size
  return forward * (algorithm.queries_per_step + (2 if algorithm.gradients else 0))


def in_batches(
  function: Callable[[np.ndarray], jax.Array], count: int, size: int, none: np.ndarray
) -> np.ndarray:
  """Calls `function` on `size` row numbers at a time, always so many: one compiled form."""
  parts = [np.asarray(function(rows)) for rows in batch_rows(count, size)]
  return np.concatenate([*parts, none])[:count]


def attack_images(
  target: Target,
  runs: tuple[Runs, ...],
  which: np.ndarray,
  *,
  stop_early: bool = True,
  progress: Progress | None = None,
) -> Found:
  """Attacks some of the images with some runs, and confirms what they found.

  Args:
    target: what is attacked.
    runs: one after another.
    which: int (n,), the images.
    stop_early: leave an image alone after its first success.
    progress: called with finished and all jobs of the runs at work.

  Returns:
    What was found, for (n,) images; a success is one that the model confirms.
  """
  total = Found.nothing(target.images[which])
  for run in runs:
    left = np.flatnonzero(~total.success) if stop_early else np.arange(len(which))
    if not len(left):
      break
    found = run_jobs(
      run.algorithm,
      target.model,
      _jobs(target, run, which[left]),
      sizes=target.sizes(run.algorithm),
      stop_early=stop_early,
      progress=progress,
    )
    total = _merged(total, _confirmed(target, found, which[left]), left)
  return total


def _confirmed(target: Target, found: Found, which: np.ndarray) -> Found:
  """What was found, but for the successes that a second evaluation does not find."""
  rows = np.flatnonzero(found.success)
  lost = rows[~target.is_fooled(found.adv[rows], which[rows])]
  found.adv[lost], found.success[lost] = target.images[which[lost]], False
  found.score[lost] = -np.inf
  return found


def _merged(total: Found, found: Found, rows: np.ndarray) -> Found:
  """Takes over of `rows` what is better than what there was."""
  for row, adv, success, score in zip(rows, found.adv, found.success, found.score, strict=True):
    total.offer(row, adv, success, score)
  total.steps[rows] += found.steps
  return total._replace(rows=total.rows + found.rows)


def _jobs(target: Target, run: Runs, which: np.ndarray) -> Jobs:
  """All images towards their first target, then all towards their second, and so on."""
  count = len(which)
  targets = target.targets[which][:, None]
  if run.num_targets:
    targets = target.ranking(which)[:, 1 : run.num_targets + 1]
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


def attack(
  algorithm: Algorithm,
  inputs: Inputs,
  key: Any,
  *,
  restarts: int = 1,
  stop_early: bool = True,
  keep_clean: bool | None = None,
  query_batch: int | None = None,
) -> Outcome:
  """Attacks every image; under a trace too.

  Args:
    algorithm: what to run.
    inputs: from `check_inputs`.
    key: PRNG key; image i gets `fold_in(key, i)`, whatever the batches.
    restarts: runs, one after another; the best outcome is kept, a success before any other.
    stop_early: leave an image alone once it is adversarial.
    keep_clean: return an image that is misclassified from the start as it is; by default with
      `stop_early`.
    query_batch: images at a time; None for all.

  Returns:
    The outcomes.

  Raises:
    UserError: no key, a number of restarts or a query_batch below 1, or a model whose logits are
      not numbers before any attack.
  """
  check_count('restarts', restarts)
  if query_batch is not None:
    check_count('query_batch', query_batch)
  if not len(inputs.images):
    return Outcome(inputs.images, np.zeros(0, np.int64))
  algorithm = program_of(algorithm)
  if not algorithm.minimum_norm:
    inputs = inputs.within_range(algorithm.norm)
  if callable(getattr(algorithm, 'loss', None)):  # a loss of one's own knows no success
    stop_early = keep_clean = False
  keys = image_keys(check_key(key), inputs.images.shape[0])
  keep_clean = stop_early if keep_clean is None else keep_clean
  run = _looped if is_traced(inputs, keys) else _queued
  return run(algorithm, inputs, keys, restarts, stop_early, keep_clean, query_batch)


def _queued(algorithm, inputs: Inputs, keys, restarts, stop_early, keep_clean, query_batch):
  """The attack on the host, through slots."""
  given = (inputs.images, inputs.labels, inputs.eps, inputs.targets)
  images, labels, eps, targets = jax.tree.map(np.asarray, given)
  found, count = Found.nothing(images), len(images)
  if keep_clean:
    done = _done_already(algorithm, inputs, keys, query_batch)
    # Nothing is better than an image that fools by itself.
    found.score[done], found.success[done] = np.inf, True
  data = Keys.of(keys)
  slots = min(query_batch or count, count)
  row = functools.partial(_row_cost, algorithm, inputs.model, images, data, slots)
  sizes = Sizes(slots, row, grain_of(inputs.model, GRAIN))
  for index in range(restarts):
    left = np.flatnonzero(~found.success if stop_early else found.score < np.inf)
    if not len(left):
      break
    jobs = _restart(images, labels, eps, targets, data, left, index)
    part = run_jobs(algorithm, inputs.model, jobs, sizes=sizes, stop_early=stop_early)
    found = _merged(found, part, left)
  return Outcome(jnp.asarray(found.adv), found.steps * algorithm.queries_per_step)


def _restart(images, labels, eps, targets, keys: Keys, left: np.ndarray, index: int) -> Jobs:
  """One run of each of the images that are left, whose numbers are `left`."""
  if targets is not None:
    targets = (targets if targets.ndim == 1 else targets[:, index % targets.shape[1]])[left]
  return Jobs(
    images=images[left],
    labels=jax.tree.map(lambda labels: labels[left], labels),
    eps=eps[left],
    image=np.arange(len(left)),
    targets=targets,
    number=np.full(len(left), index, np.int32),
    keys=Keys(keys.data[left], keys.impl),
  )


def _done_already(algorithm: Algorithm, inputs: Inputs, keys, query_batch) -> np.ndarray:
  """Which of the images fool as they are, bool (B,).

  Raises:
    UserError: the model's logits of some are not numbers.
  """

  def chunk(arrays):
    images, labels, targets, chunk_keys = arrays
    return _clean_success(algorithm, inputs.model, images, labels, targets, chunk_keys)

  arrays = (inputs.images, inputs.labels, _of_restart(inputs.targets, 0), keys)
  logits, done = in_chunks(chunk, arrays, query_batch)
  check_defined(undefined_logits(np.asarray(logits)), logits.shape[1])
  return np.asarray(done)


def _clean_success(algorithm, model, images, labels, targets, keys):
  loss = cast(losses.LossName, getattr(algorithm, 'loss', 'margin'))
  logits = clean_logits(model, images, keys, losses.takes_outputs(loss))
  return logits, _success(loss, logits, labels, targets, algorithm.targeted)


def _looped(algorithm, inputs: Inputs, keys, restarts, stop_early, keep_clean, query_batch):
  """The attack as one loop, for use inside another compiled function."""

  def chunk(arrays):
    images, labels, eps, chunk_keys, targets = arrays
    done = jnp.zeros(images.shape[:1], bool)
    if keep_clean:
      first = _of_restart(targets, 0)
      _, done = _clean_success(algorithm, inputs.model, images, labels, first, chunk_keys)
    run = (algorithm, inputs.model, images, labels, eps, chunk_keys, targets)
    return _restarts(*run, done, restarts, stop_early)

  arrays = (inputs.images, inputs.labels, inputs.eps, keys, inputs.targets)
  return Outcome(in_chunks(chunk, arrays, query_batch), None)


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
  keys = fold_each(keys, _CLEAN)
  if not outputs:
    return logits_once(model, images, keys)
  return outputs_once(model, images, keys).astype(jnp.float32)


@functools.partial(jit, static_argnames=('algorithm', 'restarts', 'stop_early'))
def _restarts(
  algorithm: Algorithm,
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
    return select(better, (image, new, state.success), kept), None

  # Nothing is better than an image that fools by itself.
  score = jnp.where(done, jnp.inf, -jnp.inf)
  (best, _, _), _ = lax.scan(once, (images, score, done), jnp.arange(restarts))
  return best


_success = jit(losses.success_of, static_argnums=(0, 4))


def _of_restart(targets: jax.Array | None, index: jax.Array | int) -> jax.Array | None:
  """Targets (B,) serve every restart; of (B, n) the restarts take one column after the other."""
  if targets is None or targets.ndim == 1:
    return targets
  return jnp.take(targets, index % targets.shape[1], axis=1)


def _spent(algorithm: Algorithm, state: Any) -> Any:
  return dataclasses.replace(state, iteration=jnp.full_like(state.iteration, algorithm.length))


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
