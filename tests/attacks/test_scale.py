"""No constant has a scale: logits times any number give the same attack, in every norm."""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import linear_case as case
import numpy as np
import pytest
from hypothesis import given
from jax.tree_util import Partial

from rest_jax import attacks
from rest_jax.attacks import losses
from rest_jax.attacks.ball import ascent, into_ball, length_of, normalize

NORMS = ('linf', 'l2', 'l1')
RADII = {'linf': 0.06, 'l2': 0.2, 'l1': 0.8}


def scaled(scale, images):
  return case.logits_fn(images) * scale


def two_classes(weights, scale, images):
  """A linear model of two classes, 0 on one side of x . w = offset."""
  distance = images.reshape(images.shape[0], -1) @ weights['w'] - weights['offset']
  return jnp.stack([scale * distance, -scale * distance], axis=1)


def confident(gap, scale=1.0):
  """Images of two by two pixels at distance 0.1 (L2), with logits `gap` apart."""
  w = jnp.asarray([0.5, -0.5, 0.5, 0.5])
  model = Partial(two_classes, {'w': w, 'offset': jnp.float32(0.3)}, jnp.float32(gap * 5 * scale))
  along = np.asarray(w)[None] * 0.1
  side = np.random.default_rng(0).normal(size=(8, 4)) * 0.02
  side -= side @ np.asarray(w)[:, None] * np.asarray(w)[None]
  base = np.asarray([0.5, 0.5, 0.35, 0.25])
  images = (base + along + side).astype(np.float32).reshape(8, 2, 2, 1)
  return model, images, np.zeros(8, np.int32)


def run(name, norm, model, images, labels, **options):
  """One of the attacks with a margin loss, or CE where there are two classes."""
  key = jax.random.key(0)
  forms = {
    'fgsm': functools.partial(attacks.fgsm, eps=RADII[norm]),
    'pgd': functools.partial(attacks.pgd, eps=RADII[norm], steps=20, key=key),
    'mi_fgsm': functools.partial(attacks.mi_fgsm, eps=RADII[norm]),
    'apgd': functools.partial(attacks.apgd, eps=RADII[norm], steps=20, key=key),
    'square': functools.partial(attacks.square, eps=RADII[norm], n_queries=60, key=key),
    'fab': functools.partial(attacks.fab, steps=10, key=key),
    'deepfool': attacks.deepfool,
  }
  return forms[name](model, images, labels, norm=norm, **options)


@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('name', ['pgd', 'apgd'])
def test_a_confident_linear_model_is_not_robust(name, norm):
  """True robust accuracy 0 at every gap; a constant of 1e-12 beside the gradient stops at 30."""
  eps = {'linf': 0.06, 'l2': 0.12, 'l1': 0.24}[norm]
  for gap in (1.0, 25.0, 32.0, 40.0, 60.0, 100.0, 1e4):
    model, images, labels = confident(gap)
    adv = getattr(attacks, name)(
      model, images, labels, key=jax.random.key(0), norm=norm, eps=eps, steps=20
    )
    assert (np.asarray(model(adv)).argmax(axis=1) == 1).all(), gap


def test_the_line_that_was_found_robust():
  def model(x):
    distance = 100 * (x.reshape(len(x), -1).sum(axis=1) - 0.8)
    return jnp.stack([distance, -distance], axis=1)

  images, labels = np.full((1, 1, 2, 1), 0.5, np.float32), np.zeros(1, np.int32)
  for name in ('fgsm', 'pgd', 'mi_fgsm', 'apgd'):
    adv = getattr(attacks, name)(model, images, labels, key=jax.random.key(0), norm='l2', eps=0.3)
    assert np.asarray(model(adv)).argmax() == 1, name


@pytest.mark.parametrize(
  ('name', 'norm', 'loss'),
  [
    *[
      (name, norm, loss)
      for name in ('pgd', 'apgd')
      for norm, loss in zip(NORMS, ('margin', 'dlr', 'margin'), strict=True)
    ],
    ('fgsm', 'l2', 'margin'),
    ('mi_fgsm', 'l1', 'margin'),
    ('square', 'l2', 'margin'),
    ('fab', 'l2', None),
    ('fab', 'l1', None),
    ('deepfool', 'l2', None),
    ('deepfool', 'linf', None),
  ],
)
@given(exponent=st.integers(-16, 16))
def test_the_scale_of_logits_changes_no_outcome(name, norm, loss, exponent):
  """Powers of two, so that the logits are the same numbers but for their exponents."""
  one, other = (at_scale(name, norm, loss, s) for s in (1.0, 2.0 ** (4 * exponent)))
  fooled = case.predict(one) != case.LABELS
  np.testing.assert_array_equal(case.predict(other) != case.LABELS, fooled)
  np.testing.assert_allclose(other, one, atol=1e-5)


@functools.cache
def at_scale(name, norm, loss, scale):
  options = {} if loss is None else {'loss': loss}
  model = Partial(scaled, jnp.float32(scale))
  return np.asarray(run(name, norm, model, case.IMAGES, case.LABELS, **options))


