"""Taps: what is recorded, what is perturbed, and what cannot be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_weights import drawn
from flax import linen as nn
from jax.tree_util import Partial

from rest_jax import Classifier, UserError, explain
from rest_jax.explain import queries
from rest_jax.explain.taps import infer_grid

layer_gradient = jax.jit(queries.layer_gradient)


class Stage(nn.Module):
  width: int
  stride: int
  wrap: str = ''

  @nn.compact
  def __call__(self, x):
    conv = {'remat': nn.remat, 'jit': nn.jit}.get(self.wrap, lambda cls: cls)(nn.Conv)
    return nn.relu(conv(self.width, (3, 3), (self.stride, self.stride), name='conv')(x))


class Net(nn.Module):
  """Stages of 16 x 16, 8 x 8 and 4 x 4 on 32 px; `wrap` transforms their convolutions."""

  wrap: str = ''

  @nn.compact
  def __call__(self, x):
    for i in (1, 2, 3):
      x = Stage(4 * i, 2, self.wrap, name=f'stage{i}')(x)
    return nn.Dense(5, name='head')(x.mean((1, 2)))


def linen(module, size=32):
  """A model's function of images as one pytree, and images."""
  images = jax.random.uniform(jax.random.key(1), (2, size, size, 3))
  return Partial(module.apply, drawn(module, images)), images


def test_records_and_perturbs_the_named_module():
  model, images = linen(Net())
  point = explain.tap(model, 'stage2')
  logits, features = point.perturbed(images)
  assert features.shape == point.feature_shape(images) == (2, 8, 8, 8)
  np.testing.assert_allclose(logits, model(images), atol=1e-6)
  np.testing.assert_allclose(point(images), logits, atol=1e-6)
  np.testing.assert_array_equal(point.features(images), features)

  def rest(features):
    stage = Stage(12, 2).bind({'params': model.args[0]['params']['stage3']})
    dense = model.args[0]['params']['head']
    return stage(features).mean((1, 2)) @ dense['kernel'] + dense['bias'][None]

  delta = jax.random.normal(jax.random.key(2), features.shape)
  shifted, same = point.perturbed(images, delta)
  np.testing.assert_allclose(shifted, rest(features + delta), atol=1e-5)
  np.testing.assert_array_equal(same, features)
  seen = layer_gradient(point, images, jnp.array([1, 4]))
  for i, target in enumerate((1, 4)):
    expected = jax.grad(lambda f, t=target: rest(f)[0, t])(features[i : i + 1])
    np.testing.assert_allclose(seen.gradients[i], expected[0], atol=1e-6)


def test_weights_are_data_and_a_tap_of_a_tap_is_itself():
  model, images = linen(Net())
  traces = []

  @jax.jit
  def run(point, images):
    traces.append(1)
    return point.features(images)

  doubled = Partial(model.func, jax.tree.map(lambda x: 2 * x, model.args[0]))
  run(explain.tap(model, 'stage1'), images)
  run(explain.tap(doubled, 'stage1'), images)
  assert len(traces) == 1
  point = explain.tap(model, 'stage1')
  assert explain.tap(point) is point
  assert explain.tap(point, 'stage2').layer == 'stage2'


def test_logits_are_one_program_whatever_is_looked_at():
  model, images = linen(Net())
  before = queries._logits._cache_size()
  points = (
    model,
    explain.tap(model),
    explain.tap(model, 'stage1'),
    explain.tap(model, grid=(2, 2)),
  )
  for point in (*points, explain.tap(model, output='sigmoid')):
    np.testing.assert_array_equal(
      queries.logits_once(point, images), queries._logits(points[1], images)
    )
  assert queries._logits._cache_size() == before + 1
  halved = explain.tap(model, score=lambda outputs: outputs[:, 1] / 2)
  np.testing.assert_allclose(2 * queries.logits_once(halved, images)[:, 0], model(images)[:, 1])


def test_a_jitted_function_is_looked_into():
  model, images = linen(Net())
  jitted = jax.jit(lambda x: model(x))
  jitted(images)  # the second call would run no Python at all
  np.testing.assert_allclose(
    explain.tap(jitted, 'stage2').features(images),
    explain.tap(model, 'stage2').features(images),
    atol=1e-6,
  )


def test_lists_layers_in_order():
  model, images = linen(Net())
  layers = explain.list_layers(model, images.shape[1:])
  assert list(layers)[:4] == ['stage1/conv', 'stage1', 'stage2/conv', 'stage2']
  assert layers['stage3'] == (1, 4, 4, 12)
  assert 'head' not in layers
  assert explain.list_layers(model, images.shape)['stage3'] == (2, 4, 4, 12)
  with pytest.raises(UserError, match='image_shape'):
    explain.list_layers(model)


