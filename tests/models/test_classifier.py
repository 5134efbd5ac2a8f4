"""Classifier: a function of pixels, a pytree."""

import dataclasses
import gc
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from rest_jax import ops
from rest_jax.errors import UserError
from rest_jax.models import classifier as classifier_module
from rest_jax.models import model_dir
from rest_jax.models.classifier import Classifier, check_scale
from rest_jax.models.model_config import ModelConfig
from rest_jax.models.registry import create_model

OPTIONS = dict(width=4, depths=(1, 1, 1, 1))
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture(scope='module')
def classifier():
  rng = np.random.default_rng(0)
  specs = model_dir.abstract_tensors(create_model('resnet18', 5, **OPTIONS))
  tensors = {n: jnp.asarray(rng.uniform(0, 1, s.shape), s.dtype) for n, s in specs.items()}
  variables = model_dir.unflatten(tensors)
  return Classifier.create(
    'resnet18', variables, num_classes=5, overrides=OPTIONS, mean=MEAN, std=STD, input_size=32
  )


@pytest.fixture(scope='module')
def images():
  return np.random.default_rng(0).uniform(size=(2, 32, 32, 3)).astype(np.float32)


def over_devices(array):
  mesh = jax.sharding.Mesh(np.array(jax.devices()[: len(array)]), 'x')
  place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('x'))
  return jax.device_put(array, place)


