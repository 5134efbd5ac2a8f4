"""Projections against a numerical solver, rounding against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from rest_jax.attacks import distances, finish, norm_of, project, random_start
from rest_jax.attacks.ball import (
  ascent,
  draw_laplace,
  draw_normal,
  draw_uniform,
  furthest,
  into_ball,
  kth_smallest,
  sparse_sign,
)
from rest_jax.attacks.queries import image_keys

SHAPE = (4, 3, 5, 2)
NORMS = ('linf', 'l2', 'l1')
norms = st.sampled_from(NORMS)
radii = st.one_of(
  st.just(0.0), st.floats(1e-30, 1e-6), st.floats(1e-3, 60.0), st.just(float('inf'))
)

jitted = {
  f: jax.jit(f, static_argnames='norm')
  for f in (project, into_ball, furthest, finish, random_start, norm_of)
}


def length(x, norm):
  x = np.asarray(x, np.float64).reshape(len(x), -1)
  return np.linalg.norm(x, {'linf': np.inf, 'l2': 2, 'l1': 1}[norm], axis=1)


def draw_case(seed, size):
  """Images with many pixels at the ends of the range, and perturbations of every size."""
  rng = np.random.default_rng(seed)
  images = np.clip(rng.uniform(-0.5, 1.5, SHAPE), 0, 1).astype(np.float32)
  # Of different sizes, so that some images are solved while others are not.
  sizes = size * rng.permutation([1, 0.3, 0.1, 0.03]).reshape(4, 1, 1, 1)
  delta = (rng.normal(size=SHAPE) * sizes).astype(np.float32)
  delta[rng.random(SHAPE) < 0.1] = 0
  return images, delta


def solve(delta, image, norm, eps):
  """The nearest point by bisection on the multiplier of the Lagrangian, in float64."""
  delta, image = delta.astype(np.float64).ravel(), image.astype(np.float64).ravel()

  def at(multiplier):
    if norm == 'l2':
      shrunk = delta / (1 + multiplier)
    elif norm == 'l1':
      shrunk = np.sign(delta) * np.maximum(np.abs(delta) - multiplier, 0)
    else:
      shrunk = np.clip(delta, -eps, eps)
    return np.clip(shrunk, -image, 1 - image)

  def over(multiplier):
    return length(at(multiplier)[None], norm)[0] - eps

  if norm == 'linf' or over(0.0) <= 0:
    return at(0.0)
  high = 1.0
  while over(high) > 0:
    high *= 2
  return at(optimize.brentq(over, 0.0, high, xtol=1e-14, rtol=1e-14))


@given(st.integers(0, 10**6), norms, st.floats(1e-2, 30.0), st.sampled_from([1e-3, 0.1, 1.0, 30.0]))
def test_projections_are_the_nearest_points(seed, norm, eps, size):
  images, delta = draw_case(seed, size)
  ours = np.asarray(jitted[project](delta, images, norm=norm, eps=np.float32(eps)))
  for i in range(len(images)):
    expected = solve(delta[i], images[i], norm, eps).reshape(SHAPE[1:])
    np.testing.assert_allclose(ours[i], expected, atol=2e-6 * max(size, 1))


@given(st.integers(0, 10**6), st.floats(0.05, 10.0))
def test_the_solver_of_the_test_against_a_general_one(seed, eps):
  """L1: the Karush-Kuhn-Tucker solution above is what a quadratic program finds."""
  rng = np.random.default_rng(seed)
  image, delta = rng.random(5), rng.normal(size=5)
  # Variables: positive and negative parts.
  result = optimize.minimize(
    lambda v: np.sum((v[:5] - v[5:] - delta) ** 2),
    np.zeros(10),
    jac=lambda v: np.concatenate([2 * (v[:5] - v[5:] - delta), -2 * (v[:5] - v[5:] - delta)]),
    bounds=[(0, 1 - x) for x in image] + [(0, x) for x in image],
    constraints={'type': 'ineq', 'fun': lambda v: eps - v.sum(), 'jac': lambda v: -np.ones(10)},
    method='SLSQP',
    options={'ftol': 1e-14, 'maxiter': 500},
  )
  np.testing.assert_allclose(solve(delta, image, 'l1', eps), result.x[:5] - result.x[5:], atol=2e-5)


@given(st.integers(0, 10**6), norms, radii, st.sampled_from([1e-8, 0.1, 1e4]))
def test_no_image_leaves_the_ball_or_the_range(seed, norm, eps, size):
  images, delta = draw_case(seed, size)
  eps = np.float32(eps)
  for inside in (project, into_ball, furthest):
    moved = images + jitted[inside](delta, images, norm=norm, eps=eps)
    adv = np.asarray(jitted[finish](moved, images, norm=norm, eps=eps), np.float64)
    assert (adv >= 0).all() and (adv <= 1).all()
    exact = length(adv - images.astype(np.float64), norm)
    assert (exact <= np.float64(eps)).all(), (inside, exact - np.float64(eps))
    if eps == 0:
      np.testing.assert_array_equal(adv, images)


@given(st.integers(0, 10**6), st.floats(0.01, 0.5))
def test_solved_images_wait_for_the_others(seed, eps):
  """Each image of an L1 batch is what it is alone, and fills the ball."""
  images, delta = draw_case(seed, 3.0)
  eps = np.float32(eps)
  batch = jitted[project](delta, images, norm='l1', eps=eps)
  alone = [
    jitted[project](d[None], x[None], norm='l1', eps=eps)[0]
    for d, x in zip(delta, images, strict=True)
  ]
  np.testing.assert_allclose(batch, np.stack(alone), atol=1e-6)
  np.testing.assert_allclose(length(batch, 'l1'), eps, atol=3e-6)


@given(st.integers(0, 10**6), norms)
def test_finish_takes_back_no_more_than_rounding(seed, norm):
  images, delta = draw_case(seed, 10.0)
  eps = np.float32(0.3)
  adv = images + jitted[project](delta, images, norm=norm, eps=eps)
  finished = jitted[finish](adv, images, norm=norm, eps=eps)
  np.testing.assert_allclose(finished, adv, atol=1e-6)
  again = jitted[finish](finished, images, norm=norm, eps=eps)
  np.testing.assert_array_equal(again, finished)
  # What is inside anyway stays bit for bit.
  inner = images + 0.5 * (np.asarray(finished) - images)
  np.testing.assert_array_equal(jitted[finish](inner, images, norm=norm, eps=eps), inner)


@given(st.integers(0, 10**6), norms, st.sampled_from([0.05, 1.0, 8.0, 40.0]))
def test_the_furthest_point_is_optimal(seed, norm, eps):
  """No other point of ball and range has a larger inner product with the gradient."""
  images, gradient = draw_case(seed, 1.0)
  best = np.asarray(jitted[furthest](gradient, images, norm=norm, eps=np.float32(eps)))
  reached = np.sum((best * gradient).astype(np.float64), axis=(1, 2, 3))
  assert (length(best, norm) <= eps * (1 + 1e-5)).all()
  # The nearest point to one very far along the gradient is the furthest along it.
  other = np.stack(
    [solve(1e7 * np.float64(g), x, norm, eps) for g, x in zip(gradient, images, strict=True)]
  )
  expected = np.sum(other.reshape(SHAPE) * gradient, axis=(1, 2, 3))
  np.testing.assert_allclose(reached, expected, rtol=2e-5)


def test_equal_gradients_fill_the_l1_ball_one_by_one():
  images = jnp.full((1, 1, 4, 1), 0.4)
  gradient = jnp.array([1.0, -1.0, 1.0, 0.5]).reshape(1, 1, 4, 1)
  delta = furthest(gradient, images, 'l1', 0.9)
  np.testing.assert_allclose(np.ravel(delta), [0.6, -0.3, 0.0, 0.0], atol=1e-7)


def test_radii_differ_between_images():
  images = jnp.full((3, 2, 2, 1), 0.5)
  eps = jnp.array([0.0, 0.1, 0.2])
  for norm in NORMS:
    moved = project(jnp.ones_like(images), images, norm, eps)
    np.testing.assert_allclose(norm_of(moved, norm), eps, atol=1e-6)
    np.testing.assert_allclose(distances(images + moved, images, norm), eps, atol=1e-6)


def test_into_ball_scales_before_it_cuts():
  images = jnp.array([0.9, 0.5]).reshape(1, 1, 2, 1)
  delta = into_ball(jnp.full_like(images, 3.0), images, 'l2', 1.0)
  np.testing.assert_allclose(np.ravel(delta), [0.1, 0.5], atol=1e-6)
  delta = into_ball(jnp.full_like(images, 0.3), images, 'l2', 0.2)
  np.testing.assert_allclose(np.ravel(delta), [0.1, 0.02**0.5], atol=1e-6)


@given(st.integers(0, 10**6), st.integers(0, 49))
def test_the_kth_smallest_is_that_of_sorting(seed, k):
  rng = np.random.default_rng(seed)
  x = np.abs(rng.normal(size=(3, 50))).astype(np.float32).round(seed % 3)
  ks = np.array([0, k, 49], np.int32)
  found = kth_smallest(jnp.asarray(x), jnp.asarray(ks))
  np.testing.assert_array_equal(found, np.sort(x, axis=1)[np.arange(3), ks])


def test_steps_have_the_length_asked_for():
  gradient = jax.random.normal(jax.random.key(0), (3, 4, 5, 2)).at[2].set(0.0)
  for norm in NORMS:
    step = ascent(gradient, norm, jnp.array([0.5, 2.0, 1.0]))
    np.testing.assert_allclose(norm_of(step, norm), [0.5, 2.0, 0.0], rtol=1e-5)
    assert (np.asarray(step * gradient) >= 0).all()


def test_the_sparse_step_moves_the_largest_alone():
  gradient = jnp.array([0.1, -5.0, 3.0, 0.0]).reshape(1, 1, 4, 1)
  step = sparse_sign(gradient, jnp.array([0.5]))
  np.testing.assert_allclose(np.ravel(step), [0, -0.5, 0.5, 0], atol=1e-6)
  step = sparse_sign(gradient, jnp.array([1.0]))
  np.testing.assert_allclose(np.ravel(step), [1 / 3, -1 / 3, 1 / 3, 0], atol=1e-6)


def test_draws_have_their_distributions():
  keys = image_keys(jax.random.key(1), 60)
  for draw, name in [
    (draw_uniform, 'uniform'),
    (draw_normal, 'norm'),
    (draw_laplace, 'laplace'),
  ]:
    x = jax.jit(draw, static_argnums=1)(keys, (300, 2))
    x = np.asarray(x, np.float64).ravel()
    args = (-1, 2) if name == 'uniform' else ()
    assert stats.kstest(x, name, args).pvalue > 0.01
  rows = np.asarray(draw_uniform(keys, (600,)))
  apart = np.abs(np.corrcoef(rows) - np.eye(60)) * 600**0.5
  assert apart.max() < 5
  np.testing.assert_array_equal(rows[:, 7:], draw_uniform(keys, (593,), skip=7))


@pytest.mark.parametrize('norm', NORMS)
def test_random_starts_are_uniform_in_the_ball(norm):
  """In 2 dimensions, where the share within half the radius is a quarter."""
  images = jnp.full((4000, 1, 2, 1), 0.5)
  keys = jax.jit(image_keys, static_argnums=1)(jax.random.key(2), 4000)
  start = jitted[random_start](keys, images, norm=norm, eps=0.4)
  size = jitted[norm_of](start, norm=norm)
  assert size.max() <= 0.4 * (1 + 1e-6)
  np.testing.assert_allclose(np.mean(size < 0.2), 0.25, atol=0.025)
  np.testing.assert_allclose(np.mean(start, axis=0), 0, atol=0.02)
  quarter = np.mean(np.all(np.asarray(start).reshape(-1, 2) > 0, axis=1))
  np.testing.assert_allclose(quarter, 0.25, atol=0.025)
  cut = jitted[random_start](keys, images - 0.5, norm=norm, eps=0.4)
  assert cut.min() == 0
