"""FGSM, PGD, BIM, MI-FGSM and the inner maximisation, on a linear model by closed forms."""

import functools

import jax
import jax.numpy as jnp
import linear_case as case
import numpy as np
import pytest

from rest_jax import attacks
from rest_jax.attacks.ball import furthest
from rest_jax.attacks.projected_gradient import pgd_delta

NORMS = ('linf', 'l2', 'l1')
key = jax.random.key(0)
ATTACKS = {
  'fgsm': attacks.fgsm,
  'pgd': functools.partial(attacks.pgd, steps=40, rel_step=0.25, loss='margin'),
  'apgd': functools.partial(attacks.apgd, steps=30, loss='margin'),
}


@pytest.mark.parametrize('norm', ['linf', 'l2'])
@pytest.mark.parametrize('name', ATTACKS)
def test_it_crosses_the_nearest_hyperplane_and_no_sooner(name, norm):
  """Just beyond the closed-form distance every image falls, just before it none can."""
  least = case.least(norm)
  options = dict(key=key, norm=norm)
  if name == 'fgsm':
    # One gradient: of the margin, it leads to the class of the highest logit.
    options['loss'] = 'margin'
    gap, slope = case.gaps()
    dual = np.linalg.norm(slope, case.DUAL[norm], axis=2)
    rival = np.argmin(np.where(gap > 0, gap, np.inf), axis=1)
    least = np.take_along_axis(gap / np.maximum(dual, 1e-9), rival[:, None], 1)[:, 0]
  adv = ATTACKS[name](case.logits_fn, case.IMAGES, case.LABELS, eps=1.001 * least, **options)
  assert (case.predict(adv) != case.LABELS).all()
  assert (np.asarray(attacks.distances(adv, case.IMAGES, norm)) <= 1.001 * least).all()
  before = 0.999 * case.least(norm)
  adv = ATTACKS[name](case.logits_fn, case.IMAGES, case.LABELS, eps=before, **options)
  assert (case.predict(adv) == case.LABELS).all()


@pytest.mark.parametrize(
  ('name', 'norm', 'eps'),
  [
    ('apgd', 'linf', 0.5),
    ('pgd', 'l2', 1.2),
    # Its published projection is not onto the nearest point where the range cuts the ball off.
    ('apgd', 'l2', 0.6),
    ('apgd', 'l1', 2.0),
  ],
)
def test_the_highest_loss_of_the_ball_is_found(name, norm, eps):
  """Two classes: the loss is monotone in one linear function; [0, 1] cuts the balls off."""
  weights = case.WEIGHTS[:, :2]

  def logits_fn(images):
    return images.reshape(images.shape[0], -1) @ weights

  labels = np.zeros(case.COUNT, np.int32)
  slope = (weights[:, 1] - weights[:, 0]).reshape(1, *case.SHAPE)
  slope = jnp.broadcast_to(slope, case.IMAGES.shape)
  best = logits_fn(case.IMAGES + furthest(slope, case.IMAGES, norm, eps))
  adv = ATTACKS[name](logits_fn, case.IMAGES, labels, key=key, norm=norm, eps=eps, stop_early=False)
  reached = logits_fn(np.asarray(adv))
  ours, top = reached[:, 1] - reached[:, 0], best[:, 1] - best[:, 0]
  assert (ours <= top + 1e-4).all()
  np.testing.assert_allclose(ours, top, rtol=3e-2 if norm == 'l1' else 1e-3)


def test_fgsm_is_the_sign_step():
  images = np.clip(case.IMAGES * 3 - 1, 0, 1)
  adv = attacks.fgsm(case.logits_fn, images, case.LABELS, eps=0.25)
  gradient = jax.grad(
    lambda x: -jnp.sum(jax.nn.log_softmax(case.logits_fn(x))[jnp.arange(6), case.LABELS])
  )(images)
  np.testing.assert_allclose(adv, np.clip(images + 0.25 * np.sign(gradient), 0, 1), atol=1e-6)


def test_bim_takes_equal_steps_from_the_image():
  """One class falls linearly; two steps of a third of the radius each."""
  adv = attacks.bim(
    case.logits_fn, case.IMAGES, case.LABELS, eps=0.03, steps=2, step_size=0.01, stop_early=False
  )
  np.testing.assert_allclose(attacks.distances(adv, case.IMAGES, 'linf'), 0.02, atol=1e-6)


def test_schedules_shorten_the_steps():
  lengths = {}
  for schedule in ('constant', 'linear', 'cosine'):
    adv = attacks.pgd(
      case.logits_fn, case.IMAGES, case.LABELS, key=key, eps=0.03, steps=4, rel_step=0.1,
      schedule=schedule, random_start=False, stop_early=False, loss='margin',
    )  # fmt: skip
    lengths[schedule] = float(attacks.distances(adv, case.IMAGES, 'linf').max()) / 0.03
  np.testing.assert_allclose(list(lengths.values()), [0.4, 0.25, 0.25], atol=1e-4)


