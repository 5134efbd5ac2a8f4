"""Many runs of an attack through a batch of slots, a new one in each place that falls free.

An attack that stops at its first success is done with easy images after a few steps and with hard
ones after thousands. A batch that waits for its slowest image wastes most of its work. Here a loop
on the device steps all slots until enough of them are finished, the host notes what they found and
puts the next runs there, and the loop goes on. Once no runs wait and few are left, those go on in a
smaller batch, again and again. Each size is another program to compile, so `Sizes` weighs that
against the rows it saves. Where 11.5 % of 200 images withstood AutoAttack, 42 % of the rows that a
batch of fixed size stepped were of use.
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
from rest_jax.attacks.queries import fold_each
from rest_jax.attacks.wrappers import lay_out
from rest_jax.ops.platform import jit

# While runs wait, the device goes on until this share of the batch is free.
SHARE = 16
# Steps after which the host looks in: for progress and Ctrl-C.
SEGMENT = 64
# Sizes of a batch are multiples of this: with fewer rows a step hardly gets quicker.
GRAIN = 8

Progress = Callable[[int, int], None]


class Cost(NamedTuple):
  """What a platform's time is worth, to weigh another program against the rows it saves.

  Attributes:
    program: floating-point operations that it does in the time a program takes to compile. On two
      cores a ResNet-20 takes 5 s for a step of APGD or FAB, 3 s for one of Square, at 120 GFLOP/s.
    rows: that a step of any batch costs beside its own. On those cores, 16 rows took 1.2 to 1.5
      times as long each as 64; 128 rows took as long each as 64.
  """

  program: float
  rows: int


COSTS = {'cpu': Cost(6e11, 4)}
ACCELERATOR_COST = Cost(2e14, 128)


class Keys(NamedTuple):
  """PRNG keys on the host, where picking some of them compiles nothing.

  Attributes:
    data: uint32 (N, ...).
    impl: which generator they belong to.
  """

  data: np.ndarray
  impl: Any

  @classmethod
  def of(cls, keys: jax.Array) -> Keys:
    """Those of the device, (N,)."""
    return cls(np.asarray(jax.random.key_data(keys)), jax.random.key_impl(keys))

  def take(self, rows: np.ndarray) -> jax.Array:
    """Some of the keys, (n,)."""
    return jax.random.wrap_key_data(jnp.asarray(self.data[rows]), impl=self.impl)


class Jobs(NamedTuple):
  """Runs to make, in this order.

  Attributes:
    images: float32 (N, H, W, C), on the host.
    labels: int32 (N,); of a loss of one's own, a pytree of arrays (N, ...).
    eps: float32 (N,).
    image: int (J,), which image each run attacks.
    targets: int32 (J,), its target; the label where there is none.
    number: int32 (J,), folded into the image's key: tells the runs on it apart.
    keys: the images' PRNG keys.
  """

  images: np.ndarray
  labels: Any
  eps: np.ndarray
  image: np.ndarray
  targets: Any
  number: np.ndarray
  keys: Keys


class Found(NamedTuple):
  """What the runs found.

  Attributes:
    adv: float32 (N, H, W, C): of each image's runs the best outcome, a success before any other and
      then the one of the highest score; the original where there is none.
    success: bool (N,).
    score: float64 (N,), of `adv`.
    steps: int64 (N,), taken on each image, over all its runs.
    rows: that were stepped, with those of idle slots: the sum of `steps` are the useful ones.
  """

  adv: np.ndarray
  success: np.ndarray
  score: np.ndarray
  steps: np.ndarray
  rows: int

  @classmethod
  def nothing(cls, images: np.ndarray) -> Found:
    """Before any run."""
    count = len(images)
    score = np.full(count, -np.inf)
    return cls(images.copy(), np.zeros(count, bool), score, np.zeros(count, np.int64), 0)

  def offer(self, image: Any, adv: np.ndarray, success: bool, score: float) -> None:
    """Takes over what is better than what there is."""
    if (success and not self.success[image]) or (
      success == self.success[image] and score > self.score[image]
    ):
      self.adv[image], self.success[image], self.score[image] = adv, success, score


class Sizes:
  """The sizes of batch that an attack runs with, and when a smaller one pays.

  What it decides hangs on counts, never on clocks or on what else was compiled before: the same
  attack takes the same programs, and so gives the same bits.
  """

  def __init__(self, most: int, row: Callable[[], float] = lambda: 0.0, grain: int = GRAIN):
    """Takes the largest size, which is the one that others are weighed against.

    Args:
      most: slots while there is enough to do.
      row: floating-point operations of a step on one image; asked when it is needed, once.
      grain: all smaller sizes are multiples of it.
    """
    self.most, self._row, self._known = most, row, None
    halves = [most * share / 2**k for k in range(most.bit_length()) for share in (1.0, 0.75)]
    rounded = {max(-(-int(size) // grain), 1) * grain for size in halves}
    self.all = sorted({size for size in rounded if size < most} | {most})
    self._made = {most}
    self._cost = COSTS.get(jax.default_backend(), ACCELERATOR_COST)

  def best(self, running: int, left: int, now: int | None = None) -> int:
    """The size that costs least until the end.

    Args:
      running: slots that are needed.
      left: steps until the last of them ends, at most.
      now: the present size, beyond which no batch grows.
    """
    fitting = [size for size in self.all if running <= size <= (now or self.most)]
    if len(fitting) == 1:
      return fitting[0]
    found = min(fitting, key=lambda size: (self._price(size, left), -size))
    self._made.add(found)
    return found

  def below(self, running: int) -> int:
    """The largest size with fewer slots; 0 where there is none."""
    return max((size for size in self.all if size < running), default=0)

  def _price(self, size: int, left: int) -> float:
    if self._known is None:
      self._known = self._row()
    compiling = 0.0 if size in self._made else self._cost.program
    return compiling + left * (size + self._cost.rows) * self._known


def run_jobs(
  algorithm: Algorithm,
  model: Partial,
  jobs: Jobs,
  *,
  sizes: Sizes,
  stop_early: bool = True,
  progress: Progress | None = None,
) -> Found:
  """Runs all jobs.

  What a job gives depends on its image, target and key, not on its slot or on other jobs. With
  `stop_early` the success of an image's first successful run is kept, whatever was under way with
  it: what is found does not depend on the sizes.

  Args:
    algorithm: what to run.
    model: a `Partial` of images to logits.
    jobs: what to run it on.
    sizes: of the batch.
    stop_early: a run ends at its first success, and with it all later runs on the same image.
    progress: called with the number of finished jobs and of all, again and again.

  Returns:
    What was found.
  """
  batch = _Batch(algorithm, model, jobs, sizes, stop_early)
  while batch.turn():
    if progress is not None:
      progress(batch.done, len(jobs.image))
  return batch.found._replace(rows=batch.stepped)


class _Batch:
  """The host's side: which job sits in which slot, and what came out."""

  def __init__(self, algorithm, model, jobs: Jobs, sizes: Sizes, stop_early: bool):
    self.algorithm, self.model, self.jobs = algorithm, model, jobs
    self.sizes, self.stop_early = sizes, stop_early
    self.found = Found.nothing(jobs.images)
    self.winner = np.full(len(jobs.images), len(jobs.image))  # the job that fooled each image
    self.next = self.done = self.stepped = 0
    slots = sizes.best(min(len(jobs.image), sizes.most), algorithm.length)
    self.slot_job = np.full(slots, -1)  # -1: free
    self.iteration, self.steps = np.zeros((2, slots), np.int64)
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
    fresh, running = self._fit(fresh, running)
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
      self.steps[slot] = 0
      self.next += 1
    if fresh.any():
      self.rows = self._rows(np.where(fresh, self.slot_job, -1))
    return fresh

  def _skip_settled(self) -> None:
    while self.next < len(self.jobs.image) and self._is_settled(self.next):
      self.next += 1
      self.done += 1

  def _is_settled(self, job) -> bool:
    return self.stop_early and bool(self.winner[self.jobs.image[job]] < job)

  def _rows(self, job: np.ndarray) -> tuple[Any, ...]:
    """What `_begin` needs for the slots; those without a job get the first one's."""
    job = np.maximum(job, 0)
    image, jobs = self.jobs.image[job], self.jobs
    return (
      jobs.images[image],
      jax.tree.map(lambda labels: labels[image], jobs.labels),
      jobs.eps[image],
      jobs.keys.take(image),
      jobs.number[job],
      jax.tree.map(lambda targets: targets[job], jobs.targets),
    )

  def _fit(self, fresh: np.ndarray, running: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Goes on in a smaller batch where that pays; nothing may be waiting."""
    if self.next < len(self.jobs.image):
      return fresh, running
    left = self.algorithm.length - int(self.iteration[running].min())
    size = self.sizes.best(int(running.sum()), left, len(self.slot_job))
    if size == len(self.slot_job):
      return fresh, running
    order = np.argsort(~running, kind='stable')[:size]
    self.state, self.rows = lay_out(self.model, _take((self.state, self.rows), order))
    self.slot_job, self.iteration = self.slot_job[order], self.iteration[order]
    self.steps = self.steps[order]
    return fresh[order], running[order]

  def _enough(self, running: int) -> int:
    """How many slots may still run when the device hands back."""
    if self.next < len(self.jobs.image):
      return max(running - max(len(self.slot_job) // SHARE, 1), 0)
    return self.sizes.below(running)

  def _collect(self, outcome, score, success, iteration, steps, count) -> None:
    self.stepped += int(count) * len(self.slot_job)
    success, self.iteration = np.asarray(success), np.array(iteration, np.int64)
    self.steps = np.array(steps, np.int64)
    over = self.iteration >= self.algorithm.length
    over = ((over | success) if self.stop_early else over) & (self.slot_job >= 0)
    if over.any():
      outcome, score = np.asarray(outcome), np.asarray(score)
    for slot in np.flatnonzero(over):
      self._keep(self.slot_job[slot], outcome[slot], bool(success[slot]), float(score[slot]))
      self._free(slot)
    for slot in np.flatnonzero(self.slot_job >= 0):
      if self._is_settled(self.slot_job[slot]):
        self._free(slot)

  def _keep(self, job, adv: np.ndarray, success: bool, score: float) -> None:
    image = self.jobs.image[job]
    if self._is_settled(job):
      return
    if self.stop_early and success:
      self.winner[image], self.found.success[image] = job, False
    self.found.offer(image, adv, success, score)

  def _free(self, slot) -> None:
    self.found.steps[self.jobs.image[self.slot_job[slot]]] += self.steps[slot]
    self.slot_job[slot] = -1
    self.done += 1


def _begin(algorithm: Algorithm, model: Partial, rows: tuple[Any, ...]) -> Any:
  images, labels, eps, keys, number, targets = rows
  return algorithm.init(model, images, labels, eps, fold_each(keys, number), targets)


def _is_key(leaf: Any) -> bool:
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _blank(algorithm: Algorithm, model: Partial, rows: tuple[Any, ...]) -> Any:
  """A state of zeros, without compiling anything for it."""
  data, impl = jax.random.key_data(rows[3]), jax.random.key_impl(rows[3])

  def zeros(leaf):
    if _is_key(leaf):
      return jax.random.wrap_key_data(jnp.zeros_like(data), impl=impl)
    return np.zeros(leaf.shape, leaf.dtype)

  begin = functools.partial(_begin, algorithm)
  return jax.tree.map(zeros, jax.eval_shape(begin, model, rows))


def _take(tree: Any, order: np.ndarray) -> Any:
  """Some rows of each array, on the host: nothing is compiled for it."""
  return jax.tree.map(
    lambda x: Keys.of(x).take(order) if _is_key(x) else np.asarray(x)[order], tree
  )


@functools.partial(jit, static_argnames=('algorithm', 'stop_early'), donate_argnames=('state',))
def _segment(algorithm, model, state, rows, fresh, running, enough, stop_early: bool):
  """Begins the fresh slots and steps all that run, until only `enough` of them are unfinished.

  Returns the state, and copies of what the host reads of it: the state itself is given away.
  """
  state = select(fresh, _begin(algorithm, model, rows), state)
  iteration = jnp.where(running, state.iteration, algorithm.length)
  state = dataclasses.replace(state, iteration=iteration)

  def unfinished(carry):
    state, count = carry
    active = jnp.sum(~finished(algorithm, state, stop_early), dtype=jnp.int32)
    return (active > enough) & (count < SEGMENT)

  def go_on(carry):
    return advance(algorithm, model, carry[0], stop_early), carry[1] + 1

  state, count = lax.while_loop(unfinished, go_on, (state, jnp.int32(0)))
  state = lay_out(model, state)
  outcome, score = algorithm.outcome(state)
  return state, (outcome, score, state.success, state.iteration, state.steps, count)