def test_default_is_the_smallest_map_of_seven_or_the_largest():
  model, _ = linen(Net())
  for size, layer in (
    (32, 'stage2'),
    (64, 'stage3'),
    (56, 'stage3'),
    (54, 'stage3'),
    (12, 'stage1'),
  ):
    assert explain.tap(model).resolve((1, size, size, 3)) == layer


@pytest.mark.parametrize('name', ['rest_lite', 'restv2_tiny', 'resnet18', 'resnet18_cifar'])
def test_default_of_our_models_is_the_last_stage(name):
  from rest_jax import create_model

  module = create_model(name, 3)
  variables = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
  model = Partial(module.apply, variables)
  assert explain.tap(model).resolve((1, 224, 224, 3)) == 'stage4'
  assert explain.tap(model).feature_shape(jnp.zeros((1, 224, 224, 3)))[1] in (7, 28)


def test_layers_of_a_classifier_need_no_shape():
  classifier = Classifier.load('digit_scenes')
  assert explain.list_layers(classifier)['stage2'] == (1, 8, 8, 64)
  assert explain.tap(classifier).mean == classifier.mean


def test_names():
  model, images = linen(Net())
  with pytest.raises(UserError, match="no layer 'stge2'; did you mean stage2"):
    explain.grad_cam(model, images, layer='stge2')
  with pytest.raises(UserError, match='did you mean stage1'):
    explain.grad_cam(model, images, layer='xyz')
  with pytest.raises(UserError, match=r'head gives \(2, 5\), which is no map'):
    explain.grad_cam(model, images, layer='head')


@pytest.mark.parametrize('wrap', ['remat', 'jit'])
def test_a_transformed_module_is_tapped_around_but_not_inside(wrap):
  model, images = linen(Net())
  wrapped = Partial(Net(wrap).apply, model.args[0])
  expected = layer_gradient(explain.tap(model, 'stage2'), images, None).gradients
  assert explain.tap(wrapped).resolve(images.shape) == 'stage2'
  seen = layer_gradient(explain.tap(wrapped, 'stage2'), images, None)
  np.testing.assert_allclose(seen.gradients, expected, atol=1e-6)
  with pytest.raises(UserError, match='runs inside jit, remat, scan or vmap'):
    explain.grad_cam(wrapped, images, layer='stage2/conv')


