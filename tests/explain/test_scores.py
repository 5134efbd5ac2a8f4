"""What is explained: a class by softmax or sigmoid, or a score of one's own, of any outputs."""

import dataclasses

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_weights import drawn
from flax import linen as nn
from jax.tree_util import Partial

from rest_jax import UserError, explain

IMAGES = jax.random.uniform(jax.random.key(1), (2, 16, 16, 3))
MIX = np.random.default_rng(0).uniform(-0.4, 1, (3, 4)).astype(np.float32)
FEW = {
  'rise': {'masks': 12},
  'smooth_grad': {'samples': 2},
  'smooth_grad_cam_pp': {'samples': 2},
  'integrated_gradients': {'steps': 64},
  'smooth_integrated_gradients': {'samples': 256, 'noise': 0.01},
}
MEASURES = {
  'insertion_deletion': (explain.insertion_deletion, {'pixels_per_step': 64}),
  'drop_increase': (explain.drop_increase, {}),
  'road': (explain.road, {'percentiles': (50,)}),
}
MAPS = np.random.default_rng(3).uniform(size=(2, 16, 16)).astype(np.float32)


def features(x):
  return jax.nn.relu(x[:, ::2, ::2] @ MIX - 0.3)


def logits(a):
  return jnp.tanh(a).mean((1, 2)) @ MIX.T * 3


def boxes(a):
  """A detector: so many places a picture, each with a box and its confidence."""
  return {'boxes': a.reshape(len(a), -1, 4), 'names': ('digit',), 'count': None}


def confidence(outputs):
  return outputs['boxes'][:, 9:30].sum((1, 2))


@pytest.mark.parametrize('name', explain.list_methods())
def test_a_score_is_explained_as_a_logit_is_by_every_method(name):
  """A score that is one logit of a model has that class's map, where logits are what is compared;
  a score of a detector's outputs has a map; and there are no classes."""
  options = FEW.get(name, {})
  model = (features, boxes)
  whole = lambda x: boxes(features(x))  # noqa: E731
  needs_layer = explain.METHODS[name].needs_layer
  found = explain.explain(
    model if needs_layer else whole, IMAGES, name, score=confidence, **options
  )
  assert found.maps.shape == (2, 16, 16) and not found.constant.all()
  np.testing.assert_allclose(found.logits[:, 0], confidence(whole(IMAGES)), rtol=1e-5)
  assert found.targets.tolist() == [0, 0]
  with pytest.raises(UserError, match='a score of your own has no classes'):
    explain.explain(model, IMAGES, name, 1, score=confidence)
  if name in ('grad_cam', 'gradient', 'ablation_cam', 'eigen_cam', 'guided_backprop'):
    pair = (features, logits)
    by_class = explain.explain(pair, IMAGES, name, 2).maps
    by_score = explain.explain(pair, IMAGES, name, score=lambda z: z[:, 2]).maps
    np.testing.assert_allclose(by_score, by_class, atol=1e-5)


@pytest.mark.parametrize('name', MEASURES)
def test_a_score_in_every_measure(name):
  """The probability as a score of one's own is what the class gets."""
  measure, options = MEASURES[name]
  model = lambda x: logits(features(x))  # noqa: E731
  by_class = measure(model, IMAGES, MAPS, 1, **options)
  by_score = measure(model, IMAGES, MAPS, score=lambda z: jax.nn.softmax(z)[:, 1], **options)
  for one, other in zip(by_class, by_score, strict=True):
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_part_of_a_segmentation_and_a_regression():
  """The gradient of the part is nowhere else; a number an image needs no class."""
  plane = lambda x: x[..., :2] ** 2  # noqa: E731
  part = lambda out: out[:, 4:8, 2:6, 1].mean((1, 2))  # noqa: E731
  maps = np.asarray(explain.gradient(plane, IMAGES, score=part))
  assert maps[:, 4:8, 2:6].any() and not maps[:, 8:].any() and not maps[:, :, 6:].any()
  depth = lambda x: x[:, :4].mean((1, 2, 3))  # noqa: E731
  maps = explain.occlusion(depth, IMAGES, score=lambda out: out, fill='black', patch=4)
  assert maps[0, :3].min() > 0.2 and not maps[:, 8:].any()


