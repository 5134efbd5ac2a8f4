"""Confidence, pointing, intervals and likeness of maps, against SciPy and hand counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage, stats

from rest_jax import UserError, explain
from rest_jax.explain.metrics import box_masks, rank_correlation, structural_similarity


def corner(x):
  """Two classes: how bright the upper left is, and the rest."""
  return jnp.stack([x[:, :2, :2].mean((1, 2, 3)), x.mean((1, 2, 3))], 1) * 8


@pytest.fixture(scope='module')
def images():
  return np.random.default_rng(0).uniform(size=(4, 6, 5, 3)).astype(np.float32)


def test_drop_and_increase_by_hand(images):
  maps = np.random.default_rng(1).uniform(size=(4, 6, 5)).astype(np.float32)
  maps[3] = 1  # all is seen: no drop, no increase
  fill = np.array([0.9, 0.1, 0.5], np.float32)
  masked = images * maps[..., None] + fill * (1 - maps[..., None])
  targets = np.asarray(corner(images)).argmax(1)
  whole, seen = (
    np.take_along_axis(np.asarray(jax.nn.softmax(corner(x))), targets[:, None], 1)[:, 0]
    for x in (images, masked)
  )
  got = explain.drop_increase(corner, images, maps, fill=fill, query_batch=3)
  np.testing.assert_allclose(got.drop, np.maximum(0, whole - seen) / whole, atol=1e-6)
  assert got.increase[:3].tolist() == (seen > whole)[:3].tolist()
  assert got.drop[3] == 0 and not got.increase[3]
  assert len(set(got.increase.tolist())) == 2


def spot(y, x, size=(32, 32)):
  maps = np.zeros((1, *size), np.float32)
  maps[0, y, x] = 1
  return maps


@pytest.mark.parametrize(
  ('point', 'hit'),
  [((10, 10), True), ((12, 10), True), ((13, 10), False), ((12, 11), False), ((11, 11), True)],
)
def test_pointing_within_the_tolerance(point, hit):
  """15 px at 224 are 2.14 at 32: two pixels straight, one diagonally and not (2, 1)."""
  masks = np.zeros((1, 32, 32), bool)
  masks[0, 8:11, 8:11] = True
  assert explain.pointing_game(spot(*point), masks).tolist() == [hit]
  assert explain.pointing_game(spot(*point), masks, tolerance=0).tolist() == [point == (10, 10)]


def test_pointing_in_a_box():
  boxes = np.array([[0.25, 0.5, 0.75, 1.0]], np.float32)
  for y, x, hit in ((3, 7, False), (4, 8, True), (11, 15, True), (12, 15, False), (8, 7, False)):
    maps = spot(y, x, (16, 16))
    assert explain.pointing_game(maps, boxes, tolerance=0).tolist() == [hit]


def test_box_holds_the_pixels_whose_centres_it_holds():
  """Columns 2 to 5 of 8 have theirs at 0.3125 to 0.6875."""
  mask = box_masks(np.array([[0.0, 0.25, 0.5, 0.7]], np.float32), (4, 8))
  assert np.argwhere(mask[0]).tolist() == [[y, x] for y in (0, 1) for x in (2, 3, 4, 5)]


def test_one_of_several_maxima_counts_and_a_constant_map_misses():
  masks = np.zeros((2, 8, 8), bool)
  masks[0, 0, 0] = masks[1, 7, 7] = True
  maps = np.zeros((2, 8, 8), np.float32)
  maps[:, 0, 0] = maps[:, 7, 7] = 1
  assert sorted(explain.pointing_game(maps, masks).tolist()) == [False, True]
  assert explain.pointing_game(np.ones((2, 8, 8)), masks).tolist() == [False, False]


def test_centre_maps_point_at_the_centre():
  for size in ((8, 8), (7, 9), (1, 1)):
    maps = explain.centre_maps(2, size)
    assert maps.shape == (2, *size)
    assert divmod(int(maps[1].argmax()), size[1]) == (size[0] // 2, size[1] // 2)
    assert maps.min() >= 0 and maps.max() == 1


def test_energy_share():
  maps = np.zeros((3, 4, 4), np.float32)
  maps[0] = 1
  maps[1, 0, 0], maps[1, 3, 3] = 0.75, 0.25
  masks = np.zeros((3, 4, 4), bool)
  masks[:, :2, :2] = True
  np.testing.assert_allclose(explain.energy_share(maps, masks), [0.25, 0.75, 0], atol=1e-6)


@pytest.mark.parametrize(
  ('maps', 'objects', 'words'),
  [
    (np.ones((2, 4, 4)), np.ones((2, 4, 5), bool), 'do not fit'),
    (np.ones((2, 4, 4)), np.ones((3, 4), np.float32), 'do not fit'),
    (np.ones((4, 4)), np.ones((4, 4), bool), 'maps are'),
    (np.full((2, 4, 4), np.nan), np.ones((2, 4, 4), bool), 'map 0 is not finite'),
    (np.ones((2, 4, 4)), np.eye(2)[:, :, None, None][:, 0] * np.ones((2, 4, 4)), 'image 1 has no'),
  ],
)
def test_pointing_wants_objects(maps, objects, words):
  with pytest.raises(UserError, match=words):
    explain.pointing_game(maps, objects)


@pytest.mark.parametrize('values', [(0.001, 1), (3, 255), (np.nan, np.nan)])
def test_masks_of_several_values_are_not_all_object(values):
  """Shares of pixels, or classes with what is to be ignored, would hold all of any map: 100 %."""
  objects = np.full((1, 4, 4), values[0])
  objects[0, :2, :2] = values[1]
  maps = np.arange(16.0).reshape(1, 4, 4)
  for measured in (explain.pointing_game, explain.energy_share):
    with pytest.raises(UserError, match='one value beside 0'):
      measured(maps, objects)


def test_masks_of_one_value_are_that_object():
  maps = np.arange(16.0).reshape(1, 4, 4)
  objects = maps > 11
  for value in (1, 0.5, 255):
    assert explain.energy_share(maps, value * objects) == explain.energy_share(maps, objects)


def test_bootstrap_of_a_proportion():
  """Of 400 draws of 0 and 1 the interval is the normal one, to a tenth of its width."""
  values = np.arange(400) < 120
  mean, low, high = explain.bootstrap(values, seed=3)
  half = 1.96 * np.sqrt(0.3 * 0.7 / 400)
  assert mean == pytest.approx(0.3)
  assert low == pytest.approx(0.3 - half, abs=0.2 * half)
  assert high == pytest.approx(0.3 + half, abs=0.2 * half)
  assert explain.bootstrap(values, seed=3) == (mean, low, high)
  assert explain.bootstrap(values, seed=4)[1:] != (low, high)


def test_bootstrap_of_columns_and_of_one_value():
  values = np.random.default_rng(0).normal(size=(50, 2))
  both = explain.bootstrap(values, resamples=200)
  np.testing.assert_allclose(both.mean, values.mean(0))
  for column in range(2):
    np.testing.assert_allclose(
      [both.low[column], both.high[column]],
      explain.bootstrap(values[:, column], resamples=200)[1:],
    )
  assert explain.bootstrap([0.5]) == (0.5, 0.5, 0.5)


def test_energy_wants_no_sign_and_has_no_scale():
  masks = np.zeros((1, 4, 4), bool)
  masks[:, :2] = True
  with pytest.raises(UserError, match='values below'):
    explain.energy_share(np.linspace(-1, 1, 16).reshape(1, 4, 4), masks)
  maps = np.random.default_rng(0).uniform(size=(1, 4, 4))
  for scale in (1e-300, 1e300):
    np.testing.assert_allclose(
      explain.energy_share(scale * maps, masks), explain.energy_share(maps, masks)
    )


def test_what_runs_on_the_host_says_so_inside_jit():
  maps, masks = jnp.ones((1, 4, 4)), jnp.ones((1, 4, 4), bool)
  for ask in (
    lambda m: explain.pointing_game(m, masks),
    lambda m: explain.energy_share(m, masks),
    lambda m: rank_correlation(m, m),
    lambda m: structural_similarity(m, m),
    lambda m: explain.bootstrap(m.ravel()).mean,
  ):
    with pytest.raises(UserError, match='not inside jit'):
      jax.jit(ask)(maps)


@pytest.mark.parametrize(
  ('values', 'options', 'words'),
  [
    ([], {}, 'N > 0'),
    ([1.0, np.nan], {}, 'finite'),
    (np.ma.masked_array([1.0, 100.0], [False, True]), {}, 'finite'),  # 100 is no value of it
    ([1.0], {'level': 1.0}, 'level'),
    ([1.0], {'resamples': 0}, 'resamples'),
  ],
)
def test_bootstrap_bad_input(values, options, words):
  with pytest.raises(UserError, match=words):
    explain.bootstrap(values, **options)


@given(st.integers(0, 1000), st.integers(1, 6))
def test_rank_correlation_is_spearmans(seed, levels):
  """Few levels give many ties."""
  rng = np.random.default_rng(seed)
  maps = np.round(rng.normal(size=(2, 3, 5, 4)) * levels) / levels
  got = rank_correlation(maps[0], maps[1], absolute=False)
  for i in range(3):
    if np.ptp(maps[:, i], axis=(1, 2)).all():
      expected = stats.spearmanr(maps[0, i], maps[1, i], axis=None).statistic
      np.testing.assert_allclose(got[i], expected, atol=1e-12)
  np.testing.assert_allclose(
    rank_correlation(maps[0], maps[1]), rank_correlation(np.abs(maps[0]), np.abs(maps[1]))
  )


@pytest.mark.parametrize('level', [0.0, 0.5, 1.0])
def test_constant_map_has_no_rank_correlation(level):
  """0 would be the best value of a check by random weights."""
  flat, other = np.full((1, 3, 3), level), np.arange(9.0).reshape(1, 3, 3)
  for pair in ((flat, other), (other, flat), (flat, flat)):
    assert np.isnan(rank_correlation(*pair)).tolist() == [True]
  both = [np.concatenate([flat, other]), np.concatenate([other, other])]
  np.testing.assert_allclose(rank_correlation(*both), [np.nan, 1])


def test_structural_similarity_by_scipys_filter():
  """SciPy's Gaussian of radius 5 is the window; its inner part never meets the border."""
  a, b = np.random.default_rng(0).uniform(size=(2, 1, 20, 24))
  b = 0.5 * a + 0.5 * b

  def mean(x):
    return ndimage.gaussian_filter(x[0], 1.5, radius=5)[5:-5, 5:-5]

  ma, mb = mean(a), mean(b)
  va, vb, cov = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
  c1, c2 = 1e-4, 9e-4
  expected = (2 * ma * mb + c1) * (2 * cov + c2) / (ma**2 + mb**2 + c1) / (va + vb + c2)
  np.testing.assert_allclose(structural_similarity(a, b), [expected.mean()], rtol=1e-10)
  np.testing.assert_allclose(structural_similarity(a, a), [1])
  np.testing.assert_allclose(structural_similarity(a[:, :4, :1], a[:, :4, :1]), [1])


def test_maps_to_compare_are_numbers():
  fine, bad = np.zeros((1, 3, 3)), np.full((1, 3, 3), np.inf)
  for compare in (rank_correlation, structural_similarity):
    with pytest.raises(UserError, match='not finite'):
      compare(fine, bad)
  with pytest.raises(UserError, match=r'maps are in \[0, 1\]'):
    structural_similarity(fine, fine - 1)


def test_maps_to_compare_have_one_shape():
  with pytest.raises(UserError, match='two batches of maps'):
    rank_correlation(np.ones((1, 3, 3)), np.ones((2, 3, 3)))
