"""DeepFool and C&W against the distance to the nearest hyperplane."""

import jax
import jax.numpy as jnp
import linear_case as case
import numpy as np
import pytest

from rest_jax import attacks
from rest_jax.attacks.threat import Given


@pytest.mark.parametrize('norm', ['l2', 'linf'])
def test_deepfool_is_exact_on_a_linear_model(norm):
  adv = attacks.deepfool(case.logits_fn, case.IMAGES, case.LABELS, norm=norm, overshoot=1e-4)
  assert (case.predict(adv) != case.LABELS).all()
  np.testing.assert_allclose(
    attacks.distances(adv, case.IMAGES, norm), 1.0001 * case.least(norm), rtol=1e-4
  )


def test_deepfool_needs_one_step():
  adv = attacks.deepfool(case.logits_fn, case.IMAGES, case.LABELS, steps=1)
  assert (case.predict(adv) != case.LABELS).all()


def test_deepfool_keeps_to_the_range_and_still_arrives():
  images = np.round(case.IMAGES)  # every pixel at an end: half of the steps are barred
  labels = case.predict(images)
  adv = attacks.deepfool(case.logits_fn, images, labels, norm='l2')
  assert (case.predict(adv) != labels).all()
  assert adv.min() >= 0 and adv.max() <= 1


def test_deepfool_reaches_a_target():
  targets = (case.LABELS + 1) % case.CLASSES
  images = np.clip(case.IMAGES, 0.45, 0.55)
  labels = case.predict(images)
  targets = (labels + 1) % case.CLASSES
  adv = np.asarray(attacks.deepfool(case.logits_fn, images, labels, targets=targets))
  moved = np.abs(adv - images).max(axis=(1, 2, 3)) > 0
  # It looks at the target's boundary alone, so where a third class is above both it stops short.
  np.testing.assert_array_equal(case.predict(adv)[moved], targets[moved])
  assert moved.sum() >= 3


def test_cw_finds_the_least_distance():
  adv = attacks.cw(case.logits_fn, case.IMAGES, case.LABELS, steps=200, initial_const=0.1)
  assert (case.predict(adv) != case.LABELS).all()
  assert adv.min() >= 0 and adv.max() <= 1
  ratio = np.asarray(attacks.distances(adv, case.IMAGES, 'l2')) / case.least('l2')
  assert (ratio >= 1 - 1e-5).all()
  np.testing.assert_allclose(ratio, 1, atol=0.02)


def test_cw_with_a_target():
  targets = (case.LABELS + 1) % case.CLASSES
  adv = attacks.cw(
    case.logits_fn, case.IMAGES, case.LABELS, steps=200, initial_const=0.1, targets=targets
  )
  np.testing.assert_array_equal(case.predict(adv), targets)
  ratio = np.asarray(attacks.distances(adv, case.IMAGES, 'l2')) / case.least_to('l2', targets)
  assert (ratio >= 1 - 1e-4).all() and (ratio < 1.05).all()


def test_cw_is_surer_with_confidence():
  adv = attacks.cw(
    case.logits_fn, case.IMAGES, case.LABELS, steps=100, initial_const=1.0, confidence=0.5
  )
  logits = np.array(case.logits_fn(adv))
  own = logits[np.arange(case.COUNT), case.LABELS].copy()
  logits[np.arange(case.COUNT), case.LABELS] = -np.inf
  assert (logits.max(axis=1) - own >= 0.5 - 1e-5).all()