@pytest.mark.parametrize(
  ('score', 'words'),
  [
    (lambda z: z, r'one number an image, \(2,\), got an array \(2, 3\)'),
    (lambda z: z.sum(), r'got an array \(\)'),
    (lambda z: z.argmax(1), 'real numbers, which have a gradient, got int32'),
    (lambda z: (z[:, 0], z[:, 1]), r'got a tuple of \(2,\), \(2,\)'),
    (3, 'not int'),
  ],
)
def test_what_is_no_score(score, words):
  with pytest.raises(UserError, match=words) as caught:
    explain.gradient(lambda x: logits(features(x)), IMAGES, score=score)
  assert '\n' not in str(caught.value)


def one_logit(a):
  return 4 * jnp.tanh(a).mean((1, 2)) @ MIX[:1].T - 1


@pytest.mark.parametrize('name', explain.list_methods())
def test_one_logit_has_the_sigmoid(name):
  """The maps are those of two classes whose logits are it and 0: the same probability."""
  options = FEW.get(name, {})
  two = lambda a: jnp.concatenate([one_logit(a), 0 * one_logit(a)], 1)  # noqa: E731
  one, other = (
    explain.explain((features, head), IMAGES, name, 0, **options) for head in (one_logit, two)
  )
  np.testing.assert_allclose(one.maps, other.maps, atol=2e-4)
  assert not one.constant.any() and one.targets.tolist() == [0, 0]


@pytest.mark.parametrize('name', MEASURES)
@pytest.mark.parametrize('kind', ['one column', 'one number', 'multi-label'])
def test_measures_of_sigmoids(name, kind):
  measure, options = MEASURES[name]
  column = lambda x: one_logit(features(x))  # noqa: E731
  two = lambda x: jnp.concatenate([column(x), 0 * column(x)], 1)  # noqa: E731
  expected = measure(two, IMAGES, MAPS, 0, **options)
  if kind == 'one column':
    got = measure(column, IMAGES, MAPS, **options)
  elif kind == 'one number':
    got = measure(lambda x: column(x)[:, 0], IMAGES, MAPS, **options)
  else:
    labels = lambda x: jnp.concatenate([0.7 + 0 * column(x), column(x)], 1)  # noqa: E731
    got = measure(labels, IMAGES, MAPS, 1, output='sigmoid', **options)
  for one, other in zip(got, expected, strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5)
  if name == 'insertion_deletion':
    whole = jax.nn.sigmoid(column(IMAGES))[:, 0]
    np.testing.assert_allclose(got.deletion[:, 0], whole, atol=1e-6)


@pytest.mark.parametrize(
  ('options', 'words'),
  [
    ({'output': 'relu'}, "'softmax' or 'sigmoid', got 'relu'"),
    ({'output': 'softmax'}, 'softmax of one logit is always 1'),
    ({'output': 'sigmoid', 'score': lambda z: z[:, 0]}, 'output has no effect'),
    ({'targets': 1}, r'one logit, class 0; .* score=lambda logits: -logits'),
  ],
)
def test_what_one_logit_cannot_be_asked(options, words):
  with pytest.raises(UserError, match=words):
    explain.occlusion(lambda x: one_logit(features(x)), IMAGES, **options)


@flax.struct.dataclass
class Answer:
  """As Hugging Face's models answer."""

  logits: jax.Array
  hidden: jax.Array


CLEAR = {
  'tuple': lambda z, a: (z, a),
  'dict of two matrices': lambda z, a: {'logits': z, 'embedding': a.mean((1, 2))},
  'an attribute': lambda z, a: Answer(z, a.mean((1, 2))),
  'with statistics': lambda z, a: (z, {'batch_stats': {'mean': jnp.ones(4)}}),
  'with a count': lambda z, a: {'out': z, 'number': 3, 'ids': jnp.zeros(z.shape, jnp.int32)},
}


