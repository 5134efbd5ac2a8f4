"""The scheduler, with an algorithm whose every result is known beforehand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from rest_jax.attacks import slots
from rest_jax.attacks.algorithm import register_state, run, select
from rest_jax.attacks.queries import fold_each
from rest_jax.attacks.slots import Jobs, Keys, run_jobs

NEVER = 99


@register_state
@dataclasses.dataclass(frozen=True)
class CountState:
  """`algorithm.State`."""

  images: jax.Array
  labels: jax.Array
  targets: jax.Array
  eps: jax.Array
  keys: jax.Array
  iteration: jax.Array
  adv: jax.Array
  success: jax.Array


@dataclasses.dataclass(frozen=True)
class Count:
  """Succeeds at the step that the target says; adds a random number of that step to the image."""

  steps: int = 12

  def init(self, model, images, labels, eps, keys, targets=None):
    none = jnp.zeros(labels.shape, bool)
    return CountState(images, labels, targets, eps, keys, jnp.zeros_like(labels), images, none)

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
    Count(), MODEL, jobs, slots=slots, progress=lambda done, count: seen.append((done, count))
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
  found = run_jobs(
    Count(), MODEL, jobs, slots=4, stop_early=False, distance=lambda delta: float(delta.max())
  )
  candidates = [alone(jobs, job, Count()) for job in (0, 2, 4)]
  np.testing.assert_array_equal(found.adv[0], min(candidates, key=lambda adv: adv.max()))
  np.testing.assert_array_equal(found.adv[1], alone(jobs, 5, Count()))
  np.testing.assert_array_equal(found.steps, [36, 36])


def test_a_long_tail_goes_on_in_a_small_batch(key, monkeypatch):
  sizes = []
  take = slots._take
  monkeypatch.setattr(slots, '_take', lambda *args: sizes.append(len(args[1])) or take(*args))
  long = Count(steps=600)
  jobs = make_jobs(key, [[5, 40, 7, 2, 9, 600, 3, 8, 2, 4, 6, 2, 1, 8, 9, 700, 20]])
  found = run_jobs(long, MODEL, jobs, slots=16)
  assert sizes == [2]
  expected = np.minimum(jobs.targets, 600)
  np.testing.assert_array_equal(found.steps, expected)
  np.testing.assert_array_equal(found.success, jobs.targets <= 600)
  for image in (1, 5, 16):
    np.testing.assert_array_equal(found.adv[image], alone(jobs, image, long))


def test_compiles_once_for_any_number_of_images(key):
  run_jobs(Count(), MODEL, make_jobs(key, WHEN), slots=3)
  before = slots._segment._cache_size()
  other = Partial(shift, jnp.float32(2))
  run_jobs(Count(), other, make_jobs(key, [[1, 2, NEVER, 5]]), slots=3)
  run_jobs(Count(), MODEL, make_jobs(key, [[1] * 11]), slots=3)
  assert slots._segment._cache_size() == before
