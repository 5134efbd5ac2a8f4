"""Whatever the image and the model's scale: maps in [0, 1], finite, at least one of them 1."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from rest_jax import explain
from rest_jax.explain.maps import finish

CAMS = [name for name, method in explain.METHODS.items() if method.needs_layer]
KERNEL = np.random.default_rng(0).normal(size=(4, 4, 3, 6)).astype(np.float32)


def features(scale, x):
  dimensions = ('NHWC', 'HWIO', 'NHWC')
  x = jax.lax.conv_general_dilated(x, KERNEL, (4, 4), 'VALID', dimension_numbers=dimensions)
  return jax.nn.relu(scale * x)


def head(weights, a):
  return a.mean((1, 2)) @ weights


def pair(scale, weights):
  return Partial(features, jnp.float32(scale)), Partial(head, jnp.asarray(weights, jnp.float32))


@functools.cache
def image(kind):
  x = np.random.default_rng(1).uniform(size=(1, 16, 16, 3)).astype(np.float32)
  return {'noise': x, 'black': 0 * x, 'white': 0 * x + 1, 'one pixel': (x > 0.99) * x}[kind]


def check(maps):
  maps = np.asarray(maps)
  assert maps.dtype == np.float32 and maps.shape == (1, 16, 16)
  assert np.isfinite(maps).all() and maps.min() >= 0 and maps.max() in (0, 1)
  assert explain.constant_maps(maps)[0] == (maps.max() == 0)


@pytest.mark.parametrize('name', CAMS)
@hypothesis.given(
  kind=st.sampled_from(['noise', 'black', 'white', 'one pixel']),
  scale=st.sampled_from([0, 1e-20, 1e-3, 1, 1e3, 1e15]),
  seed=st.integers(0, 9),
)
def test_any_finite_image_and_saturated_logits(name, kind, scale, seed):
  weights = np.random.default_rng(seed).normal(size=(6, 3))
  check(explain.explain(pair(scale, weights), image(kind), name, 1).maps)


@pytest.mark.parametrize('name', CAMS)
def test_one_class(name):
  """Its probability is the sigmoid of its logit, so Group-CAM has something to say."""
  result = explain.explain(pair(1.0, np.ones((6, 1))), image('noise'), name)
  check(result.maps)
  assert result.targets.tolist() == [0]
  assert not result.constant[0]


@hypothesis.given(
  low=st.floats(-3.4e38, 3.4e38), high=st.floats(-3.4e38, 3.4e38), n=st.integers(1, 4)
)
def test_min_max(low, high, n):
  maps = np.linspace(low, high, n * n, dtype=np.float64).astype(np.float32).reshape(1, n, n)
  ours = np.asarray(explain.min_max(jnp.asarray(maps)))[0]
  wide = maps[0].astype(np.float64)
  span = wide.max() - wide.min()
  if span > 1e-6 * np.abs(wide).max() and span > 1e-37:
    np.testing.assert_allclose(ours, (wide - wide.min()) / span, atol=2e-6)
  else:
    assert np.isfinite(ours).all() and ours.min() >= 0 and ours.max() in (0, 1)


def test_rounding_is_not_a_map():
  """A constant brought to size differs in the last place; that must not become a picture."""
  small = jnp.full((1, 5, 3), 0.1) + jnp.zeros((1, 5, 3)).at[0, 2, 2].set(1e-8)
  assert not finish(small, (37, 23)).any()
  for bad in (jnp.nan, jnp.inf):  # which must not look like an empty map
    assert jnp.isnan(explain.min_max(jnp.ones((1, 3, 3)).at[0, 1, 1].set(bad))).all()
