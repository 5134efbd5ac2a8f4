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


def blocks(rng, height, width):
  """Removed in squares of 4 x 4, half of them."""
  coarse = rng.uniform(size=(-(-height // 4), -(-width // 4))) < 0.5
  return coarse.repeat(4, 0).repeat(4, 1)[:height, :width]


@pytest.mark.parametrize('size', [(1, 1), (1, 11), (9, 1), (7, 5), (17, 30)])
def test_any_size_and_mask_is_the_sparse_solution(size):
  """Scattered pixels, blocks, the inside without its border, all but a pixel or two."""
  rng = np.random.default_rng(size[0])
  inside = np.zeros(size, bool)
  inside[1:-1, 1:-1] = True
  last, ends = np.ones(size, bool), np.ones(size, bool)
  last[rng.integers(size[0]), rng.integers(size[1])] = False
  ends[0, 0] = ends[-1, -1] = False
  removed = np.stack([rng.uniform(size=size) < 0.7, blocks(rng, *size), inside, last, ends])
  removed[:, 0, 0] &= ~removed.all((1, 2))
  images = rng.uniform(size=(5, *size, 2)).astype(np.float32)
  got = impute(images, removed)
  for image, gone, found in zip(images, removed, got, strict=True):
    expected = solved(image, gone) if gone.any() else image
    np.testing.assert_allclose(found, expected, atol=3e-5)
    np.testing.assert_array_equal(found[~gone], image[~gone])


def test_one_pixel_left_is_everywhere():
  images = np.random.default_rng(0).uniform(size=(1, 64, 64, 1)).astype(np.float32)
  removed = np.ones((1, 64, 64), bool)
  removed[0, 40, 9] = False
  np.testing.assert_array_equal(impute(images, removed), np.full_like(images, images[0, 40, 9, 0]))


def test_nothing_left_is_the_mean():
  images = np.random.default_rng(0).uniform(size=(2, 5, 4, 2)).astype(np.float32)
  removed = np.ones((2, 5, 4), bool)
  removed[1, 2, 2] = False
  got = impute(images, removed)
  np.testing.assert_allclose(got[0], np.broadcast_to(images[0].mean((0, 1)), (5, 4, 2)), atol=1e-6)
  np.testing.assert_array_equal(got[1], np.broadcast_to(images[1, 2, 2], (5, 4, 2)))


def test_contrast_alone_counts():
  """A thousand times as far from zero, the picture is imputed as well as float32 knows it."""
  rng = np.random.default_rng(0)
  images = rng.uniform(size=(1, 64, 64, 1)).astype(np.float32)
  removed = rng.uniform(size=(1, 64, 64)) < 0.8
  far = impute(images + 1000, removed) - 1000
  np.testing.assert_allclose(far, impute(images, removed), atol=5e-4)


def test_what_is_removed_is_not_read():
  images = np.full((1, 64, 64, 1), 0.25, np.float32)
  removed = np.zeros((1, 64, 64), bool)
  removed[0, 2:40, 1:50] = True
  images[removed] = np.nan
  np.testing.assert_array_equal(impute(images, removed), 0.25)


@pytest.mark.parametrize('shape', ['scattered', 'hole'])
def test_few_steps_solve_a_picture(shape):
  """Conjugate gradients alone take over 20 steps and over 100 to come as near."""
  rng = np.random.default_rng(0)
  images = rng.uniform(size=(1, 64, 64, 1)).astype(np.float32)
  removed = rng.uniform(size=(1, 64, 64)) < 0.9
  if shape == 'hole':
    removed[:] = True
    removed[:, :, 0] = False
  few, many = (impute(images, removed, tolerance=0.0, iterations=n) for n in (10, 40))
  np.testing.assert_allclose(few, many, atol=1e-4)
  np.testing.assert_allclose(few[0], solved(images[0], removed[0]), atol=1e-4)


def test_transformations_do_not_change_it():
  """Under vmap and jit; whoever shares the batch."""
  rng = np.random.default_rng(0)
  images = rng.uniform(size=(3, 9, 6, 2)).astype(np.float32)
  removed = rng.uniform(size=(3, 9, 6)) < [[[0.2]], [[0.6]], [[0.95]]]
  whole = impute(images, removed)
  mapped = jax.jit(jax.vmap(lambda x, gone: impute(x[None], gone[None])[0]))(images, removed)
  alone = jnp.concatenate([impute(images[i : i + 1], removed[i : i + 1]) for i in range(3)])
  np.testing.assert_allclose(mapped, whole, atol=1e-6)
  np.testing.assert_allclose(alone, whole, atol=1e-6)


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
