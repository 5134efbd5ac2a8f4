"""What no map may hang on: the logits' scale, the batch, the place in it; and what is said."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from explain_toys import FEW
from hypothesis import given
from hypothesis import strategies as st
from jax.tree_util import Partial

from rest_jax import UserError, explain
from rest_jax.explain.checking import EmptyMaps, Incomplete
from rest_jax.explain.maps import ROUNDING, support

RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(3, 6)).astype(np.float32)
HEAD = RNG.normal(size=(6, 3)).astype(np.float32)
IMAGES = RNG.uniform(size=(3, 8, 8, 3)).astype(np.float32)
MEASURES = (explain.insertion_deletion, explain.drop_increase, explain.road)


def features(x):
  return jax.nn.relu(x[:, ::2, ::2] @ KERNEL - 0.2)


def head(weights, a):
  return jnp.tanh(a).mean((1, 2)) @ weights['scale'] + weights['bias'][None]


def model(scale=1.0, bias=0.0):
  weights = {'scale': jnp.float32(scale) * HEAD, 'bias': jnp.full(3, bias, jnp.float32)}
  return features, Partial(head, weights)


def whole(pair):
  return Partial(lambda head, x: head(features(x)), pair[1])


def run(name, pair, images, targets=1, **options):
  asked = pair if explain.METHODS[name].needs_layer else whole(pair)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', Incomplete)  # of so few gradients
    return explain.explain(asked, images, name, targets, **FEW.get(name, {}), **options)


# Grad-CAM++ explains exp(logit), and perturbations compare probabilities: theirs is no ratio.
BY_RATIO = (
  *('grad_cam', 'xgrad_cam', 'hires_cam', 'layer_cam', 'ablation_cam', 'eigen_cam'),
  *('gradient', 'guided_backprop', 'smooth_grad'),
  *('integrated_gradients', 'smooth_integrated_gradients'),
)


@functools.cache
def at_one(name, squared=False):
  return np.asarray(run(name, model(), IMAGES, **({'squared': True} if squared else {})).maps)


@pytest.mark.parametrize('name', BY_RATIO)
@given(power=st.integers(-22, 22))
def test_the_logits_scale_changes_no_map_of_gradients(name, power):
  maps = run(name, model(10.0**power), IMAGES).maps
  np.testing.assert_allclose(maps, at_one(name), atol=1e-4)
  if name == 'smooth_grad':
    maps = run(name, model(10.0**power), IMAGES, squared=True).maps
    np.testing.assert_allclose(maps, at_one(name, True), atol=1e-4)


@pytest.mark.parametrize('name', ['grad_cam_pp', 'smooth_grad_cam_pp'])
def test_a_small_scale_takes_grad_cam_pp_to_its_limit(name):
  """With alpha = 1/2 everywhere: the mean of ReLU(gradient) weighs the channels."""
  seen = np.asarray(features(IMAGES), np.float64)
  gradients = (1 - np.tanh(seen) ** 2) * HEAD[:, 1]
  small = np.maximum((np.maximum(gradients, 0).sum((1, 2), keepdims=True) * seen).sum(-1), 0)
  expected = explain.min_max(explain.upsample(jnp.asarray(small, jnp.float32), (8, 8)))
  options = {'noise': 0.0} if name.startswith('smooth') else {}
  for scale in (1e-6, 1e-20):
    np.testing.assert_allclose(run(name, model(scale), IMAGES, **options).maps, expected, atol=1e-4)


@pytest.mark.parametrize('name', explain.list_methods())
def test_a_map_does_not_depend_on_its_batch_or_place(name):
  """Alone, with others, in another place, in chunks of another size."""
  found = np.asarray(run(name, model(), IMAGES).maps)
  alone = run(name, model(), IMAGES[1:2]).maps[0]
  others = np.concatenate([IMAGES[2:], 0.2 * IMAGES[:1], IMAGES[1:2], 0 * IMAGES[:1]])
  among = run(name, model(), others, query_batch=3).maps[2]
  np.testing.assert_allclose(alone, found[1], atol=1e-4)
  np.testing.assert_allclose(among, found[1], atol=1e-4)


BROKEN = {
  'bias': lambda: model(bias=np.nan),
  'infinite bias': lambda: model(bias=np.inf),
  'weights': lambda: model(np.nan),
  'overflow': lambda: model(3e38),
}


@pytest.mark.parametrize('name', explain.list_methods())
def test_logits_that_are_not_finite_are_no_empty_map(name):
  for kind in BROKEN if name in ('grad_cam', 'eigen_cam', 'rise') else ('bias',):
    with pytest.raises(
      UserError, match=r'no finite map of .*logits there are nan or inf'
    ) as caught:
      run(name, BROKEN[kind](), IMAGES)
    assert '\n' not in str(caught.value) and str(caught.value).startswith(name)


@pytest.mark.parametrize('name', ['grad_cam', 'gradient', 'smooth_grad', 'integrated_gradients'])
def test_gradients_that_are_not_finite_are_no_empty_map(name):
  """The root of 0: its value is fine, its slope is not."""

  def root(a):
    return jnp.stack([jnp.sqrt(jnp.abs(a - a)).sum((1, 2, 3)), a.mean((1, 2, 3))], 1)

  asked = (features, root) if name == 'grad_cam' else lambda x: root(features(x))
  with pytest.raises(UserError, match='logits are, so a gradient'):
    explain.explain(asked, IMAGES, name, 0, **FEW.get(name, {}))


def test_the_images_that_broke_are_named():
  images = IMAGES.copy()
  images[1] = 1
  broken = lambda x: jnp.stack([1 / (1 - x.mean((1, 2, 3))), x[:, 0, 0, 0]], 1)  # noqa: E731
  with pytest.raises(UserError, match='of image 1: 1 of 2 logits'):
    explain.gradient(broken, images, 1)
  inside = jax.jit(lambda x: explain.gradient(broken, x, 1))(images)
  assert jnp.isnan(inside[1]).all() and jnp.isfinite(inside[0]).all()


@pytest.mark.parametrize('measure', MEASURES, ids=lambda measure: measure.__name__)
def test_measures_of_scores_that_are_not_finite(measure):
  maps = RNG.uniform(size=(3, 8, 8))
  with pytest.raises(UserError, match='scores are not finite'):
    measure(whole(model(bias=np.nan)), IMAGES, maps, 1)
  if measure is not explain.drop_increase:
    with pytest.raises(UserError, match='map 0 is not finite'):
      measure(whole(model()), IMAGES, np.nan * maps, 1)


@pytest.mark.parametrize('name', ['grad_cam', 'group_cam', 'ablation_cam', 'gradient'])
def test_a_gradient_of_zero_everywhere_is_said(name):
  def rounded(a):
    return jnp.round(a).mean((1, 2)) @ HEAD

  asked = (features, rounded) if name != 'gradient' else lambda x: rounded(features(x))
  if name == 'ablation_cam':  # of which rounding is no matter, but a head that does not look is
    asked = (features, lambda a: 0 * a.mean((1, 2)) @ HEAD + 3)
  with pytest.warns(EmptyMaps, match=f'{name}: all maps are empty, for the gradient at'):
    found = explain.explain(asked, IMAGES, name, 1)
  assert found.constant.all()


def test_differences_of_rounding_are_none():
  """Logits of 7 that differ in the last place from channel to channel: no map of Ablation-CAM."""

  def nearly_blind(a):
    noise = 1 + 2e-7 * jnp.sign(jnp.sin(1e3 * a.mean((1, 2, 3))))
    return jax.lax.stop_gradient(noise)[:, None] * jnp.array([7.0, 6.0])[None]

  with pytest.warns(EmptyMaps):
    assert explain.explain((features, nearly_blind), IMAGES, 'ablation_cam', 0).constant.all()
  assert explain.explain((features, nearly_blind), IMAGES, 'score_cam', 0).constant.all()
  assert 1e-7 < ROUNDING < 1e-5


@given(st.integers(0, 99), st.integers(-30, 30))
def test_support_keeps_zero_at_zero_whatever_the_scale(seed, power):
  values = np.random.default_rng(seed).normal(size=(2, 3, 4)) * np.array([1, 0])[:, None, None]
  values = (values * 10.0**power).astype(np.float32)
  got = np.asarray(support(jnp.asarray(values)))
  assert ((got > 0) == (values > 0)).all() and not got[1].any()
  assert got[0].max() == (values[0].max() > 0)


@pytest.mark.parametrize(
  ('name', 'options', 'words'),
  [
    ('gradient', {'layer': 'stage1'}, 'gradient looks at no layer; leave layer out'),
    ('rise', {'grid': (2, 2)}, 'rise looks at no layer; leave grid out'),
    ('group_cam', {'variant': 'latest', 'percentile': 50.0}, 'leave percentile out'),
    ('score_cam', {'variant': 'latest'}, "'paper' or 'code'"),
    ('smooth_grad_cam_pp', {'spread': 0.1}, "no option 'spread'; it has .*noise"),
  ],
)
def test_no_option_is_ignored(name, options, words):
  with pytest.raises(UserError, match=words):
    explain.explain(model(), IMAGES, name, 1, **options)