def test_momentum_is_the_papers():
  """Equation 6 by hand, on a model whose gradient turns."""

  def logits_fn(images):
    x = images.reshape(images.shape[0], -1)
    return jnp.stack([jnp.sum(jnp.sin(9 * x), axis=1), 0.5 * jnp.sum(x, axis=1)], axis=1)

  images, labels = case.IMAGES, np.zeros(case.COUNT, np.int32)

  def loss(x):
    return -jnp.sum(jax.nn.log_softmax(logits_fn(x))[:, 0])

  x, velocity, losses, points = jnp.asarray(images), 0.0, [], []
  slope = jax.jit(jax.grad(loss))
  for _ in range(4):
    gradient = slope(x)
    size = jnp.sum(jnp.abs(gradient), axis=(1, 2, 3), keepdims=True)
    velocity = 0.9 * velocity + gradient / size
    x = jnp.clip(x + 0.05 * jnp.sign(velocity), images - 0.1, images + 0.1)
    points.append(x)
    losses.append(-jax.nn.log_softmax(logits_fn(x))[:, 0])
  adv = attacks.mi_fgsm(logits_fn, images, labels, eps=0.1, steps=4, step_size=0.05, decay=0.9)
  reached = -jax.nn.log_softmax(logits_fn(adv))[:, 0]
  np.testing.assert_allclose(reached, np.max(losses, axis=0), rtol=1e-4)


def test_a_target_is_reached_and_more_restarts_do_no_harm():
  targets = (case.LABELS + 1) % case.CLASSES
  options = dict(key=key, eps=0.35, steps=20, targets=targets)
  adv = attacks.pgd(case.logits_fn, case.IMAGES, case.LABELS, **options)
  once = case.predict(adv) == targets
  again = attacks.pgd(case.logits_fn, case.IMAGES, case.LABELS, restarts=3, **options)
  assert (case.predict(again) == targets).sum() >= once.sum() >= case.COUNT - 1


def test_what_is_wrong_already_comes_back_at_once():
  wrong = (case.LABELS + 1) % case.CLASSES
  for attack in (attacks.pgd, attacks.apgd):
    adv = attack(case.logits_fn, case.IMAGES, wrong, key=key, eps=0.1, steps=3)
    np.testing.assert_array_equal(adv, case.IMAGES)


def test_same_key_same_images_whatever_the_chunks():
  options = dict(norm='l2', eps=0.3, steps=5, stop_early=False)
  whole = attacks.pgd(case.logits_fn, case.IMAGES, case.LABELS, key=key, **options)
  again = attacks.pgd(case.logits_fn, case.IMAGES, case.LABELS, key=key, **options)
  np.testing.assert_array_equal(whole, again)
  parts = attacks.pgd(case.logits_fn, case.IMAGES, case.LABELS, key=key, query_batch=4, **options)
  np.testing.assert_allclose(parts, whole, atol=1e-6)
  one = attacks.pgd(case.logits_fn, case.IMAGES[:1], case.LABELS[:1], key=key, **options)
  np.testing.assert_allclose(one, whole[:1], atol=1e-6)
  other = attacks.pgd(case.logits_fn, case.IMAGES, case.LABELS, key=jax.random.key(1), **options)
  assert np.abs(np.asarray(other - whole)).max() > 1e-4


@pytest.mark.parametrize('norm', NORMS)
def test_the_inner_maximisation(norm):
  """Reaches the linear optimum, within a jit of its own, without a gradient through it."""
  weights = jnp.asarray(case.WEIGHTS[:, 0])
  eps = {'linf': 0.1, 'l2': 0.2, 'l1': 0.3}[norm]

  def loss_fn(images):
    return images.reshape(images.shape[0], -1) @ weights

  @jax.jit
  def delta_of(images, key):
    return pgd_delta(loss_fn, images, key, norm, eps, eps / 2, 30)

  delta = np.asarray(delta_of(case.IMAGES, key))
  gain = delta.reshape(case.COUNT, -1) @ weights
  dual = np.linalg.norm(weights, case.DUAL[norm])
  assert (gain <= eps * dual * (1 + 1e-5)).all()
  # In L1 a step always moves 5 % of the pixels, here two, where the optimum moves one.
  np.testing.assert_allclose(gain, eps * dual, rtol=0.15 if norm == 'l1' else 1e-4)
  assert attacks.norm_of(delta, norm).max() <= eps * (1 + 1e-5)
  still = pgd_delta(loss_fn, case.IMAGES, key, norm, eps, eps, 0, random_start=False)
  np.testing.assert_array_equal(still, 0)
  begun = pgd_delta(loss_fn, case.IMAGES, key, norm, eps, eps, 0, start=jnp.ones_like(delta))
  np.testing.assert_allclose(attacks.norm_of(begun, norm), eps, rtol=1e-4)
