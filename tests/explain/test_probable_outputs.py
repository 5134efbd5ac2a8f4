"""A model that ends in a softmax is no model of logits, and is not taken for one."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from explain_toys import FEW

from rest_jax import UserError, explain
from rest_jax.explain import outputs
from rest_jax.explain.checking import ProbabilityOutputs
from rest_jax.explain.methods import METHODS
from rest_jax.explain.taps import Tap

RNG = np.random.default_rng(0)
WEIGHTS = {
  k: RNG.normal(size=(6 * 8 * 3, k)).astype(np.float32) * scale
  for k, scale in ((2, 0.3), (3, 1.0), (1000, 1.0))
}
IMAGES = RNG.uniform(size=(3, 6, 8, 3)).astype(np.float32)
MAPS = RNG.uniform(size=(3, 6, 8)).astype(np.float32)
MEASURES = (explain.insertion_deletion, explain.drop_increase, explain.road)


def logits_of(classes, dtype=jnp.float32):
  return lambda x: (x.reshape(len(x), -1) @ WEIGHTS[classes]).astype(dtype)


def softmax_of(classes, dtype=jnp.float32):
  return lambda x: jax.nn.softmax(logits_of(classes, dtype)(x))


@pytest.mark.parametrize('measure', MEASURES)
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize('classes', [2, 1000])
def test_measures_refuse_probabilities(measure, classes, dtype):
  with pytest.raises(UserError, match=r'look like probabilities .*; give logits'):
    measure(softmax_of(classes, dtype), IMAGES, MAPS)


@pytest.mark.parametrize('measure', MEASURES)
def test_the_logarithm_of_probabilities_is_as_good_as_logits(measure):
  softmax = softmax_of(3)
  got = measure(lambda x: jnp.log(softmax(x)), IMAGES, MAPS)
  for a, b in zip(got, measure(logits_of(3), IMAGES, MAPS), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_explanations_warn_once():
  with pytest.warns(ProbabilityOutputs, match='occlusion: the outputs look like') as caught:
    explain.explain(softmax_of(3), IMAGES, 'occlusion')
  assert len(caught) == 1 and caught[0].filename == __file__


READ_PROBABILITIES = ('group_cam', 'score_cam', 'rise', 'occlusion')


def pair_of(last):
  return (jax.nn.relu, lambda x: last(logits_of(3)(x)))


def directly(name, last, dtype=jnp.float32, targets=None):
  model = pair_of(lambda logits: last(logits.astype(dtype)))
  return getattr(explain, name)(model, IMAGES, targets, **FEW.get(name, {}))


@pytest.mark.parametrize('targets', [None, 1])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('name', READ_PROBABILITIES)
def test_a_method_by_itself_warns_as_well(name, dtype, targets):
  with pytest.warns(ProbabilityOutputs, match=f'{name}: the outputs look like') as caught:
    directly(name, jax.nn.softmax, dtype, targets)
  assert len(caught) == 1 and caught[0].filename == __file__


@pytest.mark.parametrize('last', [lambda x: x, jax.nn.sigmoid, lambda x: jnp.exp(x) / 1e3])
@pytest.mark.parametrize('name', READ_PROBABILITIES)
def test_a_method_by_itself_raises_no_false_alarm(name, last):
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    directly(name, last)


@pytest.mark.parametrize('name', sorted(METHODS))
def test_whatever_makes_probabilities_says_what_of(name, monkeypatch):
  asked, make = [], Tap.probabilities
  monkeypatch.setattr(Tap, 'probabilities', lambda *args: asked.append(1) or make(*args))
  found = METHODS[name].detail(pair_of(lambda x: x), IMAGES, **FEW.get(name, {}))
  assert (found.distances is not None) == bool(asked) == (name in READ_PROBABILITIES)


@pytest.mark.parametrize(
  'make', [logits_of, lambda classes: lambda x: jax.nn.sigmoid(x.mean((1, 2)))]
)
@pytest.mark.parametrize('classes', [2, 3, 1000])
def test_no_alarm_for_logits(make, classes):
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    explain.explain(make(classes), IMAGES, 'occlusion')


def test_no_alarm_for_numbers_that_are_near():
  logits = RNG.uniform(size=(100_000, 2)).astype(np.float32)
  distances = np.array(outputs.distance_from_probabilities(jnp.asarray(logits)))
  assert (distances == 0).sum() <= 1 and not outputs.look_probable(logits)
  assert not outputs.look_probable(np.ones((4, 1), np.float32))
  near = np.array([[0.4, 0.606]], np.float32)  # of so few rows that may be chance
  assert not outputs.look_probable(near) and outputs.look_probable(near.repeat(3, 0))


def test_nothing_is_looked_at_inside_jit():
  model = softmax_of(3)
  found = jax.jit(lambda x: explain.explain(model, x, 'occlusion').maps)(IMAGES)
  assert found.shape == MAPS.shape
