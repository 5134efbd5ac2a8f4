"""Many runs of an attack through a batch of fixed size, a new one in each place that falls free.

An attack that stops at its first success is done with easy images after a few steps and with hard
ones after thousands. A batch that waits for its slowest image wastes most of its work, and one
that shrinks compiles for each new size. Here the batch keeps its size: a loop on the device steps
all slots until enough of them are finished, the host notes what they found and puts the next runs
there, and the loop goes on. That is one compiled program an attack, and a second, smaller one
where few slots are left of a long attack.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from rest_jax.attacks.algorithm import Algorithm, advance, finished, select
from rest_jax.attacks.devices import lay_out
from rest_jax.attacks.queries import fold_each

# The device goes on until this share of the batch is free, and ends in a batch of this share.
SHARE = 8
# With fewer steps left the small program is not worth its compilation.
LONG = 256
# Steps after which the host looks in: for progress and Ctrl-C.
SEGMENT = 64

Progress = Callable[[int, int], None]


class Keys(NamedTuple):
  """PRNG keys on the host, where picking some of them compiles nothing.

  Attributes:
    data: uint32 (N, ...).
    impl: which generator they belong to.
  """

  data: np.ndarray
  impl: Any

  def take(self, rows: np.ndarray) -> jax.Array:
    """Some of the keys, (n,)."""
    return jax.random.wrap_key_data(jnp.asarray(self.data[rows]), impl=self.impl)


class Jobs(NamedTuple):
  """Runs to make, in this order.

  Attributes:
    images: float32 (N, H, W, C), on the host.
    labels: int32 (N,).
    eps: float32 (N,).
    image: int (J,), which image each run attacks.
    targets: int32 (J,), its target; the label where there is none.
    number: int32 (J,), folded into the image's key: tells the runs on it apart.
    keys: the images' PRNG keys.
  """

  images: np.ndarray
  labels: np.ndarray
  eps: np.ndarray
  image: np.ndarray
  targets: np.ndarray
  number: np.ndarray
  keys: Keys


class Found(NamedTuple):
  """What the runs found.

  Attributes:
    adv: float32 (N, H, W, C), the adversarial images; the originals where there is none.
    success: bool (N,).
    steps: int64 (N,), taken on each image, over all its runs.
  """

  adv: np.ndarray
  success: np.ndarray
  steps: np.ndarray


def run_jobs(
  algorithm: Algorithm,
  model: Partial,
  jobs: Jobs,
  *,
  slots: int,
  stop_early: bool = True,
  distance: Callable[[np.ndarray], float] | None = None,
  progress: Progress | None = None,
) -> Found:
  """Runs all jobs.

  What a job gives depends on its image, target and key, not on its slot or on other jobs. Which
  of an image's successes is kept with `stop_early` may depend on `slots` where several of its runs
  were under way at once.

  Args:
    algorithm: what to run.
    model: a `Partial` of images to logits.
    jobs: what to run it on.
    slots: images in a batch.
    stop_early: a run ends at its first success, and with it all runs on the same image.
    distance: of a perturbation (H, W, C); the least of an image's successes is kept. Without it,
      the first.
    progress: called with the number of finished jobs and of all, again and again.

  Returns:
    What was found.
  """
  batch = _Batch(algorithm, model, jobs, slots, stop_early, distance)
  while batch.turn():
    if progress is not None:
      progress(batch.done, len(jobs.image))
  return batch.found


class _Batch:
  """The host's side: which job sits in which slot, and what came out."""

  def __init__(self, algorithm, model, jobs: Jobs, slots: int, stop_early: bool, distance):
    self.algorithm, self.model, self.jobs = algorithm, model, jobs
    self.stop_early, self.distance = stop_early, distance
    count = len(jobs.labels)
    self.found = Found(jobs.images.copy(), np.zeros(count, bool), np.zeros(count, np.int64))
    self.least = np.full(count, np.inf)  # distance of what was found
    self.next = self.done = 0
    self.small = max(slots // SHARE, 1)
    self.slot_job = np.full(slots, -1)  # -1: free
    self.iteration = np.zeros(slots, np.int64)
    self.rows = self._rows(self.slot_job)
    self.state: Any = None

  def turn(self) -> bool:
    """Fills free slots, steps, and notes results; False where all is done."""
    fresh = self._fill()
    running = self.slot_job >= 0
    if not running.any():
      return False
    if self.state is None:
      self.state = lay_out(self.model, _blank(self.algorithm, self.model, self.rows))
    if self._is_long_tail(running):
      fresh, running = self._shrink(fresh, running)
    enough = np.int32(self._enough(int(running.sum())))
    self.state, report = _segment(
      self.algorithm, self.model, self.state, self.rows, fresh, running, enough, self.stop_early
    )
    self._collect(*report)
    return True

  def _fill(self) -> np.ndarray:
    """Puts the next jobs into free slots; says which slots got one."""
    fresh = np.zeros(len(self.slot_job), bool)
    for slot in np.flatnonzero(self.slot_job < 0):
      self._skip_settled()
      if self.next == len(self.jobs.image):
        break
      self.slot_job[slot], self.iteration[slot], fresh[slot] = self.next, 0, True
      self.next += 1
    if fresh.any():
      self.rows = self._rows(np.where(fresh, self.slot_job, -1))
    return fresh

  def _skip_settled(self) -> None:
    while self.next < len(self.jobs.image) and self._is_settled(self.next):
      self.next += 1
      self.done += 1

  def _is_settled(self, job) -> bool:
    return self.stop_early and bool(self.found.success[self.jobs.image[job]])

  def _rows(self, job: np.ndarray) -> tuple[Any, ...]:
    """What `_begin` needs for the slots; those without a job get the first one's."""
    job = np.maximum(job, 0)
    image, jobs = self.jobs.image[job], self.jobs
    keys = jobs.keys.take(image)
    return (
      jobs.images[image],
      jobs.labels[image],
      jobs.eps[image],
      keys,
      jobs.number[job],
      jobs.targets[job],
    )

  def _is_long_tail(self, running: np.ndarray) -> bool:
    left = self.algorithm.steps - int(self.iteration[running].min())
    return self._can_shrink() and int(running.sum()) <= self.small and left >= LONG

  def _can_shrink(self) -> bool:
    waiting = self.next < len(self.jobs.image)
    return not waiting and len(self.slot_job) > self.small

  def _shrink(self, fresh, running):
    order = np.argsort(~running, kind='stable')[: self.small]
    self.state, self.rows = lay_out(self.model, _take((self.state, self.rows), order))
    self.slot_job, self.iteration = self.slot_job[order], self.iteration[order]
    return fresh[order], running[order]

  def _enough(self, running: int) -> int:
    """How many slots may still run when the device hands back."""
    if self.next < len(self.jobs.image):
      return max(running - self.small, 0)
    return self.small if self._can_shrink() and running > self.small else 0

  def _collect(self, adv, success, iteration) -> None:
    success, self.iteration = np.asarray(success), np.asarray(iteration).astype(np.int64)
    over = self.iteration >= self.algorithm.steps
    over = (over | success) if self.stop_early else over
    images = None
    for slot in np.flatnonzero(over & (self.slot_job >= 0)):
      if success[slot]:
        images = np.asarray(adv) if images is None else images
        self._keep(self.jobs.image[self.slot_job[slot]], images[slot])
      self._free(slot)
    for slot in np.flatnonzero(self.slot_job >= 0):
      if self._is_settled(self.slot_job[slot]):
        self._free(slot)

  def _keep(self, image, adv: np.ndarray) -> None:
    distance = self.distance(adv - self.jobs.images[image]) if self.distance else 0.0
    if distance < self.least[image]:
      self.found.adv[image], self.least[image] = adv, distance
    self.found.success[image] = True

  def _free(self, slot) -> None:
    self.found.steps[self.jobs.image[self.slot_job[slot]]] += self.iteration[slot]
    self.slot_job[slot] = -1
    self.done += 1


def _begin(algorithm: Algorithm, model: Partial, rows: tuple[Any, ...]) -> Any:
  images, labels, eps, keys, number, targets = rows
  return algorithm.init(model, images, labels, eps, fold_each(keys, number), targets)


def _blank(algorithm: Algorithm, model: Partial, rows: tuple[Any, ...]) -> Any:
  """A state of zeros, without compiling anything for it."""
  data, impl = jax.random.key_data(rows[3]), jax.random.key_impl(rows[3])

  def zeros(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return jax.random.wrap_key_data(jnp.zeros_like(data), impl=impl)
    return np.zeros(leaf.shape, leaf.dtype)

  begin = functools.partial(_begin, algorithm)
  return jax.tree.map(zeros, jax.eval_shape(begin, model, rows))


@jax.jit
def _take(tree: Any, order: jax.Array) -> Any:
  return jax.tree.map(lambda x: x[order], tree)


@functools.partial(jax.jit, static_argnames=('algorithm', 'stop_early'), donate_argnames=('state',))
def _segment(algorithm, model, state, rows, fresh, running, enough, stop_early: bool):
  """Begins the fresh slots and steps all that run, until only `enough` of them are unfinished.

  Returns the state, and copies of what the host reads of it: the state itself is given away.
  """
  state = select(fresh, _begin(algorithm, model, rows), state)
  iteration = jnp.where(running, state.iteration, algorithm.steps)
  state = dataclasses.replace(state, iteration=iteration)

  def unfinished(carry):
    state, count = carry
    active = jnp.sum(~finished(algorithm, state, stop_early), dtype=jnp.int32)
    return (active > enough) & (count < SEGMENT)

  def go_on(carry):
    return advance(algorithm, model, carry[0], stop_early), carry[1] + 1

  state, _ = lax.while_loop(unfinished, go_on, (state, jnp.int32(0)))
  state = lay_out(model, state)
  return state, (state.adv, state.success, state.iteration)
