"""Group-CAM beyond the reference file: batches, memory, clusters, odd shapes, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from sklearn.cluster import AgglomerativeClustering, KMeans

from rest_jax import UserError, explain, ops
from rest_jax.explain import group_cams, queries
from rest_jax.explain.group_cams import Settings, by_order

KERNEL = jax.random.normal(jax.random.key(0), (3, 3, 3, 12)) * 0.5
HEAD = jax.random.normal(jax.random.key(1), (12, 4))


def features(kernel, x):
  dimensions = ('NHWC', 'HWIO', 'NHWC')
  return jax.nn.relu(
    jax.lax.conv_general_dilated(x, kernel, (4, 4), 'SAME', dimension_numbers=dimensions)
  )


def head(weights, a):
  return 3 * jnp.tanh(a).mean((1, 2)) @ weights


PAIR = (Partial(features, KERNEL), Partial(head, HEAD))
softmax = jax.jit(lambda point, x: jax.nn.softmax(point(x)))
IMAGES = jax.random.uniform(jax.random.key(2), (3, 24, 20, 3))


def test_a_batch_is_its_images_whatever_the_query_batch():
  targets = jnp.array([1, 2, 3])
  maps = explain.group_cam(PAIR, IMAGES, targets, groups=5)
  assert maps.shape == (3, 24, 20)
  assert not explain.constant_maps(maps).any()
  for i in range(3):
    alone = explain.group_cam(PAIR, IMAGES[i : i + 1], int(targets[i]), groups=5)
    np.testing.assert_allclose(alone[0], maps[i], atol=1e-5)
  for query_batch in (1, 2, 7):
    again = explain.group_cam(PAIR, IMAGES, targets, groups=5, query_batch=query_batch)
    np.testing.assert_allclose(again, maps, atol=1e-5)


def test_targets_are_the_predicted_classes_by_default():
  predicted = jnp.argmax(explain.tap(PAIR)(IMAGES), axis=1)
  np.testing.assert_allclose(
    explain.group_cam(PAIR, IMAGES, groups=4),
    explain.group_cam(PAIR, IMAGES, predicted, groups=4),
    atol=1e-6,
  )


def test_jit_equals_no_jit():
  maps = explain.group_cam(PAIR, IMAGES[:1], groups=3, query_batch=2)
  outer = jax.jit(lambda pair, x: explain.group_cam(pair, x, groups=3, query_batch=2))
  np.testing.assert_allclose(outer(PAIR, IMAGES[:1]), maps, atol=1e-6)
  settings = Settings(3, 'paper', 70.0, 51, 50.0, 4)
  plain, _ = by_order.__wrapped__(explain.tap(PAIR), IMAGES[:1], None, settings)
  np.testing.assert_allclose(plain, maps, atol=1e-5)


def test_compiles_once_for_all_weights_and_targets():
  explain.group_cam(PAIR, IMAGES, [0, 0, 0], groups=6)
  compiled = by_order._cache_size()
  for scale in (0.5, 2.0):
    pair = (Partial(features, KERNEL * scale), Partial(head, HEAD))
    explain.group_cam(pair, IMAGES, [1, 2, 3], groups=6)
  assert by_order._cache_size() == compiled


def memory(images, groups, query_batch=4):
  point = explain.tap(PAIR)
  settings = Settings(groups, 'paper', 70.0, 51, 50.0, query_batch)
  compiled = by_order.lower(point, images, None, settings).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def test_memory_does_not_grow_with_groups_or_images():
  """But for the result, the small maps of a block of images and the list of queries."""
  image = 64 * 64 * 3 * 4
  few, many = (memory(jnp.zeros((4, 64, 64, 3)), groups) for groups in (2, 12))
  assert many - few < image
  batch = memory(jnp.zeros((32, 64, 64, 3)), 12)
  assert batch - many < 28 * 64 * 64 * 4 + image  # 28 more maps
  assert memory(jnp.zeros((4, 64, 64, 3)), 12, 8) > many + image


@pytest.mark.parametrize('method', ['kmeans', 'agglomerative'])
def test_clusters(method):
  """Against a plain loop over the clusters that scikit-learn gives."""
  target, groups = 2, 4
  seen = queries.layer_gradient(explain.tap(PAIR), IMAGES[:2], jnp.array([target] * 2))
  maps = explain.group_cam(
    PAIR, IMAGES[:2], target, groups=groups, grouping=method, variant='latest'
  )
  blurred = ops.gaussian_blur(IMAGES[:2])
  for i in range(2):
    weighted = np.asarray(seen.gradients[i]).mean((0, 1)) * np.asarray(seen.features[i])
    points = weighted.reshape(-1, 12).T
    cluster = {
      'kmeans': KMeans(groups, n_init=10, random_state=0),
      'agglomerative': AgglomerativeClustering(groups),
    }[method]
    labels = cluster.fit(points).labels_
    probability = lambda x: float(softmax(explain.tap(PAIR), x)[0, target])  # noqa: E731
    total = np.zeros((24, 20))
    for g in range(groups):
      small = np.maximum(weighted[..., labels == g].sum(-1), 0)
      if small.max() == small.min():
        continue
      mask = np.asarray(explain.upsample(jnp.asarray(small)[None], (24, 20)))[0]
      unit = ((mask - mask.min()) / (mask.max() - mask.min()))[..., None]
      alpha = probability((IMAGES[i] * unit + blurred[i] * (1 - unit))[None])
      total += max(alpha - probability(blurred[i : i + 1]), 0) * mask
    np.testing.assert_allclose(maps[i], explain.min_max(jnp.asarray(total)), atol=1e-4)


def test_clusters_of_channels_that_are_alike_and_inside_jit():
  dead = (Partial(features, KERNEL * 0), Partial(head, HEAD))
  maps = explain.group_cam(dead, IMAGES, groups=4, grouping='kmeans')
  assert explain.constant_maps(maps).all() and not maps.any()
  with pytest.raises(UserError, match='not inside jit'):
    jax.jit(lambda x: explain.group_cam(PAIR, x, grouping='kmeans'))(IMAGES)


@pytest.mark.parametrize('channels, groups, sizes', [(12, 4, [3] * 4), (10, 4, [3, 3, 3, 1])])
def test_groups_in_order(channels, groups, sizes):
  assert np.bincount(group_cams.in_order(channels, groups)).tolist() == sizes


def test_more_groups_than_channels_are_one_channel_each():
  np.testing.assert_allclose(
    explain.group_cam(PAIR, IMAGES, groups=99), explain.group_cam(PAIR, IMAGES, groups=12)
  )


@pytest.mark.parametrize('q', [0, 33.3, 50, 70, 100])
@pytest.mark.parametrize('n', [1, 2, 11, 49])
def test_percentile_is_numpys(n, q):
  maps = np.random.default_rng(0).normal(size=(2, 1, n)).astype(np.float32)
  ours = group_cams.percentile(jnp.asarray(maps), q)[..., 0, 0]
  np.testing.assert_allclose(ours, np.percentile(maps, q, axis=(1, 2)), atol=1e-6)


def test_a_map_of_one_pixel_says_nothing():
  pair = (lambda x: x.mean((1, 2), keepdims=True), lambda a: a[:, 0, 0] * jnp.arange(3.0)[None])
  maps = explain.group_cam(pair, IMAGES, groups=3)
  assert explain.constant_maps(maps).all() and not maps.any()


@pytest.mark.parametrize(
  'options, message',
  [
    (dict(variant='new'), "'paper' or 'latest', not 'new'"),
    (dict(grouping='random'), 'order, kmeans, agglomerative'),
    (dict(groups=0), 'groups is 1 or more'),
    (dict(percentile=101.0), '0 to 100'),
    (dict(query_batch=0), 'query_batch'),
    (dict(blur_size=50), 'odd size'),
  ],
)
def test_bad_options(options, message):
  with pytest.raises(UserError, match=message):
    explain.group_cam(PAIR, IMAGES, **options)


def test_devices_of_a_mesh_explain_their_own_images():
  """The gradient at the layer is not summed over devices, as that of a replicated value is."""
  images = jnp.concatenate([IMAGES, IMAGES[:1]])
  mesh, split = jax.sharding.Mesh(jax.devices(), ('batch',)), jax.sharding.PartitionSpec('batch')
  run = lambda x: explain.group_cam(PAIR, x, 2, groups=3)  # noqa: E731
  shared = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=split, out_specs=split))
  np.testing.assert_allclose(shared(images), run(images), atol=1e-5)