def test_normalisation_is_inside(classifier, images):
  normalised = (images - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
  apply = jax.jit(lambda v, x: classifier.module.apply(v, x, train=False))
  expected = apply(classifier.variables, normalised)
  logits = jax.jit(lambda c, x: c(x))(classifier, images)
  assert logits.shape == (2, 5) and logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_is_a_pytree_with_weights_as_leaves(classifier, images):
  leaves = jax.tree.leaves(classifier)
  assert len(leaves) == len(jax.tree.leaves(classifier.variables))
  doubled = jax.tree.map(lambda x: x * 2, classifier)
  assert isinstance(doubled, Classifier) and doubled.config == classifier.config
  call = jax.jit(lambda c, x: c(x))
  first, second = call(classifier, images), call(doubled, images)
  assert call._cache_size() == 1
  assert (first != second).any()


def test_gradients_and_vmap(classifier, images):
  def loss(x, c):
    return jax.nn.logsumexp(c(x), axis=-1).sum()

  grad = jax.jit(jax.grad(loss))(images, classifier)
  assert grad.shape == images.shape and (grad != 0).any()
  one_by_one = jax.jit(lambda c, x: jax.vmap(lambda image: c(image[None])[0])(x))
  together = jax.jit(lambda c, x: c(x))
  np.testing.assert_allclose(
    one_by_one(classifier, images), together(classifier, images), rtol=1e-4, atol=1e-6
  )


@pytest.fixture
def compiled(monkeypatch):
  """The function that classifiers compile themselves with, its programs counted from 0."""
  function = jax.jit(
    classifier_module._forward, static_argnames=('module', 'config', 'method', 'form')
  )
  function.clear_cache()  # shared by all that compile the same function
  monkeypatch.setattr(classifier_module, '_compiled', function)
  return function


def test_a_call_by_itself_compiles_once_for_each_shape(classifier, images, compiled):
  direct = jax.jit(lambda c, x: c(x))(classifier, images)
  for other in (classifier, jax.tree.map(lambda x: x, classifier)):
    np.testing.assert_allclose(other(images), direct, rtol=1e-5, atol=1e-6)
  renamed = dataclasses.replace(classifier, class_names=tuple('abcde'))
  doubled = jax.tree.map(lambda x: x * 2, classifier)
  assert (doubled(images) != renamed(images)).any()
  assert compiled._cache_size() == 1
  classifier(images[:1])
  assert compiled._cache_size() == 2
  with ops.use_form('plain'):  # read while tracing, so a program of its own
    classifier(images)
  assert compiled._cache_size() == 3


def test_a_call_inside_of_transformations_is_part_of_them(classifier, images, compiled):
  jax.eval_shape(lambda x: classifier(x), images)
  jax.eval_shape(lambda c: c(images), classifier)
  jax.eval_shape(jax.grad(lambda x: classifier(x).sum()), images)
  jax.eval_shape(jax.vmap(lambda image: classifier(image[None])[0]), images)
  assert compiled._cache_size() == 0


def test_a_call_that_is_looked_into_is_not_hidden_in_a_program(classifier, images, compiled):
  seen = []

  def note(call, args, kwargs, context):
    seen.append(context.module.path)
    return call(*args, **kwargs)

  with jax.disable_jit(), nn.intercept_methods(note):
    classifier(images[:1])
  assert ('stage1', 'block0') in seen and compiled._cache_size() == 0


def test_programs_hold_no_weights(images, compiled):
  class Probe(nn.Module):
    @nn.compact
    def __call__(self, x, train):
      return nn.Dense(2)(x.mean((1, 2)))

  def leave():
    variables = Probe().init(jax.random.key(0), images, train=False)
    one = Classifier(Probe(), variables, ModelConfig('probe', 2), ('no', 'yes'))
    one(images)
    return weakref.ref(variables['params']['Dense_0']['kernel'])

  kept = [leave() for _ in range(3)]
  gc.collect()
  assert [one() for one in kept] == [None] * 3 and compiled._cache_size() == 1


def test_gradient_of_the_weights(classifier, images):
  def loss(params, c):
    return dataclasses.replace(c, variables=c.variables | {'params': params})(images).sum()

  grads = jax.jit(jax.grad(loss))(classifier.variables['params'], classifier)
  np.testing.assert_allclose(grads['head']['bias'], 2.0, rtol=1e-6)


def test_features(classifier, images):
  maps = jax.jit(lambda c, x: c.features(x))(classifier, images)
  assert [m.shape for m in maps] == [(2, 8, 8, 4), (2, 4, 4, 8), (2, 2, 2, 16), (2, 1, 1, 32)]


@pytest.mark.parametrize(
  'images',
  [
    np.zeros((32, 32, 3), np.float32),
    np.zeros((1, 32, 32, 4), np.float32),
    np.zeros((1, 3, 32, 32), np.float32),
    np.zeros((1, 32, 32, 3), np.uint8),
    np.zeros((1, 32, 32, 3), bool),
    [[0.5]],
    'image.png',
  ],
)
def test_wrong_images_are_refused(images, classifier):
  with pytest.raises(UserError, match=r'floats in \[0, 1\] of shape \(B, H, W, 3\)'):
    classifier(images)


def test_levels_of_0_to_255_are_no_images(classifier, images):
  classifier(jnp.asarray(images))  # an array of that shape was right: no reason to trust the next
  levels = np.float32(255) * images
  arrays = (levels, jnp.asarray(levels), jnp.asarray(levels, jnp.bfloat16), over_devices(levels))
  for call in (classifier, classifier.features, classifier.normalise):
    for array in arrays:
      with pytest.raises(UserError, match='divided by 255 first'):
        call(array)


def test_images_of_an_accelerator_are_looked_at_once_a_shape(monkeypatch, images):
  """To look at each would wait for the device; one that was wrong is looked at again."""
  monkeypatch.setattr(classifier_module, '_RIGHT', set())
  monkeypatch.setattr(classifier_module, '_on_cpu', lambda array: False)
  levels = jnp.asarray(255 * images)
  for _ in range(2):
    with pytest.raises(UserError, match='divided by 255 first'):
      check_scale(levels)
  check_scale(jnp.asarray(images))
  check_scale(levels)
  with pytest.raises(UserError, match='divided by 255 first'):
    check_scale(levels[:1])


def test_other_floats_are_computed_in_float32(classifier, images):
  for dtype in (np.float64, jnp.bfloat16):
    assert classifier.normalise(images.astype(dtype)).dtype == jnp.float32


def test_too_small_images_are_refused(classifier):
  with pytest.raises(UserError, match='32 px'):
    classifier(np.zeros((1, 20, 20, 3), np.float32))


def test_a_module_of_ones_own(tmp_path, images):
  class Mine(nn.Module):
    @nn.compact
    def __call__(self, x, train):
      return nn.Dense(2)(x.mean((1, 2)))

  variables = Mine().init(jax.random.key(0), images, train=False)
  mine = Classifier(Mine(), variables, ModelConfig('mine', 2), ('no', 'yes'))
  assert mine(images).shape == (2, 2)
  with pytest.raises(UserError, match="'mine' is not in the registry"):
    mine.save(tmp_path / 'mine')


def test_variables_of_another_model_are_not_saved(classifier, tmp_path):
  other = Classifier.create('resnet18', classifier.variables, num_classes=4, overrides=OPTIONS)
  with pytest.raises(UserError, match=r'not those of resnet18: .*params/head/bias'):
    other.save(tmp_path / 'other')


def test_class_names_may_come_one_after_another(classifier):
  options = dict(num_classes=5, overrides=OPTIONS, class_names=(name for name in 'abcde'))
  found = Classifier.create('resnet18', classifier.variables, **options)
  assert found.class_names == tuple('abcde')


def test_create_checks_its_arguments(classifier):
  def create(**options):
    Classifier.create(
      'resnet18', classifier.variables, **dict(num_classes=5, overrides=OPTIONS) | options
    )

  for options, message in (
    (dict(class_names=['a', 'b']), '2 class names for 5 classes'),
    (dict(class_names=['a\nb', *'cdef']), 'one line of text'),
    (dict(class_names=['', *'cdef']), 'one line of text'),
    (dict(class_names=[1, *'cdef']), 'one line of text'),
    (dict(class_names='abcde'), "a list, one a class, not the text 'abcde'"),
    (dict(num_classes=-1), 'num_classes is a whole number from 0'),
    (dict(num_classes=5.0), 'num_classes is a whole number from 0'),
    (dict(mean=(124.0, 116.0, 104.0), std=(58.0, 57.0, 57.0)), 'are divided by 255'),
    (dict(mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0)), 'are divided by 255'),
    (dict(overrides={'widht': 3}), "no option 'widht'"),
    (dict(mean=(0.5,), std=(0.5, 0.5)), 'a pair a channel'),
    (dict(std=(0.5, 0.0, 0.5)), 'std above 0'),
    (dict(input_size=0), 'input_size'),
    (dict(input_size=64.0), 'whole numbers'),
    (dict(resize='stretch'), 'resize is one of'),
    (dict(interpolation='nearest'), 'interpolation one of'),
    (dict(crop_pct=1.5), 'crop_pct'),
  ):
    with pytest.raises(UserError, match=message):
      create(**options)


