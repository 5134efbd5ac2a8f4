"""Non-local means at a layer: against sums written out, the identity, gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from rest_jax import layers
from rest_jax.callables import as_function
from rest_jax.defend import features
from rest_jax.errors import UserError


class Net(nn.Module):
  """Two convolutions and a linear layer; `half` computes in bfloat16."""

  half: bool = False

  @nn.compact
  def __call__(self, x):
    dtype = jnp.bfloat16 if self.half else None
    x = nn.relu(nn.Conv(6, (3, 3), strides=2, dtype=dtype, name='stage1')(x))
    x = nn.relu(nn.Conv(5, (3, 3), dtype=dtype, name='stage2')(x))
    return nn.Dense(3, name='head')(x.mean((1, 2)).astype(jnp.float32))


def network(half=False):
  module = Net(half)
  variables = module.init(jax.random.key(1), jnp.zeros((1, 8, 8, 3)))

  def apply(variables, x):
    return module.apply(variables, x)

  return jax.tree_util.Partial(apply, variables), variables


@pytest.fixture
def images(key):
  return jax.random.uniform(key, (2, 9, 7, 3))


def maps(seed, shape=(2, 3, 4, 5), scale=1.0):
  return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


@pytest.mark.parametrize('dot', [False, True])
def test_non_local_means_are_the_sums_of_the_paper(dot):
  x = maps(0)
  got = np.asarray((features.non_local_dot if dot else features.non_local)(jnp.asarray(x)))
  for image, found in zip(x.astype(np.float64), got, strict=True):
    flat = image.reshape(-1, 5)
    expected = np.zeros_like(flat)
    for i in range(len(flat)):
      weights = np.array([flat[i] @ flat[j] for j in range(len(flat))])
      weights = weights / len(flat) if dot else np.exp(weights / np.sqrt(5))
      expected[i] = (weights if dot else weights / weights.sum()) @ flat
    if dot:
      expected *= np.sqrt(np.mean(flat**2) / np.mean(expected**2))
    np.testing.assert_allclose(found.reshape(-1, 5), expected, atol=2e-5)


def test_many_positions_give_what_all_at_once_give(monkeypatch):
  x = jnp.asarray(maps(1))
  whole = features.non_local(x)
  monkeypatch.setattr(features, '_ROWS', 5)  # 12 positions: three pieces, the last not full
  np.testing.assert_allclose(features.non_local(x), whole, atol=1e-6)


def test_extreme_maps_stay_finite():
  @functools.partial(jax.jit, static_argnums=0)
  def both(name, x):
    value, back = jax.vjp(features.FILTERS[name], x)
    return value, back(jnp.ones_like(x))[0]

  for scale in (0.0, 1e-20, 1e9):
    for name in features.FILTERS:
      value, gradient = both(name, jnp.asarray(maps(2, scale=scale)))
      assert jnp.isfinite(value).all() and jnp.isfinite(gradient).all(), (name, scale)


def test_mean_of_3x3_positions():
  x = np.zeros((1, 5, 5, 1), np.float32)
  x[0, 2, 2] = 9
  out = np.asarray(features.mean_3x3(jnp.asarray(x)))[0, :, :, 0]
  expected = np.zeros((5, 5))
  expected[1:4, 1:4] = 1
  np.testing.assert_allclose(out, expected, atol=1e-6)


@pytest.mark.parametrize('half', [False, True])
def test_strength_0_is_the_model_to_the_bit_and_1_is_the_filter(images, half):
  model, variables = network(half)
  plain = model(images)
  for name in features.FILTERS:
    off = features.feature_denoiser(model, name, 'stage2', 0.0)
    np.testing.assert_array_equal(off(images), plain)
  full = features.feature_denoiser(model, 'mean_3x3', 'stage1', 1.0)(images)
  assert np.abs(np.asarray(full - plain)).max() > 1e-3

  if not half:  # by hand: the layer's output, filtered, through the rest
    (h,) = layers.capture(model, 'stage1', images)
    module = Net()
    rest = layers.with_layer(
      as_function(lambda x: module.apply(variables, x)),
      'stage1',
      lambda _: features.mean_3x3(h),
      images,
    )
    np.testing.assert_allclose(full, rest, atol=1e-6)


def test_strength_is_data_and_the_gradient_goes_through(images):
  model, _ = network()
  traces = []

  @jax.jit
  def loss(defended, x):
    traces.append(1)
    return jnp.sum(jnp.square(defended(x)))

  gradients = [
    jax.grad(loss, argnums=1)(features.feature_denoiser(model, 'non_local', 'stage2', s), images)
    for s in (0.0, 0.5, 1.0)
  ]
  assert len(traces) == 1
  assert all(jnp.isfinite(g).all() and jnp.any(g != 0) for g in gradients)
  assert jnp.any(gradients[0] != gradients[2])


def test_noise_alone_at_a_layer(images, key):
  model, _ = network()
  delta = 0.1 * jax.random.normal(key, images.shape)
  (clean,), (noisy,) = (layers.capture(model, 'stage2', x) for x in (images, images + delta))
  noise = noisy - clean

  off = features.at_layer('mean_3x3', 'stage2', 0.0)
  logits, before, after = features.noise_only_logits(model, off, images, images + delta)
  np.testing.assert_allclose(logits, model(images + delta), atol=1e-5)
  np.testing.assert_array_equal(before, after)
  np.testing.assert_allclose(before, np.square(noise).sum((1, 2, 3)), rtol=1e-5)

  on = off.with_strength(1.0)
  logits, _, after = features.noise_only_logits(model, on, images, images + delta)
  left = features.mean_3x3(noise)
  np.testing.assert_allclose(after, np.square(left).sum((1, 2, 3)), rtol=1e-5)
  expected = layers.with_layer(model, 'stage2', lambda h: h + left, images)
  np.testing.assert_allclose(logits, expected, atol=1e-6)


def test_bad_input_is_one_line(images):
  model, _ = network()
  for make, match in [
    (lambda: features.at_layer('non_locl'), "did you mean 'non_local|did you mean non_local"),
    (lambda: features.at_layer(strength=1.5), 'from 0 .* to 1, not 1.5'),
    (lambda: features.feature_denoiser(model, layer='stage3')(images), "no layer 'stage3'.*stage"),
    (lambda: features.feature_denoiser(model, layer='head')(images), 'takes maps'),
    (
      lambda: features.feature_denoiser(lambda x: x.mean((1, 2)))(images),
      'no module was seen running',
    ),
  ]:
    with pytest.raises(UserError, match=match) as error:
      make()
    assert '\n' not in str(error.value)