@pytest.mark.parametrize('name', CLEAR)
def test_logits_among_other_outputs(name):
  model = lambda x: CLEAR[name](logits(features(x)), features(x))  # noqa: E731
  plain = lambda x: logits(features(x))  # noqa: E731
  np.testing.assert_allclose(explain.tap(model)(IMAGES), plain(IMAGES), atol=1e-6)
  found = explain.explain(model, IMAGES, 'gradient', 1)
  np.testing.assert_allclose(found.maps, explain.gradient(plain, IMAGES, 1), atol=1e-5)
  curves = explain.insertion_deletion(model, IMAGES, MAPS, 1, pixels_per_step=128)
  assert curves.insertion.shape == (2, 3)


@pytest.mark.parametrize(
  'out',
  [
    lambda z: (z, 2 * z),
    lambda z: {'a': z, 'b': z[:, :2]},
    lambda z: {'a': z[0]},
    lambda z: (),
    lambda z: z[:, None],
  ],
)
def test_outputs_that_do_not_say_where_the_logits_are(out):
  with pytest.raises(UserError, match='score=lambda outputs') as caught:
    explain.gradient(lambda x: out(logits(features(x))), IMAGES)
  assert '\n' not in str(caught.value) and 'logits (2, K), got' in str(caught.value)


class Layers(nn.Module):
  """A layer that gives its map and more, as recurrent and attention layers do."""

  extra: str = 'tuple'

  @nn.compact
  def __call__(self, x):
    y = Layer(self.extra, name='layer')(x)
    if self.extra:
      y = y['map'] if isinstance(y, dict) else y[0]
    return nn.Dense(3, name='head')(jnp.tanh(y).mean((1, 2)))


class Layer(nn.Module):
  extra: str

  @nn.compact
  def __call__(self, x):
    y = nn.relu(nn.Conv(4, (3, 3), (2, 2), name='conv')(x))
    many = {
      '': y,
      'tuple': (y, y.mean((1, 2))),
      'the same twice': (y, y),
      'dict': {'map': y, 'weights': y[:, 0]},
      'two maps': (y, 2 * y),
    }
    return many[self.extra]


@pytest.mark.parametrize('extra', ['tuple', 'dict', 'the same twice'])
@pytest.mark.parametrize('name', ['grad_cam', 'group_cam', 'ablation_cam'])
def test_a_layer_that_gives_more_than_its_map(extra, name):
  variables = drawn(Layers(''), IMAGES)
  plain, model = (Partial(Layers(kind).apply, variables) for kind in ('', extra))
  assert explain.tap(model).resolve(IMAGES.shape) == 'layer'
  expected = explain.explain(plain, IMAGES, name, 1, layer='layer').maps
  np.testing.assert_allclose(explain.explain(model, IMAGES, name, 1).maps, expected, atol=1e-5)


def test_a_layer_that_gives_two_maps_is_said():
  model = Partial(Layers('two maps').apply, drawn(Layers(''), IMAGES))
  with pytest.raises(UserError, match=r"layer 'layer' gives a tuple of \(2, 8, 8, 4\), .*inside"):
    explain.grad_cam(model, IMAGES, layer='layer')
  assert explain.tap(model).resolve(IMAGES.shape) == 'layer/conv'
  pair = (lambda x: (features(x), 2 * features(x)), lambda a: logits(a[0]))
  with pytest.raises(UserError, match='not one map'):
    explain.grad_cam(pair, IMAGES)


def test_weights_stay_data_and_one_score_compiles_once():
  traces = []

  def score(out):
    traces.append(1)
    return out[:, 0]

  model = lambda w, x: logits(features(x)) * w  # noqa: E731
  for scale in (1.0, 2.0):
    explain.gradient(Partial(model, jnp.float32(scale)), IMAGES, score=score)
    traced = len(traces)
  explain.gradient(Partial(model, jnp.float32(3.0)), IMAGES, score=score)
  assert len(traces) - traced <= 1  # its shape is looked at, and nothing compiled
  with pytest.raises(dataclasses.FrozenInstanceError):
    explain.tap(model, score=score).score = None