@given(exponent=st.integers(-20, 20))
def test_cw_finds_the_same_at_any_scale(exponent):
  np.testing.assert_allclose(cw_at(2.0**exponent), cw_at(1.0), atol=1e-4)


@functools.cache
def cw_at(scale):
  model = Partial(scaled, jnp.float32(scale))
  return attacks.cw(model, case.IMAGES, case.LABELS, steps=30, search_steps=4)


@given(exponent=st.floats(-6, 30))
def test_cross_entropy_of_two_classes_has_no_scale(exponent):
  """Its gradient, exp(-gap) of the logits', is 0 in float32 from a gap of 104 on."""
  model, images, labels = confident(1.0, 2.0**exponent)
  adv = attacks.pgd(model, images, labels, key=jax.random.key(0), norm='l2', eps=0.12, steps=20)
  assert (np.asarray(model(adv)).argmax(axis=1) == 1).all()


@jax.jit
def odds_slope_and_entropy(x, label):
  odds, slope = jax.value_and_grad(lambda x: losses.log_odds(x, label)[0])(x)
  return odds, slope, losses.cross_entropy(x, label)[0]


# Numbers of classes are few, for each compiles.
@given(
  st.sampled_from((3, 6)).flatmap(
    lambda count: st.lists(st.floats(-80, 80, width=32), min_size=count, max_size=count)
  ),
  st.integers(0, 2),
)
def test_log_odds_are_the_cross_entropy(logits, label):
  """Values and gradients against the softmax in float64."""
  x = np.asarray(logits, np.float32)[None]
  z = x[0].astype(np.float64)
  others = np.delete(z, label) - z[label]
  expected = np.log(np.mean(np.exp(others - others.max()))) + others.max()
  odds, slope, found = odds_slope_and_entropy(x, np.array([label]))
  np.testing.assert_allclose(odds, expected, rtol=1e-5, atol=2e-6 * max(1, np.abs(others).max()))
  share = np.exp(z - z[label] - others.max())
  share[label] = 0
  share /= share.sum()
  share[label] = -1
  np.testing.assert_allclose(slope[0], share, atol=2e-5)
  entropy = np.log1p((len(z) - 1) * np.exp(expected)) if expected < 300 else expected
  np.testing.assert_allclose(found, entropy, rtol=1e-4, atol=1e-30)


def test_log_odds_keep_small_differences_apart():
  """Logits of 1e-6: a sum near K - 1 would round them away."""
  x = jnp.asarray([[0.0, 1e-6, 2e-6], [0.0, 1e-6, 2.1e-6]])
  found = np.asarray(losses.log_odds(x, jnp.zeros(2, jnp.int32)))
  np.testing.assert_allclose(found, [1.5e-6, 1.55e-6], rtol=1e-4)


@given(st.integers(-35, 35))
def test_directions_have_length_one_at_any_scale(exponent):
  x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 4, 2)), jnp.float32)
  tiny = x * np.float32(10.0**exponent)
  for norm in NORMS:
    order = {'linf': np.inf, 'l2': 2, 'l1': 1}[norm]
    unit = np.asarray(normalize(tiny, norm)).reshape(3, -1)
    np.testing.assert_allclose(np.linalg.norm(unit, ord=order, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(ascent(tiny, norm, 0.5), ascent(x, norm, 0.5), rtol=1e-5)
    wide = np.linalg.norm(np.asarray(tiny, np.float64).reshape(3, -1), ord=order, axis=1)
    np.testing.assert_allclose(length_of(tiny, norm), wide, rtol=1e-5)
  assert not normalize(jnp.zeros_like(x), 'l2').any()


def test_draws_of_a_confident_model_weigh_as_their_cross_entropy_says():
  """Two draws, gaps 200 and 210: nearly all of the gradient is the first one's; in L2 it shows."""

  def noisy(images, key):
    first = jax.random.bits(key) % 2 == 0
    flat = images.reshape(images.shape[0], -1)
    gap = jnp.where(first, 200 + flat[:, 0] - flat[:, 1], 210 + flat[:, 1] - flat[:, 0])
    return jnp.stack([gap, jnp.zeros_like(gap)], axis=1)

  model = attacks.eot(noisy, 16, jax.random.key(0))
  images = jnp.full((1, 1, 2, 1), 0.5)
  adv = attacks.fgsm(model, images, np.zeros(1, np.int32), norm='l2', eps=0.1)
  np.testing.assert_allclose((adv - images).ravel(), [-0.0707, 0.0707], atol=1e-3)


def test_a_ball_of_any_radius_is_kept():
  delta = jnp.full((1, 2, 2, 1), 1e-22)
  inside = into_ball(delta, jnp.full((1, 2, 2, 1), 0.5), 'l2', 1e-22)
  np.testing.assert_allclose(np.asarray(inside, np.float64), 5e-23, rtol=1e-5)
