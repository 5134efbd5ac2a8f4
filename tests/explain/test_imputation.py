"""ROAD: the imputed pixels against SciPy's sparse solver, the curves against a plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import sparse
from scipy.sparse import linalg

from rest_jax import UserError, explain
from rest_jax.explain.metrics import impute

WEIGHTS = {(y, x): 1 / 6 if 0 in (y, x) else 1 / 12 for y in (-1, 0, 1) for x in (-1, 0, 1)}
del WEIGHTS[0, 0]


def solved(image, removed):
  """Equation by equation: sum of w (x_i - x_j) over the neighbours j in the image is 0."""
  height, width = removed.shape
  pixels = [tuple(p) for p in np.argwhere(removed)]
  number = {p: i for i, p in enumerate(pixels)}
  matrix = sparse.lil_array((len(pixels), len(pixels)))
  right = np.zeros((len(pixels), image.shape[-1]))
  for (y, x), i in number.items():
    for (dy, dx), weight in WEIGHTS.items():
      near = (y + dy, x + dx)
      if 0 <= near[0] < height and 0 <= near[1] < width:
        matrix[i, i] += weight
        if near in number:
          matrix[i, number[near]] -= weight
        else:
          right[i] += weight * image[near]
  out = image.astype(np.float64)
  out[removed] = linalg.spsolve(matrix.tocsr(), right).reshape(right.shape)
  return out


@pytest.mark.parametrize('share', [0.1, 0.5, 0.9])
def test_imputation_is_the_sparse_solution(share):
  rng = np.random.default_rng(0)
  images = rng.uniform(size=(3, 24, 20, 3)).astype(np.float32)
  removed = rng.uniform(size=(3, 24, 20)) < share
  removed[1] = np.arange(24 * 20).reshape(24, 20) < share * 24 * 20  # one large hole
  removed[2] = False
  got = impute(images, removed)
  for i in range(3):
    np.testing.assert_allclose(got[i], solved(images[i], removed[i]), atol=1e-4)
  np.testing.assert_array_equal(got[2], images[2])
  np.testing.assert_array_equal(got[~removed], images[~removed])


def test_plane_is_imputed_exactly():
  """A linear ramp satisfies the equations within the image."""
  ramp = np.broadcast_to(
    np.linspace(0, 1, 16, dtype=np.float32)[None, :, None, None], (1, 16, 16, 1)
  )
  removed = np.zeros((1, 16, 16), bool)
  removed[0, 3:12, 4:13] = True
  np.testing.assert_allclose(impute(ramp, removed), ramp, atol=1e-5)


def test_nothing_left_is_finite():
  assert np.isfinite(impute(np.ones((1, 4, 4, 2), np.float32), np.ones((1, 4, 4), bool))).all()


def corner(x):
  return jnp.stack([x[:, :4, :4].mean((1, 2, 3)), x.mean((1, 2, 3))], 1) * 8


@pytest.fixture(scope='module')
def scenes():
  rng = np.random.default_rng(0)
  return rng.uniform(size=(3, 8, 9, 3)).astype(np.float32), rng.uniform(size=(3, 8, 9))


def test_plain_loop(scenes, key):
  images, maps = scenes
  percentiles, noise, targets = (25, 60), 0.1, np.array([0, 1, 0])
  disturbance = noise * np.asarray(jax.random.normal(key, images.shape[1:]))
  got = explain.road(
    corner, images, maps, targets, key=key, percentiles=percentiles, noise=noise, query_batch=4
  )
  for i in range(3):
    order = np.argsort(-maps[i].ravel())
    for j, percentile in enumerate(percentiles):
      count = round(percentile * 72 / 100)
      for curve, gone in ((got.morf, order[:count]), (got.lerf, order[72 - count :])):
        removed = np.zeros(72, bool)
        removed[gone] = True
        removed = removed.reshape(8, 9)
        image = solved(images[i], removed) + removed[..., None] * disturbance
        expected = jax.nn.softmax(corner(image[None].astype(np.float32)))[0, targets[i]]
        np.testing.assert_allclose(curve[i, j], expected, atol=1e-4)
  whole = np.take_along_axis(np.asarray(jax.nn.softmax(corner(images))), targets[:, None], 1)[:, 0]
  np.testing.assert_allclose(got.whole, whole, atol=1e-6)
  np.testing.assert_allclose(got.score, (got.lerf - got.morf).mean(1) / 2, atol=1e-6)


def test_a_good_map_scores_above_its_opposite():
  """The class is a bright corner: what covers it loses the class, what spares it does not."""
  images = np.full((1, 16, 16, 3), 0.2, np.float32)
  images[:, :4, :4] = 1
  good = np.zeros((1, 16, 16))
  good[:, :4, :4] = 1
  scores = [explain.road(corner, images, maps, 0).score[0] for maps in (good, -good)]
  assert scores[0] > 0.1
  np.testing.assert_allclose(scores[0], -scores[1], atol=0.05)


def test_nothing_removed_changes_nothing(scenes):
  images, maps = scenes
  got = explain.road(corner, images, maps, percentiles=(0,))
  np.testing.assert_allclose(got.morf[:, 0], got.whole, atol=1e-6)
  np.testing.assert_allclose(got.score, 0, atol=1e-6)


@pytest.mark.parametrize(
  ('options', 'words'),
  [
    ({'percentiles': ()}, 'percentiles'),
    ({'percentiles': (10, 100)}, 'percentiles'),
    ({'noise': -0.1}, 'noise'),
    ({'targets': 5}, 'no class 5'),
  ],
)
def test_bad_options(scenes, options, words):
  with pytest.raises(UserError, match=words):
    explain.road(corner, *scenes, **options)
