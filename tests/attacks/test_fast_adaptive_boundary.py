"""FAB and its projections: closed forms, a linear programme, and the ball."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.tree_util import Partial
from scipy.optimize import brentq, linprog

from rest_jax.attacks.fast_adaptive_boundary import fab, final_search, project_hyperplane
from rest_jax.errors import UserError

ORDERS = {'linf': np.inf, 'l2': 2, 'l1': 1}
DUALS = {'linf': 1, 'l2': 2, 'l1': np.inf}
D = 6
project = jax.jit(project_hyperplane, static_argnames='norm')


def linear(weights, images):
  return images.reshape(images.shape[0], -1) @ weights


def problem(seed: int, classes: int = 4):
  """A linear classifier, images whose boundaries are nearer than 0 and 1, and their labels."""
  numbers = np.random.default_rng(seed)
  weights = numbers.normal(size=(12, classes)).astype(np.float32)
  weights -= weights.mean(axis=0)  # grey is on all boundaries
  images = numbers.uniform(0.4, 0.6, size=(6, 2, 2, 3)).astype(np.float32)
  labels = np.argmax(images.reshape(6, -1) @ weights, axis=1)
  return Partial(linear, jnp.asarray(weights)), weights, images, labels


def closed_form(weights, images, labels, norm: str, target=None) -> np.ndarray:
  """Distance to the nearest (or the target's) hyperplane."""
  logits = images.reshape(len(images), -1).astype(float) @ weights
  found = np.full((len(images), weights.shape[1]), np.inf)
  for i, label in enumerate(labels):
    for k in range(weights.shape[1]):
      if k != label and (target is None or k == target[i]):
        way = np.linalg.norm(weights[:, k].astype(float) - weights[:, label], DUALS[norm])
        found[i, k] = (logits[i, label] - logits[i, k]) / way
  return found.min(axis=1)


def solve(point, normal, offset: float, norm: str) -> float:
  """The least norm of a way to the plane within the box: scipy; inf where there is none."""
  room = np.abs(normal) @ np.where(normal * np.sign(offset) > 0, point, 1 - point)
  if room < abs(offset):
    return np.inf
  if norm == 'l2':
    sign = np.sign(offset)

    def left(t):
      moved = np.clip(point - t * sign * normal, 0, 1) - point
      return normal @ moved + offset

    high = 1.0
    while sign * left(high) > 0:
      high *= 2
    t = brentq(left, 0, high, xtol=1e-14)
    return float(np.linalg.norm(np.clip(point - t * sign * normal, 0, 1) - point))
  eye = np.eye(D)
  if norm == 'l1':  # d = p - q
    bounds = [(0, 1 - x) for x in point] + [(0, x) for x in point]
    cost, equal = np.ones(2 * D), np.concatenate([normal, -normal])[None]
    return linprog(cost, A_eq=equal, b_eq=[-offset], bounds=bounds).fun
  bounds = [(-x, 1 - x) for x in point] + [(0, None)]
  below = np.block([[eye, -np.ones((D, 1))], [-eye, -np.ones((D, 1))]])
  cost, equal = np.eye(D + 1)[D], np.append(normal, 0)[None]
  return linprog(cost, below, np.zeros(2 * D), equal, [-offset], bounds=bounds).fun


unit = st.floats(0, 1, width=32)
slopes = st.floats(-3, 3, width=32).filter(lambda w: w == 0 or abs(w) > 1e-3)


@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
@given(
  point=st.lists(unit, min_size=D, max_size=D),
  normal=st.lists(slopes, min_size=D, max_size=D),
  offset=st.floats(-4, 4, width=32).filter(lambda c: abs(c) > 1e-3),
)
def test_projection_is_the_solvers(norm, point, normal, offset):
  point, normal = np.asarray(point, np.float32), np.asarray(normal, np.float32)
  way = np.asarray(project(point[None], normal[None], np.float32(offset)[None], norm=norm))[0]
  moved = point + way
  assert moved.min() >= 0 and moved.max() <= 1 + 1e-7
  least = solve(point.astype(float), normal.astype(float), float(offset), norm)
  if np.isinf(least):
    corner = np.where(normal * np.sign(offset) > 0, 0, 1)
    np.testing.assert_allclose(moved[normal != 0], corner[normal != 0], atol=1e-6)
    return
  assert abs(normal.astype(float) @ way + offset) < 1e-5 * (1 + abs(offset))
  assert np.linalg.norm(way.astype(float), ORDERS[norm]) <= least * (1 + 1e-5) + 1e-6


@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
def test_projection_does_not_depend_on_the_scale_of_the_plane(norm):
  numbers = np.random.default_rng(0)
  point = numbers.uniform(size=(3, 50)).astype(np.float32)
  normal = numbers.normal(size=(3, 50)).astype(np.float32)
  offset = np.asarray([1.0, -2.0, 0.5], np.float32)
  way = project(point, normal, offset, norm=norm)
  small = project(point, normal * 2.0**-60, offset * 2.0**-60, norm=norm)
  np.testing.assert_array_equal(way, small)
  assert not np.any(project(point, 0 * normal, offset, norm=norm))


@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
@pytest.mark.parametrize('num_targets', [0, 3])
def test_finds_the_hyperplane_of_a_linear_classifier(key, norm, num_targets):
  model, weights, images, labels = problem(0)
  adv = fab(model, images, labels, key=key, norm=norm, steps=10, num_targets=num_targets)
  found = np.linalg.norm((np.asarray(adv) - images).reshape(6, -1), ORDERS[norm], axis=1)
  # `final_search` stays 2e-4 beyond the boundary.
  np.testing.assert_allclose(found, closed_form(weights, images, labels, norm), rtol=4e-4)
  assert np.all(np.argmax(np.asarray(model(adv)), axis=1) != labels)


def test_reaches_the_class_that_is_wanted(key):
  model, weights, images, labels = problem(1)
  targets = np.argsort(np.asarray(model(images)), axis=1)[:, -2]
  adv = fab(model, images, labels, key=key, norm='l2', steps=10, targets=targets)
  found = np.linalg.norm((np.asarray(adv) - images).reshape(6, -1), axis=1)
  reached = np.argmax(np.asarray(model(adv)), axis=1) == targets
  assert reached.sum() >= 5  # a third class may be in front of a target
  least = closed_form(weights, images, labels, 'l2', targets)
  assert np.all(found[reached] >= least[reached])
  assert np.median(found[reached] / least[reached]) < 1 + 4e-4
  np.testing.assert_array_equal(np.asarray(adv)[~reached], images[~reached])


def test_returns_misclassified_images_and_radius_zero_as_they_are(key):
  model, _, images, labels = problem(2)
  wrong = (labels + 1) % 4
  np.testing.assert_array_equal(fab(model, images, wrong, key=key, steps=2), images)
  np.testing.assert_array_equal(fab(model, images, labels, key=key, steps=2, eps=0.0), images)


def test_keeps_to_a_radius_and_restarts_help_never_hurt(key):
  model, weights, images, labels = problem(3)
  least = closed_form(weights, images, labels, 'linf')
  eps = float(np.median(least)) * 1.05
  one = np.asarray(fab(model, images, labels, key=key, eps=eps, steps=10))
  more = np.asarray(fab(model, images, labels, key=key, eps=eps, steps=10, restarts=3))
  one, more = (np.abs(x.astype(float) - images).max(axis=(1, 2, 3)) for x in (one, more))
  assert one.max() <= eps and more.max() <= eps
  np.testing.assert_array_equal(one > 0, least < eps)
  assert np.all(more <= one * (1 + 1e-6))


def test_final_search_ends_just_beyond_a_curved_boundary(key):
  def curved(images):
    inner = jnp.sum(jnp.square(images), axis=(1, 2, 3))
    return jnp.stack([1.0 - inner, inner - 1.0], axis=1)

  images = np.full((2, 1, 1, 4), 0.1, np.float32)
  adv = np.full((2, 1, 1, 4), 0.9, np.float32)
  labels = np.zeros(2, np.int32)
  keys = jax.random.split(key, 2)
  found = final_search(Partial(curved), images, adv, labels, labels, keys, targeted=False)
  assert np.all(np.asarray(found) > 0.5)  # the boundary is at 0.5 in each pixel
  assert np.all(np.asarray(found) < 0.51)


def test_bad_counts_are_named(key):
  model, _, images, labels = problem(0)
  with pytest.raises(UserError, match='num_targets is a whole number from 0'):
    fab(model, images, labels, key=key, num_targets=-1)
  with pytest.raises(UserError, match='query_batch is a whole number from 1'):
    fab(model, images, labels, key=key, query_batch=0)
