"""The slots, with an algorithm whose every result is known beforehand."""

import dataclasses

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from jax.tree_util import Partial

from rest_jax.attacks import slots
from rest_jax.attacks.algorithm import Algorithm, State, run, select
from rest_jax.attacks.queries import fold_each
from rest_jax.attacks.slots import ACCELERATOR_COST, COSTS, Jobs, Keys, Sizes, run_jobs

NEVER = 99


@dataclasses.dataclass(frozen=True, kw_only=True)
class Count(Algorithm):
  """Succeeds at the step that the target says; adds a random number of that step to the image."""

  steps: int = 12

  def init(self, model, images, labels, eps, keys, targets=None):
    return State.begin(images, labels, eps, keys, targets)

  def step(self, model, state):
    iteration = state.iteration + 1
    keys = fold_each(state.keys, iteration)
    draw = jax.vmap(jax.random.uniform)(keys)[:, None, None, None]
    hit = iteration == state.targets
    return dataclasses.replace(
      state,
      iteration=iteration,
      adv=select(hit, model(state.images) + draw, state.adv),
      success=state.success | hit,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nearest(Count):
  """The same; the image that moved least is the best."""

  def outcome(self, state):
    return state.adv, -jnp.max(state.adv - state.images, axis=(1, 2, 3))


def shift(offset, images):
  return images + offset


MODEL = Partial(shift, jnp.float32(1))


def make_jobs(key, when: list[list[int]]) -> Jobs:
  """`when[r][i]` is the step at which run r on image i succeeds."""
  count = len(when[0])
  keys = jax.random.split(key, count)
  return Jobs(
    images=np.arange(count, dtype=np.float32)[:, None, None, None].repeat(2, axis=1),
    labels=np.zeros(count, np.int32),
    eps=np.ones(count, np.float32),
    image=np.tile(np.arange(count), len(when)),
    targets=np.concatenate(when).astype(np.int32),
    number=np.repeat(np.arange(len(when), dtype=np.int32), count),
    keys=Keys(np.asarray(jax.random.key_data(keys)), jax.random.key_impl(keys)),
  )


def alone(jobs: Jobs, job: int, algorithm) -> np.ndarray:
  """What a job gives in a batch of its own."""
  image = jobs.image[[job]]
  keys = fold_each(jobs.keys.take(image), jobs.number[[job]])
  arrays = (jobs.images[image], jobs.labels[image], jobs.eps[image], keys, jobs.targets[[job]])
  return np.asarray(run(algorithm, MODEL, *map(jnp.asarray, arrays[:3]), *arrays[3:]).adv)[0]


WHEN = [[3, NEVER, 1, NEVER, 12, 5, NEVER], [2, 4, 1, NEVER, 1, 1, 12]]


@pytest.mark.parametrize('slots', [1, 3, 16])
def test_first_success_is_kept_whatever_the_slots(key, slots):
  jobs = make_jobs(key, WHEN)
  seen = []
  found = run_jobs(
    Count(),
    MODEL,
    jobs,
    sizes=Sizes(slots),
    progress=lambda done, count: seen.append((done, count)),
  )
  np.testing.assert_array_equal(found.success, [1, 1, 1, 0, 1, 1, 1])
  if slots < 16:  # with 16, both runs on an image are under way at once
    np.testing.assert_array_equal(found.steps, [3, 12 + 4, 1, 24, 12, 5, 12 + 12])
  for image, job in enumerate([0, 8, 2, None, 4, 5, 13]):
    expected = jobs.images[image] if job is None else alone(jobs, job, Count())
    np.testing.assert_array_equal(found.adv[image], expected)
  assert seen == sorted(seen) and seen[-1] == (14, 14)


def test_the_nearest_of_all_successes_is_kept_without_stopping_early(key):
  jobs = make_jobs(key, [[3, NEVER], [5, NEVER], [7, 2]])
  found = run_jobs(Nearest(), MODEL, jobs, sizes=Sizes(4), stop_early=False)
  candidates = [alone(jobs, job, Count()) for job in (0, 2, 4)]
  np.testing.assert_array_equal(found.adv[0], min(candidates, key=lambda adv: adv.max()))
  np.testing.assert_array_equal(found.adv[1], alone(jobs, 5, Count()))
  np.testing.assert_array_equal(found.steps, [36, 36])


def dear():
  """A row that is worth another program."""
  return 10 * max(cost.program for cost in (*COSTS.values(), ACCELERATOR_COST))


def test_what_is_left_goes_on_in_smaller_and_smaller_batches(key, monkeypatch):
  taken = []
  take = slots._take
  monkeypatch.setattr(slots, '_take', lambda *args: taken.append(len(args[1])) or take(*args))
  long = Count(steps=600)
  jobs = make_jobs(key, [[5, 40, 7, 2, 90, 600, 3, 80, 20, 400, 6, 2, 1, 8, 9, 700, 20]])
  found = run_jobs(long, MODEL, jobs, sizes=Sizes(16, dear, grain=1))
  assert taken == [12, 8, 6, 4, 3, 2]
  fixed = run_jobs(long, MODEL, jobs, sizes=Sizes(16))
  expected = np.minimum(jobs.targets, 600)
  for one in (found, fixed):
    np.testing.assert_array_equal(one.steps, expected)
    np.testing.assert_array_equal(one.success, jobs.targets <= 600)
    np.testing.assert_array_equal(one.adv, found.adv)
  for image in (1, 5, 16):
    np.testing.assert_array_equal(found.adv[image], alone(jobs, image, long))
  useful = [expected.sum() / one.rows for one in (fixed, found)]
  assert useful[0] < 0.25 and useful[1] > 0.85


@given(
  st.lists(st.tuples(*[st.sampled_from([1, 2, 5, 12, NEVER])] * 2), min_size=1, max_size=20),
  st.sampled_from([1, 3, 8]),
)
def test_results_do_not_depend_on_the_sizes(when, most):
  """Of two runs on each image the first that succeeds is kept, in whatever order they end."""
  jobs = make_jobs(jax.random.key(0), [list(run) for run in zip(*when, strict=True)])
  found = run_jobs(Count(), MODEL, jobs, sizes=Sizes(most))
  other = run_jobs(Count(), MODEL, jobs, sizes=Sizes(6, dear, grain=1))
  for one, two in zip(found[:3], other[:3], strict=True):
    np.testing.assert_array_equal(one, two)
  for one in (found, other):
    assert one.rows >= one.steps.sum()
  for image, runs in enumerate(when):
    first = next((r for r, step in enumerate(runs) if step <= 12), None)
    if first is not None:
      job = first * len(when) + image
      np.testing.assert_array_equal(found.adv[image], alone(jobs, job, Count()))


def test_a_size_is_compiled_only_where_that_pays():
  cost = COSTS['cpu']
  steps = 100
  # Half the batch for a hundred steps is worth as much as a program, or a little more.
  row = cost.program / (32 * steps)
  assert Sizes(64).all == [8, 16, 24, 32, 48, 64]
  assert Sizes(64, lambda: 0.9 * row).best(30, steps) == 64
  assert Sizes(64, lambda: 1.1 * row).best(30, steps) == 32
  sizes = Sizes(64, lambda: 1.1 * row)
  # What is compiled is used however little is left; and no batch grows.
  assert [sizes.best(30, steps), sizes.best(30, 1), sizes.best(20, 5, 32)] == [32, 32, 32]
  assert sizes.best(30, 1, 48) == 32 and sizes.below(32) == 24 and sizes.below(8) == 0
  assert Sizes(5).all == [5] and Sizes(5, lambda: 1e30).best(1, 1000) == 5


def test_compiles_once_for_any_number_of_images(key):
  run_jobs(Count(), MODEL, make_jobs(key, WHEN), sizes=Sizes(3))
  before = slots._segment._cache_size()
  other = Partial(shift, jnp.float32(2))
  run_jobs(Count(), other, make_jobs(key, [[1, 2, NEVER, 5]]), sizes=Sizes(3))
  run_jobs(Count(), MODEL, make_jobs(key, [[1] * 11]), sizes=Sizes(3))
  assert slots._segment._cache_size() == before
