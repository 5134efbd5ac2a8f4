"""Defences in front of a model: the same values, with gradients an attack can follow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from defence_toys import data, fading, halving, linear_model, noise, rounding
from drawn_weights import drawn
from flax import linen as nn
from jax.tree_util import Partial

from rest_jax import defend
from rest_jax.attacks.queries import image_keys, is_random
from rest_jax.errors import UserError

MODEL = linear_model()
IMAGES = jnp.asarray(data(MODEL, 5)[0])


def gradient(model, images=IMAGES, *args):
  return jax.grad(lambda x: model(x, *args)[:, 0].sum())(images)


def test_no_defence_is_the_model_itself():
  assert defend.protect(MODEL) is MODEL and defend.attackable(MODEL) is MODEL


def test_defences_come_one_after_the_other():
  first, second = fading(0.4), rounding(1.0)
  together = defend.protect(MODEL, first, second)(IMAGES)
  np.testing.assert_array_equal(together, MODEL(second(first(IMAGES))))
  assert not np.array_equal(together, defend.protect(MODEL, second, first)(IMAGES))
  named = defend.protect(MODEL, 'gaussian')(IMAGES)
  np.testing.assert_array_equal(named, MODEL(defend.denoiser('gaussian')(IMAGES)))
  own = defend.protect(MODEL, lambda x: 1 - x)(IMAGES)
  np.testing.assert_array_equal(own, MODEL(1 - IMAGES))


@pytest.mark.parametrize('defence', [rounding(), rounding(surrogate=halving()), fading()])
def test_an_attack_sees_the_values_that_are_judged(defence):
  judged, attacked = defend.protect(MODEL, defence), defend.attackable(MODEL, defence)
  np.testing.assert_array_equal(judged(IMAGES), attacked(IMAGES))


def test_what_is_not_differentiable_gets_the_gradient_of_its_surrogate_or_the_identity():
  plain = gradient(MODEL)
  assert np.all(np.asarray(gradient(defend.protect(MODEL, rounding()))) == 0)
  np.testing.assert_array_equal(gradient(defend.attackable(MODEL, rounding())), plain)
  near = defend.attackable(MODEL, rounding(0.25, surrogate=halving()))
  np.testing.assert_allclose(gradient(near), 0.75 * plain, rtol=1e-6)
  # What is differentiable keeps its own.
  np.testing.assert_allclose(gradient(defend.attackable(MODEL, fading(0.25))), 0.75 * plain, 1e-6)


def test_a_random_defence_gives_a_model_that_takes_keys():
  defence = noise(1.0)
  judged = defend.protect(MODEL, defence, draws=3)
  attacked = defend.attackable(MODEL, defence, draws=3)
  assert is_random(judged) and judged.func.samples == 3
  keys = image_keys(jax.random.key(7), len(IMAGES))
  first, other = judged(IMAGES, keys=keys), judged(IMAGES, keys=keys[::-1])
  np.testing.assert_array_equal(first, attacked(IMAGES, keys=keys))
  assert not np.array_equal(first, other)
  # Neither place in the batch nor its other images matter.
  np.testing.assert_allclose(first[3:4], judged(IMAGES[3:4], keys=keys[3:4]), rtol=1e-6)
  # The mean probabilities over the draws, by hand: draw after draw, key after key.
  draw = judged.func.draw
  parts = [draw(*judged.args, IMAGES, keys, i) for i in range(3)]
  mean = np.mean([jax.nn.softmax(part, axis=1) for part in parts], axis=0)
  np.testing.assert_allclose(np.exp(first), mean, rtol=1e-5)
  assert not np.array_equal(parts[0], parts[1])
  again = defend.protect(MODEL, defence, key=jax.random.key(1), draws=3)
  assert not np.array_equal(again(IMAGES), judged(IMAGES))


def test_two_random_defences_draw_differently():
  once = defend.protect(MODEL, noise(1.0), draws=1)
  twice = defend.protect(MODEL, noise(1.0), noise(1.0), draws=1)
  keys = image_keys(jax.random.key(7), len(IMAGES))
  one, two = once(IMAGES, keys=keys), twice(IMAGES, keys=keys)
  moved = [np.exp(one) - jax.nn.softmax(MODEL(IMAGES)), np.exp(two) - np.exp(one)]
  assert not np.allclose(*moved, atol=1e-4)


def test_what_is_random_and_not_differentiable_gets_both():
  defence = rounding()
  random = defend.Denoiser(
    'noisy rounding',
    jnp.float32(0.5),
    defence.forward,
    Partial(_drawn_then_rounded),
    defence.inverse,
    random=True,
    differentiable=False,
  )
  keys = image_keys(jax.random.key(0), len(IMAGES))
  judged = defend.protect(MODEL, random, draws=2)
  attacked = defend.attackable(MODEL, random, draws=2)
  np.testing.assert_array_equal(judged(IMAGES, keys=keys), attacked(IMAGES, keys=keys))
  flat, useful = (
    jax.grad(lambda x, m=m: m(x, keys=keys)[:, 0].sum())(IMAGES) for m in (judged, attacked)
  )
  assert np.all(np.asarray(flat) == 0) and np.abs(useful).max(axis=(1, 2, 3)).min() > 0


def _drawn_then_rounded(images, strength, keys):
  shift = jax.vmap(lambda key: jax.random.uniform(key, (1, 1, 1)))(keys)
  return jnp.round(images * 8 + shift * strength) / 8


def test_another_strength_compiles_nothing_anew():
  traced = []

  @jax.jit
  def logits(model, images):
    traced.append(1)
    return model(images)

  for strength in (0.1, 0.5, 1.0):
    for build in (fading, rounding):
      logits(defend.attackable(MODEL, build(strength)), IMAGES)
  assert len(traced) == 2


def test_strength_0_is_the_undefended_model_bit_for_bit():
  for defence in (fading(0.0), rounding(0.0), noise(0.0)):
    logits = defend.protect(MODEL, defence, draws=1)(IMAGES)
    expected = MODEL(IMAGES)
    if defence.random:
      expected = jnp.log(jax.nn.softmax(expected, axis=1))
      np.testing.assert_allclose(logits, expected, atol=1e-5)
    else:
      np.testing.assert_array_equal(logits, expected)


@pytest.mark.parametrize(('bad', 'words'), [('gausian', 'did you mean gaussian'), (3, 'not int')])
def test_no_defence(bad, words):
  with pytest.raises(UserError, match=words):
    defend.protect(MODEL, bad)


class Net(nn.Module):
  """A layer to tap and a linear head."""

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(4, (1, 1), name='stage1')(x)
    return nn.Dense(3)(jnp.abs(x).mean((1, 2)))


def test_a_feature_denoiser_goes_into_the_model_whatever_its_place():
  net = Net()
  variables = drawn(net, IMAGES)
  model = Partial(net.apply, variables)
  inside = defend.feature_denoiser(model, 'mean_3x3', 'stage1', 0.5)
  expected = inside(fading(0.5)(IMAGES))
  for order in ((fading(0.5), 'mean_3x3@stage1'), ('mean_3x3@stage1', fading(0.5))):
    np.testing.assert_array_equal(defend.protect(model, *order)(IMAGES), expected)
    np.testing.assert_array_equal(defend.attackable(model, *order)(IMAGES), expected)
  assert not np.allclose(expected, model(fading(0.5)(IMAGES)))