def test_numbers_of_numpy_are_pythons(classifier, tmp_path):
  overrides = OPTIONS | {'width': np.int64(OPTIONS['width'])}
  options: dict[str, Any] = dict(mean=np.array(MEAN), std=jnp.array([0.25, 0.5, 1.0]))
  options |= dict(num_classes=np.int32(5), overrides=overrides)
  made = Classifier.create('resnet18', classifier.variables, **options)
  assert made.module == classifier.module and made.config.std == (0.25, 0.5, 1.0)
  made.save(tmp_path / 'model')
  assert Classifier.load(tmp_path / 'model').config == made.config


def test_runtime_options_are_not_part_of_the_model(classifier):
  overrides = OPTIONS | {'dtype': jnp.bfloat16, 'remat': True, 'bn_axis_name': 'batch'}
  made = Classifier.create(
    'resnet18', classifier.variables, num_classes=5, overrides=overrides, mean=MEAN, std=STD,
    input_size=32,
  )  # fmt: skip
  assert made.config == classifier.config and made.module == classifier.module


def test_reads_as_plain_attributes(classifier):
  assert (classifier.mean, classifier.std) == (MEAN, STD)
  assert (classifier.input_size, classifier.num_classes) == (32, 5)
  assert classifier.class_names == ('0', '1', '2', '3', '4')


def test_shows_itself_in_one_line(classifier):
  """Weights in a console or a notebook are thousands of lines; nor does a trace have any."""
  count = sum(leaf.size for leaf in jax.tree.leaves(classifier.variables['params']))
  line = repr(classifier)
  assert (
    len(line) < 120 and f'; {count:,} parameters)' in line and '5 classes: 0, 1, 2, ...;' in line
  )
  seen = []
  jax.eval_shape(lambda model: seen.append(repr(model)), classifier)
  assert seen == [line]
  assert 'parameters' not in repr(jax.tree.map(lambda _: object(), classifier))
  names = tuple(f'{"n" * 90} {i}\n' for i in range(5))
  many = dataclasses.replace(classifier, class_names=names)
  assert len(repr(many)) < 200 and '\n' not in repr(many) and '...' in repr(many)


def test_from_pytorch_needs_to_know_the_model(tmp_path):
  with pytest.raises(UserError, match='Say its architecture'):
    Classifier.from_pytorch(tmp_path / 'weights.pth')
  with pytest.raises(UserError, match='there is no checkpoint'):
    Classifier.from_pytorch(tmp_path / 'rest_small.pth')
