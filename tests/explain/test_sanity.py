"""Sanity checks: what is re-initialised, in which order, and what is compared."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_weights import drawn
from flax import linen as nn

from rest_jax import Classifier, UserError, explain
from rest_jax.data.digit_scenes import scenes
from rest_jax.explain.metrics.sanity import replaced, top_layers

TRACES = []


class Network(nn.Module):
  """Top modules whose order of running is not the alphabet's, with statistics."""

  @nn.compact
  def __call__(self, x, train: bool = False):
    TRACES.append(1)
    x = x + self.param('bias', nn.initializers.normal(0.1), (3,))[None, None, None]
    x = nn.relu(nn.Conv(8, (3, 3), name='stem')(x))
    x = nn.BatchNorm(use_running_average=not train, name='norm')(x)
    x = nn.relu(nn.Conv(8, (3, 3), name='body')(x))
    return nn.Dense(4, name='head')(x.mean((1, 2)))


@dataclasses.dataclass(frozen=True)
class Model:
  """The least that a sanity check asks of a model."""

  module: nn.Module
  variables: Any

  def __call__(self, x):
    return self.module.apply(self.variables, 2 * x - 1)


jax.tree_util.register_dataclass(Model, data_fields=['variables'], meta_fields=['module'])


@pytest.fixture(scope='module')
def images():
  return np.random.default_rng(0).uniform(size=(2, 12, 12, 3)).astype(np.float32)


@pytest.fixture(scope='module')
def model(images):
  module = Network()
  return Model(module, drawn(module, images, seed=7))


def test_cascade_goes_from_the_last_layer_to_the_first(model, images):
  check = explain.sanity_check(model, images, 'gradient')
  assert [row.layer for row in check.rows] == ['head', 'body', 'norm', 'stem', 'bias']
  assert top_layers(model, images.shape) == tuple(row.layer for row in check.rows)
  np.testing.assert_array_equal(check.targets, np.asarray(model(images)).argmax(1))
  np.testing.assert_allclose(check.original, explain.gradient(model, images, check.targets))
  for row in check.rows:
    np.testing.assert_allclose(
      row.rank_correlation, explain.rank_correlation(check.original, row.maps)
    )
    np.testing.assert_allclose(row.ssim, explain.structural_similarity(check.original, row.maps))


@pytest.mark.parametrize('mode', ['cascading', 'independent'])
def test_each_step_is_the_model_with_those_layers_new(model, images, mode):
  fresh = drawn(model.module, images, seed=3)
  check = explain.sanity_check(model, images, 'gradient', 1, mode=mode, fresh=fresh)
  for i, row in enumerate(check.rows):
    names = [r.layer for r in check.rows[: i + 1]] if mode == 'cascading' else [row.layer]
    variables = jax.tree.map(lambda x: x, model.variables)
    for name in names:
      for collection in variables:
        if name in variables[collection]:
          variables[collection][name] = fresh[collection][name]
    expected = explain.gradient(Model(model.module, variables), images, 1)
    np.testing.assert_allclose(row.maps, expected, atol=1e-6)
  if mode == 'cascading':
    last = explain.gradient(Model(model.module, fresh), images, 1)
    np.testing.assert_allclose(check.rows[-1].maps, last, atol=1e-6)


def test_same_weights_leave_the_maps(model, images):
  check = explain.sanity_check(model, images, 'gradient', fresh=model.variables)
  for row in check.rows:
    np.testing.assert_allclose(row.rank_correlation, 1)
    np.testing.assert_allclose(row.ssim, 1)
    assert not row.constant.any()


def test_all_steps_share_one_compilation(model, images):
  layers = ['head', 'body', 'stem']
  explain.sanity_check(model, images[:1], 'grad_cam', 2, layers=layers[:1], layer='body')
  traced = len(TRACES)
  check = explain.sanity_check(model, images[:1], 'grad_cam', 2, layers=layers, layer='body')
  assert len(TRACES) == traced and len(check.rows) == 3


def test_nested_path_and_every_collection():
  trained = {'params': {'a': {'x': {'k': 0}, 'xy': {'k': 0}}}, 'stats': {'a': {'x': {'m': 0}}}}
  fresh = jax.tree.map(lambda _: 1, trained)
  assert replaced(trained, fresh, ['a/x']) == {
    'params': {'a': {'x': {'k': 1}, 'xy': {'k': 0}}},
    'stats': {'a': {'x': {'m': 1}}},
  }
  assert replaced(trained, fresh, ['a']) == fresh


@pytest.mark.parametrize(
  ('options', 'words'),
  [
    ({'mode': 'random'}, "got 'random'"),
    ({'layers': ['tail']}, "under 'tail'; at the top are bias, body"),
    ({'fresh': {'params': {}}}, 'not of this model'),
    ({'method': 'magic'}, 'no method'),
  ],
)
def test_bad_options(model, images, options, words):
  with pytest.raises(UserError, match=words):
    explain.sanity_check(model, images, **options)


def test_model_without_weights(images):
  with pytest.raises(UserError, match='needs a Classifier'):
    explain.sanity_check(lambda x: jnp.mean(x, (1, 2)), images)


def test_group_cam_forgets_with_the_zoo_model():
  """All layers new: the rank correlation with the original map is under 0.3."""
  classifier = Classifier.load('digit_scenes')
  images = scenes('test', 8)
  pixels = np.concatenate([classifier.preprocess(scene.image) for scene in images])
  check = explain.sanity_check(classifier, pixels, 'group_cam', groups=8)
  assert {'stem', 'stage1', 'stage4', 'head'} <= {row.layer for row in check.rows}
  assert np.nanmean(check.rows[-1].rank_correlation) < 0.3
  assert np.nanmean(check.rows[0].rank_correlation) < 1
  for row in check.rows:  # an empty map is neither alike nor changed
    np.testing.assert_array_equal(np.isnan(row.rank_correlation), row.constant)
    np.testing.assert_array_equal(np.isnan(row.ssim), row.constant)
