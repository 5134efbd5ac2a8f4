"""RISE and occlusion against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rest_jax import UserError, explain
from rest_jax.explain.masking import patch_starts, random_masks
from rest_jax.explain.queries import block_sizes, sum_samples
from rest_jax.ops.resize import resize_bilinear


@pytest.fixture(scope='module')
def images():
  return np.random.default_rng(0).uniform(size=(2, 12, 10, 3)).astype(np.float32)


def corner(x):
  """Two classes: how bright the upper left is, and the rest."""
  part = x[:, :4, :4].mean((1, 2, 3))
  return jnp.stack([part, x.mean((1, 2, 3))], 1) * 8


def supporting(values):
  """What speaks for the class, over its largest."""
  return np.maximum(values, 0) / values.max((1, 2), keepdims=True)


def scores(x, target):
  return np.asarray(jax.nn.softmax(corner(jnp.asarray(x))))[:, target]


def test_rise_masks_are_crops_of_an_enlarged_grid(key):
  size, cells = (12, 10), 3
  got = random_masks(key, jnp.arange(4), size, cells, 0.5)
  for n in range(4):
    draws = jax.random.uniform(jax.random.fold_in(key, n), (2 + cells**2,))
    grid = (np.asarray(draws[2:]) < 0.5).astype(np.float32).reshape(1, cells, cells, 1)
    large = resize_bilinear(jnp.asarray(grid), (16, 16))[0, :, :, 0]
    y, x = (int(4 * draw) for draw in draws[:2])  # a cell is 12 / 3 px, and 10 / 3 rounded up
    np.testing.assert_allclose(got[n], large[y : y + 12, x : x + 10], atol=1e-6)


def test_rise_masks_show_a_pixel_with_the_probability_asked_for(key):
  masks = random_masks(key, jnp.arange(3000), (14, 14), 7, 0.25)
  assert masks.min() >= 0 and masks.max() <= 1
  np.testing.assert_allclose(masks.mean(0), 0.25, atol=0.03)  # 4 deviations of 3000 draws
  np.testing.assert_array_equal(masks[7], random_masks(key, jnp.array([7]), (14, 14), 7, 0.25)[0])


def test_rise_is_the_weighted_mean_of_its_masks(images, key):
  masks = np.asarray(random_masks(key, jnp.arange(9), (12, 10), 3, 0.4))
  fill = np.float32(0.3)
  expected = []
  for image, target in zip(images, (0, 1), strict=True):
    seen = masks[..., None] * image[None] + (1 - masks[..., None]) * fill
    found = scores(seen, target)
    equation_6 = (found[:, None, None] * masks).sum(0) / (9 * 0.4)
    expected.append(equation_6 - found.mean() * masks.sum(0) / (9 * 0.4))  # nothing: 0
  options = dict(masks=9, cells=3, visible=0.4, fill=fill, query_batch=5)
  got = explain.explain(corner, images, 'rise', [0, 1], key=key, **options)
  np.testing.assert_allclose(got.values, np.stack(expected), atol=1e-5)
  np.testing.assert_allclose(got.maps, supporting(np.stack(expected)), atol=1e-4)
  same = explain.rise(corner, images, [0, 1], key=key, **options)
  np.testing.assert_array_equal(same, got.maps)


def test_rise_finds_what_matters(key):
  maps = explain.rise(corner, np.ones((1, 12, 12, 3), np.float32), 0, key=key, masks=400)
  y, x = divmod(int(maps[0].argmax()), 12)
  assert y < 5 and x < 5


@pytest.mark.parametrize('query_batch', [3, 100])
def test_occlusion_is_the_mean_drop_of_the_patches(images, query_batch):
  patch, stride, fill = 4, 3, np.float32(0.5)
  expected = []
  for image, target in zip(images, (1, 0), strict=True):
    whole = scores(image[None], target)[0]
    drop, over = np.zeros((12, 10)), np.zeros((12, 10))
    for y in (0, 3, 6, 8):
      for x in (0, 3, 6):
        covered = image.copy()
        covered[y : y + patch, x : x + patch] = fill
        drop[y : y + patch, x : x + patch] += whole - scores(covered[None], target)[0]
        over[y : y + patch, x : x + patch] += 1
    expected.append(drop / over)
  options = dict(patch=patch, stride=stride, fill=fill, query_batch=query_batch)
  got = explain.explain(corner, images, 'occlusion', [1, 0], **options)
  np.testing.assert_allclose(got.values, np.stack(expected), atol=1e-5)
  assert got.values.min() < 0
  np.testing.assert_allclose(got.maps, supporting(np.stack(expected)), atol=1e-4)


@pytest.mark.parametrize('name', ['rise', 'occlusion'])
def test_no_effect_is_zero_where_something_speaks_against_the_class(name):
  """The upper left speaks against class 1, nothing speaks for it, the rest has no effect."""

  def model(x):
    return jnp.stack([8 * x[:, :4, :4].mean((1, 2, 3)), 0 * x[:, 0, 0, 0]], 1)

  options = {'masks': 600} if name == 'rise' else {'fill': np.zeros(3), 'patch': 2}
  found = explain.explain(model, np.ones((1, 16, 16, 3), np.float32), name, 1, **options)
  assert found.values[0, :4, :4].max() < 0
  if name == 'occlusion':
    assert found.constant[0] and not found.maps.any()
    assert not found.values[0, 6:, 6:].any()
  else:
    chance = np.abs(found.values[0, 9:, 9:]).max()
    assert chance < 0.5 * np.abs(found.values[0, :3, :3]).min()
  other = explain.explain(model, np.ones((1, 16, 16, 3), np.float32), name, 0, **options)
  np.testing.assert_allclose(other.values, -found.values, atol=1e-5)
  assert other.maps[0, 1, 1] > 0.8 and other.maps[0, 9:, 9:].max() < 0.5


def test_patches_cover_every_pixel():
  for side in range(3, 20):
    for patch in range(1, side + 1):
      for stride in range(1, patch + 1):
        starts = patch_starts(side, patch, stride)
        covered = (starts[:, None] + np.arange(patch)).ravel()
        assert set(covered.tolist()) == set(range(side))


def test_queries_are_counted(images):
  shape = images.shape[1:]
  occlusion, rise = explain.METHODS['occlusion'], explain.METHODS['rise']
  assert occlusion.queries(shape, {'patch': 4, 'stride': 3}) == 1 + 4 * 3
  assert rise.queries(shape, {'masks': 9}) == 10


@pytest.mark.parametrize('name', ['rise', 'occlusion'])
def test_batch_equals_single_images(name, images):
  options = {'masks': 10} if name == 'rise' else {}
  together = explain.METHODS[name].fn(corner, images, 0, **options)
  for i in range(len(images)):
    alone = explain.METHODS[name].fn(corner, images[i : i + 1], 0, query_batch=3, **options)
    np.testing.assert_allclose(alone[0], together[i], atol=2e-5)


@pytest.mark.parametrize('name', ['rise', 'occlusion'])
def test_model_that_sees_nothing_has_a_constant_map(name, images):
  """Also where its logits differ in the last place from image to image."""

  def blind(x):
    noise = 1 + 1e-7 * jnp.sign(jnp.sin(1e4 * x.mean((1, 2, 3))))
    return noise[:, None] * jnp.arange(1.0, 4.0)[None]

  options = {'masks': 50} if name == 'rise' else {}
  found = explain.explain(blind, images, name, **options)
  assert found.constant.all() and not found.values.any()


@pytest.mark.parametrize(
  ('name', 'options', 'words'),
  [
    ('rise', {'masks': 0}, 'got 0, 7'),
    ('rise', {'visible': 0.0}, 'visible'),
    ('occlusion', {'patch': 11}, '1 to 10 px'),
    ('occlusion', {'patch': 3, 'stride': 4}, 'stride 4'),
    ('occlusion', {'fill': np.zeros((5, 5, 3))}, 'does not fit'),
  ],
)
def test_bad_options(images, name, options, words):
  with pytest.raises(UserError, match=words):
    explain.METHODS[name].fn(corner, images, **options)


@pytest.mark.parametrize('query_batch', [1, 2, 5, 64])
def test_every_sample_of_every_item_counts_once(query_batch):
  def contribution(items, samples, weights):
    return items * jnp.sum(weights * 10.0 ** samples.astype(jnp.float32))

  got = sum_samples(contribution, jnp.arange(1.0, 4.0), 5, query_batch)
  assert got.tolist() == [11111, 22222, 33333]


def test_blocks_fit_the_query_batch():
  for images in (1, 3, 50, 100):
    for count in (1, 20, 225):
      for most in (1, 7, 64):
        p, r = block_sizes(images, count, most)
        assert 1 <= p * r <= most
        assert p * -(-images // p) < images + p and r * -(-count // r) < count + r


WEIGHTS = np.random.default_rng(5).normal(size=(3, 4)).astype(np.float32)
SHARED = (
  'gradient',
  'guided_backprop',
  'smooth_grad',
  'integrated_gradients',
  'smooth_integrated_gradients',
  'rise',
  'occlusion',
)
FEW = {'smooth_grad': 'samples', 'smooth_integrated_gradients': 'samples', 'rise': 'masks'}


@pytest.mark.parametrize(
  ('name', 'classes'), [*((name, 4) for name in SHARED), ('gradient', 1), ('rise', 1)]
)
def test_every_map_is_finite_and_in_range(name, classes):
  """Constant and black images, logits that saturate, one class."""

  def model(x):
    return 1e10 * jnp.mean(jax.nn.relu(x) @ WEIGHTS[:, :classes], (1, 2))

  options = {FEW[name]: 4} if name in FEW else {}
  rng = np.random.default_rng(0)
  noise = rng.uniform(size=(8, 8, 3)).astype(np.float32)
  images = np.stack(
    [noise, 0 * noise, 0 * noise + 0.5, noise**9, 1 - noise, 1e-30 * noise, 0 * noise + 1]
  )
  maps = explain.METHODS[name].fn(model, images, **options)
  assert maps.shape == images.shape[:3]
  assert bool(jnp.isfinite(maps).all()) and float(maps.min()) >= 0 and float(maps.max()) <= 1
  constant = explain.constant_maps(maps)
  np.testing.assert_array_equal(constant | (maps.max((1, 2)) == 1), True)
