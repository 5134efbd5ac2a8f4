"""Bad input is one clear error; good input of any dtype, shape and label keeps its bounds."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import linear_case as case
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest_jax import attacks
from rest_jax.attacks.driver import Runs, attack_images, make_target
from rest_jax.attacks.losses import fooled
from rest_jax.attacks.queries import logits_of
from rest_jax.attacks.threat import check_inputs
from rest_jax.errors import UserError

key = jax.random.key(0)
GOOD = dict(logits_fn=case.logits_fn, images=case.IMAGES, labels=case.LABELS, norm='linf', eps=0.1)
ATTACKS = {
  'fgsm': attacks.fgsm,
  'pgd': attacks.pgd,
  'bim': attacks.bim,
  'mi_fgsm': attacks.mi_fgsm,
  'apgd': attacks.apgd,
  'cw': attacks.cw,
  'deepfool': attacks.deepfool,
}
BAD = {
  'a label beyond the classes': (dict(labels=case.LABELS + 4), 'labels are from 0 to 3'),
  'a negative label': (dict(labels=case.LABELS - 5), 'labels are from 0 to 3'),
  'float labels': (dict(labels=case.LABELS * 1.0), 'labels are integers'),
  'one-hot labels': (dict(labels=np.eye(6, 4, dtype=int)), r'labels are \(6,\)'),
  'too few labels': (dict(labels=case.LABELS[:5]), r'labels are \(6,\)'),
  'pixels of 0 to 255': (dict(images=case.IMAGES * 255), r'in \[0, 1\], got values'),
  'bytes': (dict(images=np.zeros((6, 3, 4, 2), np.uint8)), 'floats in'),
  'negative pixels': (dict(images=case.IMAGES - 0.5), r'in \[0, 1\], got values'),
  'NaN': (dict(images=case.IMAGES * np.nan), r'in \[0, 1\], got values'),
  'over 1': (dict(images=np.full((6, 3, 4, 2), 1 + 1e-4)), r'in \[0, 1\], got values'),
  'one image without its axis': (dict(images=case.IMAGES[0]), r'leading axis'),
  'a list': (dict(images=case.IMAGES.tolist()), 'one array'),
  'a negative radius': (dict(eps=-0.1), 'radius'),
  'a radius that is no number': (dict(eps=float('nan')), 'radius'),
  'a radius in words': (dict(eps='eight'), 'radius'),
  'a radius in grey levels': (dict(eps=8), r'such as 8/255'),
  'too many radii': (dict(eps=np.ones(5)), 'eps is a number or'),
  'an unknown norm': (dict(norm='l3'), 'unknown norm'),
  'no function': (dict(logits_fn=3), 'function of images'),
  'feature maps': (dict(logits_fn=lambda x: x), 'classes'),
  'a pair': (dict(logits_fn=lambda x: (x, x)), 'one array'),
  'another size': (
    dict(logits_fn=lambda x: x.reshape(-1, 7) @ jnp.ones((7, 2))),
    'does not take images',
  ),
  'predictions': (dict(logits_fn=lambda x: jnp.argmax(case.logits_fn(x), 1)), 'classes'),
  'a target that is the label': (dict(targets=case.LABELS), 'a target is the label'),
  'a target beyond the classes': (dict(targets=case.LABELS + 9), 'targets are from 0 to 3'),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_input_is_one_clear_error(name):
  change, message = BAD[name]
  with pytest.raises(UserError, match=message) as caught:
    check_inputs(**(GOOD | change))
  assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize('name', ATTACKS)
def test_every_attack_checks(name):
  attack = ATTACKS[name]
  options = {} if name in ('cw', 'deepfool') else {'eps': 0.1}
  for change in ('a label beyond the classes', 'NaN', 'one image without its axis'):
    good = {k: GOOD[k] for k in ('logits_fn', 'images', 'labels')} | BAD[change][0]
    with pytest.raises(UserError, match=BAD[change][1]):
      attack(good['logits_fn'], good['images'], good['labels'], key=key, **options)
  if options:
    for change in ({'eps': -1.0}, {'norm': 'l7'}, {'loss': 'hinge'}):
      with pytest.raises(UserError):
        attack(case.logits_fn, case.IMAGES, case.LABELS, key=key, **(options | change))


@pytest.mark.parametrize(
  ('attack', 'options', 'message'),
  [
    (attacks.pgd, dict(steps=0), 'steps is a whole number from 1'),
    (attacks.pgd, dict(steps=2.5), 'steps is a whole number'),
    (attacks.pgd, dict(restarts=0), 'restarts'),
    (attacks.pgd, dict(query_batch=0), 'query_batch'),
    (attacks.pgd, dict(step_size=0.1, rel_step=0.1), 'not both'),
    (attacks.pgd, dict(step_size=-0.1), 'length of a step'),
    (attacks.pgd, dict(step_size=0.1, eps=np.ones(6)), 'rel_step'),
    (attacks.pgd, dict(schedule='steep'), 'schedule'),
    (attacks.pgd, dict(loss='dlr_targeted'), 'needs targets'),
    (attacks.pgd, dict(key=0), 'PRNG key'),
    (attacks.pgd, dict(key=None), 'PRNG key'),
    (attacks.mi_fgsm, dict(decay=-1.0), 'decay'),
    (attacks.apgd, dict(num_targets=0, loss='dlr_targeted'), 'num_targets'),
    (attacks.cw, dict(learning_rate=0.0), 'learning_rate'),
    (attacks.cw, dict(confidence=-1.0), 'confidence'),
    (attacks.deepfool, dict(norm='l1'), 'has no norm'),
    (attacks.deepfool, dict(overshoot=float('nan')), 'overshoot'),
    (attacks.deepfool, dict(num_classes=1), 'num_classes'),
  ],
)
def test_bad_options(attack, options, message):
  radius = {} if attack in (attacks.cw, attacks.deepfool) else {'eps': 0.1}
  with pytest.raises(UserError, match=message):
    attack(case.logits_fn, case.IMAGES, case.LABELS, **({'key': key} | radius | options))


def test_a_loss_that_needs_more_classes():
  """APGD follows the margin instead, see test_targets."""

  def two(images):
    return case.logits_fn(images)[:, :2]

  with pytest.raises(UserError, match='3 classes or more; the model has 2'):
    attacks.pgd(two, case.IMAGES, case.LABELS % 2, key=key, eps=0.1, loss='dlr')
  with pytest.raises(UserError, match='4 classes or more; the model has 2'):
    options = dict(key=key, eps=0.1, loss='dlr', targets=1 - case.LABELS % 2)
    attacks.pgd(two, case.IMAGES, case.LABELS % 2, **options)


def test_radii_are_never_rounded_up():
  for eps in (8 / 255, 0.1, 0.3, 1 / 3, 1e-300, 1e300):
    inputs = check_inputs(**(GOOD | {'eps': eps, 'norm': 'l2'}))
    assert inputs.eps.dtype == jnp.float32
    assert (np.asarray(inputs.eps, np.float64) <= eps).all()
    if 1e-30 < eps < 1e30:
      np.testing.assert_allclose(inputs.eps, eps, rtol=1e-7)
  assert np.isinf(check_inputs(**(GOOD | {'eps': None})).eps).all()


def length(delta, norm):
  flat = delta.reshape(len(delta), -1)
  return np.linalg.norm(flat, {'linf': np.inf, 'l2': 2, 'l1': 1}[norm], axis=1)


@functools.cache
def model_for(shape):
  weights = np.random.default_rng(2).normal(size=(int(np.prod(shape)), 4)).astype(np.float32)
  return lambda images: images.reshape(images.shape[0], -1) @ weights * 3


@given(
  st.integers(0, 10**6),
  st.sampled_from(['linf', 'l2', 'l1']),
  st.one_of(st.just(0.0), st.floats(1e-30, 1e-3), st.floats(1e-3, 20)),
  st.sampled_from([np.float16, np.float32, np.float64, jnp.bfloat16]),
  st.sampled_from([np.int8, np.uint16, np.int64, np.uint64]),
  st.sampled_from([(3, 2, 2, 1), (1, 3, 1, 3)]),
  st.sampled_from(['fgsm', 'pgd', 'apgd']),
)
def test_no_image_leaves_ball_or_range(seed, norm, eps, dtype, integer, shape, name):
  eps = min(eps, 1.0) if norm == 'linf' else eps
  rng = np.random.default_rng(seed)
  images = np.clip(rng.uniform(-0.3, 1.3, shape), 0, 1).astype(dtype)
  labels = rng.integers(0, 4, shape[0]).astype(integer)
  options = {} if name == 'fgsm' else dict(steps=4)
  adv = ATTACKS[name](model_for(shape[1:]), images, labels, key=key, norm=norm, eps=eps, **options)
  assert adv.dtype == jnp.float32 and adv.shape == shape
  adv, start = np.asarray(adv, np.float64), np.asarray(images, np.float32).astype(np.float64)
  assert (adv >= 0).all() and (adv <= 1).all()
  assert (length(adv - start, norm) <= eps).all()
  if eps == 0:
    np.testing.assert_array_equal(adv, start)


def test_gradients_that_are_not_numbers_do_no_harm():
  def broken(images):
    # A square root at 0 has an infinite slope, times 0 it is NaN.
    return case.logits_fn(images) + 0 * jnp.sqrt(jnp.abs(images - images)).sum()

  for name in ('fgsm', 'pgd', 'apgd', 'deepfool'):
    options = dict(key=key) if name == 'deepfool' else dict(key=key, eps=0.1)
    adv = np.asarray(ATTACKS[name](broken, case.IMAGES, case.LABELS, **options))
    assert np.isfinite(adv).all() and np.abs(adv - case.IMAGES).max() <= 0.1 + 1e-6


def test_an_empty_batch():
  none = (case.logits_fn, case.IMAGES[:0], case.LABELS[:0])
  assert attacks.fgsm(*none, eps=0.1).shape == (0, *case.SHAPE)
  assert attacks.cw(*none).shape == (0, *case.SHAPE)
  adv = attacks.apgd(*none, key=key, eps=0.1, loss='dlr_targeted')
  assert adv.shape == (0, *case.SHAPE)


RADIUS_ATTACKS = {
  'fgsm': attacks.FGSM(),
  'pgd': attacks.PGD(steps=4),
  'pgd of fixed steps': attacks.PGD(steps=4, step_size=0.05),
  'mi_fgsm': attacks.MIFGSM(steps=4),
  'apgd': attacks.APGD(steps=4),
  'apgd large radii': attacks.APGD(steps=10, large_radii=True),
  'square': attacks.Square(n_queries=20),
  'auto_attack': attacks.AutoAttack(attacks=('apgd_ce', 'fab_t')),
}
ANY_RADIUS = RADIUS_ATTACKS | {
  'fab': attacks.FAB(steps=4, restarts=2),
  'deepfool': attacks.DeepFool(steps=4),
  'cw': attacks.CW(steps=10, search_steps=2),
}
WIDE = {'linf': 1.0, 'l2': case.IMAGES[0].size ** 0.5, 'l1': float(case.IMAGES[0].size)}


@pytest.mark.parametrize(
  ('name', 'norm'), [(name, norm) for name in ANY_RADIUS for norm in ANY_RADIUS[name].norms]
)
def test_no_limit_is_the_largest_radius_that_there_is(name, norm):
  """Steps in units of an infinite radius were 0 times infinity."""
  attack = dataclasses.replace(ANY_RADIUS[name], norm=norm)
  given = (case.logits_fn, case.IMAGES, case.LABELS)
  images = np.asarray(attack.run(*given, key=key, eps=np.inf).images)
  assert np.isfinite(images).all() and (images >= 0).all() and (images <= 1).all()
  if name not in RADIUS_ATTACKS:
    return
  for eps in (1.0,) if norm == 'linf' else (1.001 * WIDE[norm], 1e6, 3e38):
    same = np.asarray(attack.run(*given, key=key, eps=eps).images)
    np.testing.assert_array_equal(images, same, err_msg=str(eps))
  if name != 'pgd of fixed steps':  # whose steps are in units of one radius
    mixed = attack.run(*given, key=key, eps=np.asarray([np.inf, 0.01] * 3)).images
    np.testing.assert_array_equal(np.asarray(mixed)[::2], images[::2])


@pytest.mark.parametrize('name', RADIUS_ATTACKS)
def test_a_radius_that_is_missing_is_not_infinite(name):
  with pytest.raises(UserError, match='the radius is missing: give eps, or infinity'):
    RADIUS_ATTACKS[name].run(case.logits_fn, case.IMAGES, case.LABELS, key=key, eps=None)


def test_no_limit_under_a_trace():
  def traced(eps):
    return attacks.apgd(
      case.logits_fn, case.IMAGES, case.LABELS, key=key, norm='l2', eps=eps, steps=4
    )

  images = jax.jit(traced)(jnp.float32(np.inf))
  assert np.isfinite(images).all()
  np.testing.assert_array_equal(images, jax.jit(traced)(jnp.float32(1.001 * WIDE['l2'])))


@pytest.mark.parametrize('norm', WIDE)
def test_a_start_within_no_limit_is_finite(norm):
  keys = jax.random.split(key, 6)
  start = attacks.random_start(keys, jnp.asarray(case.IMAGES), norm, np.inf)
  assert np.isfinite(start).all() and np.abs(np.asarray(start)).max() <= 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Broken(attacks.IterativeAttack):
  """Gives images of no numbers, for which no model gives numbers either."""

  steps: int = 2
  value: float = float('nan')

  def init(self, model, images, labels, eps, keys, targets=None):
    del model
    return attacks.State.begin(images, labels, eps, keys, targets)

  def step(self, model, state):
    adv = state.images * self.value
    hit = fooled(logits_of(model, adv, state.keys), state.labels, state.targets, self.targeted)
    return dataclasses.replace(state, iteration=state.iteration + 1, adv=adv, success=hit)


@pytest.mark.parametrize('broken', [float('nan'), float('inf')])
@pytest.mark.parametrize('name', ['slots', 'cascade', 'trace', 'evaluate'])
def test_an_image_that_is_not_finite_is_never_a_success(name, broken):
  """Whoever drives the attack, and whatever it says of itself."""
  images, labels = jnp.asarray(case.IMAGES), case.LABELS
  given = (case.logits_fn, images, labels)

  def run(x):
    return Broken(value=broken).run(case.logits_fn, x, labels, key=key, eps=0.1).images

  if name == 'evaluate':
    found = attacks.evaluate(
      *(case.logits_fn, case.IMAGES, labels),
      threats=attacks.Threat('linf', 0.1),
      key=key,
      attacks=Broken(value=broken),
      check_health=False,
    )
    assert found.rows[0].robust_accuracy.value == found.rows[0].clean_accuracy.value == 1
    return
  if name == 'cascade':
    inputs = check_inputs(*given, eps=0.1)
    target = make_target('broken', inputs, key, None)
    found = attack_images(target, (Runs(Broken(value=broken)),), np.arange(6))
    assert not found.success.any() and np.isfinite(found.adv).all()
    return
  adv = jax.jit(run)(images) if name == 'trace' else run(images)
  np.testing.assert_array_equal(adv, case.IMAGES)