class Scanned(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.Conv(4, (3, 3), (2, 2), name='stem')(x)
    block = nn.scan(Body, variable_axes={'params': 0}, split_rngs={'params': True}, length=2)
    x, _ = block(name='blocks')(x, None)
    return x.mean((1, 2))


class Body(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    return nn.Conv(4, (3, 3), name='conv')(x), None


def test_a_scanned_module_cannot_be_tapped():
  model, images = linen(Scanned())
  assert explain.tap(model).resolve(images.shape) == 'stem'
  with pytest.raises(UserError, match='runs inside'):
    explain.grad_cam(model, images, layer='blocks/conv')


class Shared(nn.Module):
  @nn.compact
  def __call__(self, x):
    block = nn.Conv(3, (3, 3), name='block')
    return block(nn.relu(block(nn.relu(x)))).mean((1, 2))


def test_a_module_called_twice_is_tapped_at_its_last_call():
  model, images = linen(Shared(), 8)
  point = explain.tap(model, 'block')
  logits, features = point.perturbed(images, jnp.ones(point.feature_shape(images)))
  np.testing.assert_allclose(features.mean((1, 2)), model(images), atol=1e-6)
  np.testing.assert_allclose(logits, model(images) + 1, atol=1e-6)


class Tokens(nn.Module):
  class_tokens: int

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(6, (8, 8), (8, 8), name='patches')(x)
    x = x.reshape(x.shape[0], -1, 6)
    x = jnp.concatenate([jnp.ones((x.shape[0], self.class_tokens, 6)), x], axis=1)
    x = Mix(name='block')(x)
    return nn.Dense(4, name='head')(x[:, 0])


class Mix(nn.Module):
  @nn.compact
  def __call__(self, x):
    return x + nn.Dense(x.shape[1], name='mix')(x.swapaxes(1, 2)).swapaxes(1, 2)


PAD = ((0, 0), (0, 0), (0, 1), (0, 0))


@pytest.mark.parametrize(
  ('tokens', 'size', 'grid'),
  [
    *((196 + extra, (224, 224), (14, 14)) for extra in range(6)),
    (202, (224, 224), None),
    (49, (32, 32), (7, 7)),
    (4, (32, 32), (2, 2)),
    (1, (32, 32), None),
    (13, (32, 24), (4, 3)),
    (50, (32, 24), (8, 6)),
    (9, (32, 24), None),
    (98 + 1, (112, 224), (7, 14)),
  ],
)
def test_the_plane_of_tokens_is_inferred(tokens, size, grid):
  assert infer_grid(tokens, size) == grid


@pytest.mark.parametrize('class_tokens', [0, 1])
def test_tokens_on_a_grid(class_tokens):
  images = jax.random.uniform(jax.random.key(1), (2, 32, 24, 3))
  module = Tokens(class_tokens)
  model = Partial(module.apply, drawn(module, images))
  point = explain.tap(model)  # 32 x 24 px are 4 x 3 patches of 8 px, which is inferred
  assert explain.tap(model, grid=(4, 3)).feature_shape(images) == (2, 4, 3, 6)
  assert point.resolve(images.shape) == 'block'
  assert point.feature_shape(images) == (2, 4, 3, 6)
  seen = layer_gradient(point, images, None)
  # Only the first token reaches the head.
  first = np.abs(seen.gradients[:, 0, 0]).max()
  assert np.abs(seen.gradients).max() == first
  assert (first > 0) == (class_tokens == 0)
  shapes = explain.list_layers(model, (32, 24, 3))
  assert shapes['block'] == (1, 12 + class_tokens, 6)
  maps = explain.eigen_cam(model, images, layer='block', grid=(4, 3))
  assert maps.shape == (2, 32, 24)
  odd = images[:, :, :23]  # 4 x 2 patches and as much class token: no plane of 23:32
  with pytest.raises(UserError, match=r'say grid=\(rows, columns\)'):
    explain.tap(Partial(lambda x: model(jnp.pad(x, PAD))), 'block').feature_shape(odd)
  with pytest.raises(UserError, match=r'works on tokens .*; its layers: .*block \(2, 1'):
    explain.tap(Partial(lambda x: model(jnp.pad(x, PAD)))).feature_shape(odd)
  with pytest.raises(UserError, match='holds more than'):
    explain.grad_cam(model, images, layer='block', grid=(7, 7))
  with pytest.raises(UserError, match='two positive integers'):
    explain.grad_cam(model, images, layer='block', grid=(0, 12))


def test_a_pair():
  kernel = jax.random.normal(jax.random.key(0), (3, 5))
  pair = (lambda x: x[:, ::4, ::4], lambda a: a.mean((1, 2)) @ kernel)
  images = jax.random.uniform(jax.random.key(1), (2, 16, 16, 3))
  seen = layer_gradient(explain.tap(pair), images, jnp.array([0, 2]))
  np.testing.assert_array_equal(seen.features, images[:, ::4, ::4])
  np.testing.assert_allclose(seen.gradients[1, 2, 3], kernel[:, 2] / 16, rtol=1e-6)
  with pytest.raises(UserError, match='one layer only'):
    explain.tap(pair, 'stage1')


def test_a_function_without_modules():
  images = jnp.ones((1, 8, 8, 3))
  with pytest.raises(UserError, match='pair'):
    explain.grad_cam(lambda x: x.mean((1, 2)), images)
  with pytest.raises(UserError, match='not int'):
    explain.grad_cam(3, images)
  with pytest.raises(UserError, match=r'logits \(1, K\)'):
    explain.grad_cam(lambda x: x, images)


@pytest.mark.parametrize(
  'images, message',
  [
    (np.zeros((1, 8, 8, 3), np.uint8), 'divided by 255'),
    (np.zeros((8, 8, 3), np.float32), 'leading axis'),
    (np.zeros((0, 8, 8, 3), np.float32), 'no images'),
  ],
)
def test_bad_images(images, message):
  model, _ = linen(Net())
  with pytest.raises(UserError, match=message):
    explain.grad_cam(model, images)


@pytest.mark.parametrize(
  'targets, message',
  [
    (5, 'no class 5: the model has 5'),
    ([0, -1], 'no class -1'),
    ([0, 1, 2], '2 of them'),
    (0.5, 'None'),
  ],
)
def test_bad_targets(targets, message):
  model, images = linen(Net())
  with pytest.raises(UserError, match=message):
    explain.grad_cam(model, images, targets)


def test_methods_and_options_by_name():
  model, images = linen(Net())
  result = explain.explain(model, images, 'grad_cam', [1, 2], layer='stage1')
  np.testing.assert_allclose(
    result.maps, explain.grad_cam(model, images, np.array([1, 2]), layer='stage1'), atol=1e-6
  )
  assert result.targets.tolist() == [1, 2]
  np.testing.assert_allclose(result.logits, model(images), atol=1e-6)
  assert explain.explain(model, images, 'ablation_cam').queries == 9  # 8 channels and the image
  with pytest.raises(UserError, match='did you mean grad_cam'):
    explain.explain(model, images, 'gradcam')
  with pytest.raises(UserError, match="no option 'query'; it has query_batch"):
    explain.explain(model, images, 'grad_cam', query=3)
  assert explain.list_methods()[0] == 'group_cam'
  assert set(explain.list_methods()) == set(explain.METHODS)


@pytest.mark.parametrize('n, size', [(1, 4), (4, 4), (5, 4), (9, 2)])
def test_chunks(n, size):
  sizes = []

  def double(item):
    sizes.append(item[0].shape[0])
    return {'out': 2 * item[0]}

  items = (jnp.arange(3.0 * n).reshape(n, 3), None)
  np.testing.assert_array_equal(queries.chunked(double, items, size)['out'], 2 * items[0])
  assert len(sizes) == 1 and sizes[0] <= size
  with pytest.raises(UserError, match='1 or more'):
    queries.chunked(double, items, 0)


class Regions(nn.Module):
  """Two parts of every image go on as images of their own, as the regions of a detector do."""

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(4, (3, 3), strides=2, name='picture')(x))
    parts = jnp.concatenate([x[:, :8, :8], x[:, 8:, 8:]])
    parts = nn.Conv(5, (3, 3), name='part')(parts)
    return (parts[: len(x)] + parts[len(x) :]).mean((1, 2))


def test_a_layer_of_regions_is_no_map_of_images():
  images = np.random.default_rng(0).uniform(size=(2, 32, 32, 3)).astype(np.float32)
  model = Regions()
  variables = drawn(model, images)
  seen = explain.tap(lambda x: model.apply(variables, x))
  assert seen.resolve(images.shape) == 'picture'
  assert explain.grad_cam(seen, images).shape == (2, 32, 32)
  with pytest.raises(UserError, match=r'part gives .*for 2 images.*not a map an image'):
    explain.grad_cam(seen, images, layer='part')


class First(nn.Module):
  """A block that takes and gives its channels first."""

  width: int

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(self.width, (3, 3), strides=2)(x.transpose(0, 2, 3, 1))
    return nn.relu(x).transpose(0, 3, 1, 2)


class AllFirst(nn.Module):
  width: int

  @nn.compact
  def __call__(self, x):
    x = First(self.width, name='stage1')(x.transpose(0, 3, 1, 2))
    return nn.Dense(3)(x.mean((2, 3)))


@pytest.mark.parametrize('size', [(24, 16), (16, 16), (16, 40)])
@pytest.mark.parametrize('method', ['grad_cam', 'group_cam', 'eigen_cam'])
def test_a_map_with_its_channels_first_is_refused(size, method):
  images = jax.random.uniform(jax.random.key(0), (2, *size, 3))
  module = AllFirst(23)
  model = Partial(module.apply, drawn(module, images))
  with pytest.raises(UserError, match=r'stage1 gives .* channels first; name a layer') as caught:
    explain.explain(model, images, method, layer='stage1')
  assert '\n' not in str(caught.value)
  with pytest.raises(UserError, match='channels first'):
    explain.explain(model, images, method)
  assert explain.explain(model, images, method, layer='stage1/Conv_0').maps.any()
  pair = (
    lambda x: explain.tap(model, 'stage1/Conv_0').features(x),
    lambda a: jax.nn.relu(a).mean((1, 2))[:, :3],
  )
  assert explain.explain(pair, images, method).maps.shape == (2, *size)


@pytest.mark.parametrize(
  ('size', 'shape'),
  [
    ((16, 16), (8, 8, 8)),  # either reading
    ((16, 16), (8, 8, 16)),
    ((24, 16), (6, 4, 9)),
    ((24, 16), (10, 6, 4)),  # rounded, may be a map of four channels
    ((25, 17), (7, 5, 5)),
    ((16, 16), (4, 8, 5)),
    ((16, 16), (1, 1, 1)),
    ((1, 64), (1, 8, 512)),
  ],
)
def test_no_map_is_refused_that_may_have_its_channels_last(size, shape):
  point = explain.tap((lambda x: jnp.zeros((len(x), *shape)) + x.mean(), lambda a: a.mean((1, 2))))
  assert point.feature_shape(jnp.zeros((2, *size, 3))) == (2, *shape)


def test_a_grid_is_the_users_word_on_a_map():
  pair = (lambda x: jnp.zeros((len(x), 8, 16, 16)) + x.mean(), lambda a: a.mean((1, 2)))
  images = jnp.zeros((2, 32, 32, 3))
  with pytest.raises(UserError, match=r'say grid=\(8, 16\)'):
    explain.tap(pair).feature_shape(images)
  assert explain.tap(pair, grid=(8, 16)).feature_shape(images) == (2, 8, 16, 16)