@pytest.mark.parametrize('targeted', [False, True])
@pytest.mark.parametrize('share', [0.5, 0.9, 1.0])
def test_cw_that_aborts_early_fools_what_it_fools_without(share, targeted):
  """Pixels at the ends of the range take hundreds of steps to get away from there."""
  rng = np.random.default_rng(0)
  images = rng.random((8, 4, 4, 3)).astype(np.float32)
  images = np.where(rng.random(images.shape) < share, np.round(images), images)
  weights = jnp.asarray(rng.normal(size=(48, 3)), jnp.float32)

  def linear(images):
    return (images.reshape(images.shape[0], -1) - 0.5) @ weights

  labels = np.asarray(linear(images)).argmax(axis=1)
  targets = (labels + 1) % 3 if targeted else None
  found = [
    np.asarray(attacks.cw(linear, images, labels, targets=targets, abort_early=abort_early))
    for abort_early in (True, False)
  ]
  for adv in found:
    said = np.asarray(linear(adv)).argmax(axis=1)
    assert (said == targets if targeted else said != labels).all()
  early, whole = (np.asarray(attacks.distances(adv, images, 'l2')) for adv in found)
  np.testing.assert_allclose(early, whole, rtol=0.02)


@pytest.mark.parametrize('abort_early', [False, True])
def test_cw_counts_the_queries_that_it_asked(abort_early):
  """A round that is ended early spares the rest of its steps."""
  asked, attack = [], attacks.CW(steps=40, search_steps=3, abort_early=abort_early)

  def counting(images):
    jax.debug.callback(lambda: asked.append(1))
    return case.logits_fn(images)

  given = Given(counting, case.IMAGES[:1], case.LABELS[:1], None, None)
  (queries,) = attack.carry_out(given, jax.random.key(0)).queries
  jax.effects_barrier()
  beside = len(asked) - queries  # whether the image is wrong already
  assert 0 <= beside <= 2
  assert queries < 3 * 40 if abort_early else queries == 3 * 40


def test_cw_changes_its_constant_as_published():
  """Tenfold until one succeeds, then bisection; a round that stalls is cut short."""
  from rest_jax.attacks.minimum_norm import CW
  from rest_jax.callables import as_function

  algorithm = CW(search_steps=6, steps=20, initial_const=1e-3)
  state = algorithm.init(
    as_function(case.logits_fn),
    jnp.asarray(case.IMAGES),
    jnp.asarray(case.LABELS, jnp.int32),
    jnp.full((case.COUNT,), jnp.inf),
    jax.random.split(jax.random.key(0), case.COUNT),
  )
  step = jax.jit(lambda state: algorithm.step(as_function(case.logits_fn), state))
  weights, steps = [np.asarray(state.weight)], 0
  while (np.asarray(state.iteration) < algorithm.length).any():
    before, state = state, step(state)
    steps += 1
    ended = np.asarray(state.iteration) % 20 == 0
    assert ((np.asarray(state.weight) == before.weight) | ended).all()
    if ended[0]:
      weights.append(np.asarray(state.weight))
      assert state.offset[0].max() == 0
    if state.iteration[0] >= algorithm.length:
      break
  first = np.array([w[0] for w in weights])
  assert steps < algorithm.length  # the first rounds, too weak to move, were cut short
  np.testing.assert_allclose(first[1:3] / first[:2], 10, rtol=1e-5)
  assert state.low[0] <= state.weight[0] <= state.high[0]


def test_what_is_wrong_already_stays():
  wrong = (case.LABELS + 1) % case.CLASSES
  for adv in (
    attacks.deepfool(case.logits_fn, case.IMAGES, wrong),
    attacks.cw(case.logits_fn, case.IMAGES, wrong, steps=5, search_steps=1),
  ):
    np.testing.assert_array_equal(adv, case.IMAGES)


def test_where_none_is_found_the_original_comes_back():
  def deaf(images):
    return jnp.zeros((images.shape[0], 3)).at[:, 0].set(1.0) + 0 * images.sum()

  labels = np.zeros(case.COUNT, np.int32)
  for adv in (
    attacks.deepfool(deaf, case.IMAGES, labels, steps=3),
    attacks.cw(deaf, case.IMAGES, labels, steps=3, search_steps=2),
  ):
    np.testing.assert_array_equal(adv, case.IMAGES)
