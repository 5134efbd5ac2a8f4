"""Targeted attacks optimise what is judged: the target's logit over the highest other one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from rest_jax import attacks
from rest_jax.attacks import losses

KEY = jax.random.key(0)


def linear(weights, bias, images):
  return images.reshape(images.shape[0], -1) @ weights + bias[None]


def third_class():
  """On the boundary of target and label a third class is on top."""
  weights = jnp.asarray([[1, -1, 0], [0, 0.2, 0.9]], jnp.float32)
  model = Partial(linear, weights, jnp.asarray([0, 1, 0.3], jnp.float32))
  return model, np.asarray([0.95, 0.5], np.float32).reshape(1, 1, 2, 1), np.zeros(1, np.int32)


def test_fab_goes_where_the_target_is_on_top():
  """Least distances by a grid of 1000 x 1000 points in NumPy."""
  model, images, labels = third_class()
  for norm, least in [('linf', 0.4256), ('l2', 0.4931), ('l1', 0.6)]:
    adv = attacks.fab(
      model, images, labels, key=KEY, norm=norm, targets=np.ones(1, np.int32), steps=60
    )
    assert int(model(adv).argmax()) == 1
    far = float(attacks.distances(adv, images, norm)[0])
    assert least - 1e-3 <= far <= 1.01 * least, norm


@pytest.mark.parametrize('name', ['pgd', 'apgd', 'apgd dlr', 'cw', 'deepfool', 'fab', 'square'])
def test_every_attack_reaches_what_it_is_told_to(name):
  rng = np.random.default_rng(0)
  weights = jnp.asarray(rng.normal(size=(12, 5)), jnp.float32)
  model = Partial(linear, weights, jnp.asarray(0.3 * rng.normal(size=5), jnp.float32))
  images = rng.uniform(0.3, 0.7, (12, 2, 2, 3)).astype(np.float32)
  labels = np.asarray(model(images)).argmax(axis=1).astype(np.int32)
  targets = ((labels + 1 + rng.integers(0, 4, 12)) % 5).astype(np.int32)
  calls = {
    'pgd': lambda a: attacks.pgd(*a, key=KEY, eps=0.7, steps=30, targets=targets),
    'apgd': lambda a: attacks.apgd(*a, key=KEY, eps=0.7, steps=30, targets=targets),
    'apgd dlr': lambda a: attacks.apgd(*a, key=KEY, eps=0.7, steps=30, targets=targets, loss='dlr'),
    'cw': lambda a: attacks.cw(*a, steps=100, initial_const=1.0, targets=targets),
    'deepfool': lambda a: attacks.deepfool(*a, targets=targets),
    'fab': lambda a: attacks.fab(*a, key=KEY, norm='l2', steps=50, targets=targets),
    'square': lambda a: attacks.square(
      *a, key=KEY, eps=0.7, n_queries=300, targets=targets, loss='margin'
    ),
  }
  adv = np.asarray(calls[name]((model, images, labels)))
  reached = np.asarray(model(adv)).argmax(axis=1) == targets
  # The corner of [0, 1] that favours each target over all others is the furthest there is.
  possible = _reachable(np.asarray(weights), np.asarray(model.args[1]), targets)
  if name == 'square':  # a random search of 300 queries
    assert reached[possible].mean() > 0.5
  else:
    assert (reached >= possible).all()
  if name == 'fab':
    near = np.asarray(attacks.deepfool(model, images, labels, targets=targets))
    far = [np.asarray(attacks.distances(x, images, 'l2'))[reached] for x in (adv, near)]
    assert (far[0] <= far[1] * 1.01).all()


def _reachable(weights, bias, targets):
  """Which targets a point of [0, 1] well inside their region shows to be possible, by SciPy."""
  from scipy import optimize

  found = []
  for target in targets:
    others = np.delete(weights, target, axis=1) - weights[:, [target]]
    ahead = np.delete(bias, target) - bias[target]
    # Maximise the least lead s: others . x + ahead + s <= 0.
    result = optimize.linprog(
      np.append(np.zeros(12), -1.0),
      A_ub=np.hstack([others.T, np.ones((4, 1))]),
      b_ub=-ahead,
      bounds=[(0, 1)] * 12 + [(None, None)],
    )
    found.append(-result.fun > 1.0)
  return np.asarray(found)


LOGITS = np.array([[3.0, 1.0, 2.0, -1.0, 0.5], [0.0, 4.0, 1.0, 2.5, -2.0]])


def test_losses_are_what_their_papers_say():
  """Croce & Hein 2020, equations 6 and 7, and Carlini & Wagner 2017, f_6, by hand."""
  labels, targets = jnp.array([0, 3]), jnp.array([1, 2])

  def values(name, targeted=True):
    return np.asarray(losses.loss_of(name, jnp.asarray(LOGITS), labels, targets, targeted))

  # Row 0 sorted: 3, 2, 1, .5, -1; row 1: 4, 2.5, 1, 0, -2.
  np.testing.assert_allclose(values('dlr'), [-(3 - 2) / (3 - 1), -(2.5 - 4) / (4 - 1)])
  np.testing.assert_allclose(
    values('dlr_targeted', False), [-(3 - 1) / (3 - 0.75), -(2.5 - 1) / (4 - 0.5)], rtol=1e-6
  )
  # Where the target is to be reached, over the highest other one: 3 (the label), and 4.
  np.testing.assert_allclose(
    values('dlr_targeted'), [-(3 - 1) / (3 - 0.75), -(4 - 1) / (4 - 0.5)], rtol=1e-6
  )
  np.testing.assert_allclose(values('margin_targeted'), [1 - 3, 1 - 4])
  np.testing.assert_allclose(values('margin'), [2 - 3, 4 - 2.5])
  z = np.exp(LOGITS)
  odds = np.log((z.sum(axis=1) - z[[0, 1], [1, 2]]) / 4 / z[[0, 1], [1, 2]])
  np.testing.assert_allclose(values('ce_targeted'), -odds, rtol=1e-6)


def test_ratios_are_finite_where_all_logits_are_equal():
  ties = jnp.ones((1, 5))
  for name in ('dlr', 'dlr_targeted'):
    value, slope = jax.value_and_grad(
      lambda x, name=name: losses.loss_of(name, x, jnp.array([0]), jnp.array([1]))[0]
    )(ties)
    assert value == 0 and jnp.isfinite(slope).all() and slope.any()


def test_two_and_three_classes_take_the_margin():
  for classes in (2, 3):
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(12, classes)), jnp.float32)
    model = Partial(linear, weights, jnp.zeros(classes))
    images = np.random.default_rng(1).uniform(0.4, 0.6, (3, 2, 2, 3)).astype(np.float32)
    labels = np.asarray(model(images)).argmax(axis=1).astype(np.int32)
    for loss in ('dlr_targeted', 'dlr'):
      adv = attacks.apgd(model, images, labels, key=KEY, eps=0.4, steps=10, loss=loss)
      assert (np.asarray(model(adv)).argmax(axis=1) != labels).all()


def test_two_losses_as_one_are_each_of_them():
  """Values and gradients, of logits too that are infinite or equal for the other loss."""
  logits = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
  logits[0, 1] = logits[3, 1] = -np.inf
  logits[1], logits[4] = 2.0, 300 * logits[4]
  labels = jnp.asarray([0, 1, 2, 0, 1, 2])
  targets = jnp.asarray([0, 1, 2, 3, 4, 0])

  def gradient(loss):
    return jax.jit(jax.value_and_grad(lambda z: jnp.sum(jnp.where(mask, loss(z), 0.0))))(logits)

  for plain, name in ((True, 'ce'), (False, 'dlr_targeted')):
    mask = (targets == labels) == plain
    both = gradient(lambda z: losses.loss_of(losses.CE_OR_DLR, z, labels, targets))
    alone = gradient(lambda z, name=name: losses.loss_of(name, z, labels, targets, targeted=False))
    np.testing.assert_allclose(both[0], alone[0], rtol=1e-6)
    np.testing.assert_allclose(both[1][mask], alone[1][mask], rtol=1e-5)
    assert np.isfinite(both[1][:3]).all() and not np.asarray(both[1][~mask]).any()
  np.testing.assert_array_equal(
    losses.zero_of(losses.CE_OR_DLR, labels, targets), [-np.inf] * 3 + [0] * 3
  )
