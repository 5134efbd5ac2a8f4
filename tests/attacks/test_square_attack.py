"""Square Attack: window tables against the paper's text, the ball, and what it needs of a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.tree_util import Partial

from rest_jax.attacks import square_attack
from rest_jax.attacks.algorithm import run
from rest_jax.attacks.queries import image_keys
from rest_jax.attacks.square_attack import Square, square, tiled_start, window_pattern, windows
from rest_jax.errors import UserError

ORDERS = {'linf': np.inf, 'l2': 2, 'l1': 1}
H = 9


def blocks(weights, images):
  return images.reshape(images.shape[0], -1) @ weights


def problem(count: int = 4):
  numbers = np.random.default_rng(0)
  weights = numbers.normal(size=(H * H * 2, 3)).astype(np.float32)
  images = numbers.uniform(0, 1, size=(count, H, H, 2)).astype(np.float32)
  labels = np.argmax(images.reshape(count, -1) @ weights, axis=1)
  return Partial(blocks, jnp.asarray(weights)), images, labels


def nested_squares(side: int, power: int) -> np.ndarray:
  """The paper's pattern drawn cell by cell: squares around the centre of each half add up."""

  def half(rows: int) -> np.ndarray:
    plane = np.zeros((rows, side))
    for k in range(max(rows // 2, side // 2) + 1):
      for i in range(rows):
        for j in range(side):
          if max(abs(i - rows // 2), abs(j - side // 2)) <= k:
            plane[i, j] += 1 / (k + 1) ** (2 if power == 2 else 4)
    norm = np.linalg.norm(plane.ravel(), power) if rows else 1
    return plane / norm

  whole = np.concatenate([half(side // 2), -half(side - side // 2)])
  return whole / np.linalg.norm(whole.ravel(), power)


def test_windows_follow_the_published_schedule():
  tables = windows(32, 32, 'linf', 10000, 0.8, rescale=False)
  # round(sqrt(p 32^2)) with p halved after 10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000.
  sides = tables.sides[tables.level]
  at = {0: 29, 10: 29, 11: 20, 50: 20, 51: 14, 201: 10, 501: 7, 1001: 5, 2001: 4, 4001: 3, 6001: 2}
  assert {k: sides[k] for k in at} == at
  assert sides[9999] == 1
  stretched = windows(32, 32, 'linf', 1000, 0.8, rescale=True)
  np.testing.assert_array_equal(stretched.sides[stretched.level], sides[::10])
  odd = windows(32, 32, 'l2', 10000, 0.8, rescale=False)
  assert list(odd.sides) == [29, 21, 15, 11, 7, 5, 5, 3, 3, 3]
  assert windows(4, 2, 'l1', 10, 0.8, rescale=False).sides.max() == 2


@pytest.mark.parametrize('norm', ['l2', 'l1'])
@pytest.mark.parametrize('side', [1, 2, 3, 5, 7])
def test_pattern_is_nested_squares_of_norm_one(norm, side, monkeypatch):
  monkeypatch.setattr(square_attack, '_side', lambda *_: side)
  tables = windows(H, H, norm, 20, 0.5, rescale=False)
  level, top, left = (jnp.asarray([v, v], jnp.int32) for v in (1, H - side, 0))
  turned = jnp.asarray([False, True])
  drawn = np.asarray(window_pattern(tables, level, top, left, turned, (H, H)))[..., 0]
  expected = nested_squares(side, ORDERS[norm])
  np.testing.assert_allclose(drawn[0, H - side :, :side], expected, atol=1e-6)
  np.testing.assert_allclose(drawn[1, H - side :, :side], expected.T, atol=1e-6)
  assert np.count_nonzero(drawn[0]) <= side * side


def test_start_is_stripes_or_tiles(key):
  keys = image_keys(key, 200)
  images = jnp.full((200, 10, 10, 2), 0.5)
  eps = jnp.full(200, 0.25)
  labels = jnp.zeros(200, jnp.int32)
  stripes = np.asarray(Square().init(Partial(blocks), images, labels, eps, keys).best) - 0.5
  np.testing.assert_array_equal(np.abs(stripes), 0.25)
  np.testing.assert_array_equal(stripes, np.repeat(stripes[:, :1], 10, axis=1))
  assert abs(np.mean(stripes > 0) - 0.5) < 0.04
  tables = windows(10, 10, 'l2', 5, 0.8, rescale=False)
  tiles = np.asarray(tiled_start(keys, tables, (10, 10, 2)))
  blocks_ = tiles.reshape(200, 5, 2, 5, 2, 2).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 2, 2)
  kinds = {tuple(np.round(block.ravel(), 4)) for block in blocks_}
  assert len(kinds) == 4  # two turns, two signs
  np.testing.assert_allclose(np.linalg.norm(blocks_, axis=(1, 2)), 1, rtol=1e-5)


def test_windows_lie_anywhere_and_change_by_twice_the_radius(key):
  count = 300
  algorithm = Square(n_queries=40, p_init=0.1, rescale=False)
  images = jnp.full((count, H, H, 1), 0.5)
  state = algorithm.init(
    Partial(blocks),
    images,
    jnp.zeros(count, jnp.int32),
    jnp.full(count, 0.1),
    image_keys(key, count),
  )

  def hard(images):  # the loss falls, and the image is never misclassified
    total = jnp.sum(images, axis=(1, 2, 3))
    return jnp.stack([jnp.full_like(total, 1e3), total], axis=1)

  step = jax.jit(lambda state: algorithm.step(Partial(hard), state))
  first = step(state)
  second = step(first)
  moved = np.asarray(second.best - first.best)[..., 0]
  rows, columns = np.any(moved, axis=2), np.any(moved, axis=1)
  side = 3  # round(sqrt(0.1 * 81))
  tops = np.argmax(rows, axis=1)[rows.sum(axis=1) == side]
  assert set(tops) == set(range(H - side))
  assert np.max(np.bincount(tops)) < 2 * np.mean(np.bincount(tops))
  assert rows.sum(axis=1).max() == side and columns.sum(axis=1).max() == side
  np.testing.assert_allclose(np.abs(moved[moved != 0]), 0.2, atol=1e-6)
  assert np.all(np.asarray(second.loss) <= np.asarray(first.loss))
  assert not np.any(second.success)


@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
def test_fools_a_model_without_gradients_and_keeps_to_the_ball(key, norm):
  model, images, labels = problem()

  def stepwise(images):
    return model(jnp.round(images * 255) / 255)

  eps = {'linf': 0.25, 'l2': 3.0, 'l1': 25.0}[norm]
  adv = square(stepwise, images, labels, key=key, norm=norm, eps=eps, n_queries=150, query_batch=4)
  adv = np.asarray(adv)
  moved = np.linalg.norm((adv.astype(float) - images).reshape(4, -1), ORDERS[norm], axis=1)
  fooled = np.argmax(np.asarray(stepwise(adv)), axis=1) != labels
  assert fooled.sum() >= 3
  assert np.all((moved > 0) == fooled)
  assert moved.max() <= eps and adv.min() >= 0 and adv.max() <= 1


@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
@given(eps=st.floats(0, 200, width=32), seed=st.integers(0, 99))
def test_every_query_is_in_the_ball(norm, eps, seed):
  model, images, labels = problem()
  algorithm = Square(norm=norm, n_queries=3)
  limits = jnp.full(4, eps, jnp.float32)
  keys = image_keys(jax.random.key(seed), 4)
  labels = jnp.asarray(labels, jnp.int32)
  state = run(algorithm, model, jnp.asarray(images), labels, limits, keys, stop_early=False)
  for found in (np.asarray(state.best), np.asarray(state.adv)):
    assert found.min() >= 0 and found.max() <= 1
    moved = (found.astype(float) - images).reshape(4, -1)
    assert np.all(np.linalg.norm(moved, ORDERS[norm], axis=1) <= float(np.float32(eps)))


@pytest.mark.parametrize('norm', ['l2', 'l1'])
def test_the_whole_radius_is_used(key, norm):
  algorithm = Square(norm=norm, n_queries=20)
  images = jnp.full((3, H, H, 2), 0.5)
  labels = jnp.zeros(3, jnp.int32)
  weights = jnp.asarray(np.random.default_rng(1).normal(size=(H * H * 2, 3)), jnp.float32)
  eps = jnp.full(3, 0.4)
  keys = image_keys(key, 3)
  state = run(algorithm, Partial(blocks, weights), images, labels, eps, keys, stop_early=False)
  moved = np.asarray(state.best - images).reshape(3, -1)
  np.testing.assert_allclose(np.linalg.norm(moved, ORDERS[norm], axis=1), 0.4, rtol=1e-4)
  assert not np.allclose(moved[0], moved[1])


def test_targets_are_reached(key):
  model, images, labels = problem()
  targets = (labels + 1) % 3
  adv = square(
    model, images, labels, key=key, eps=0.3, n_queries=150, targets=targets, query_batch=4
  )
  assert np.all(np.argmax(np.asarray(model(adv)), axis=1) == targets)


def test_leaves_what_is_misclassified_and_says_what_is_wrong(key):
  model, images, labels = problem()
  wrong = (labels + 1) % 3
  np.testing.assert_array_equal(square(model, images, wrong, key=key, eps=0.1), images)
  for bad in (dict(p_init=0.0), dict(n_queries=0), dict(loss='hinge'), dict(restarts=0)):
    with pytest.raises(UserError, match=next(iter(bad))):
      square(model, images, labels, key=key, eps=0.1, **bad)
