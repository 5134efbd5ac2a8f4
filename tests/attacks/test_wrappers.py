"""BPDA, EOT, bfloat16: what they compute, and that attacks get through them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import linear_case as case
import numpy as np
import pytest
from flax import linen as nn
from jax.tree_util import Partial

from rest_jax import attacks
from rest_jax.attacks.queries import ask, image_keys, is_random, logits_of
from rest_jax.callables import as_function
from rest_jax.errors import UserError

key = jax.random.key(0)


def coarse(images):
  """Rounding, whose gradient is 0."""
  return jnp.round(images * 8) / 8


def test_bpda_has_the_value_of_the_one_and_the_gradient_of_the_other():
  x = jnp.asarray(case.IMAGES)
  plain = attacks.bpda(coarse)
  np.testing.assert_array_equal(plain(x), coarse(x))
  np.testing.assert_array_equal(jax.grad(lambda x: (plain(x) * x).sum())(x), x + coarse(x))
  bent = attacks.bpda(coarse, jnp.sin)
  np.testing.assert_array_equal(bent(x), coarse(x))
  np.testing.assert_allclose(jax.grad(lambda x: bent(x).sum())(x), jnp.cos(x), rtol=1e-6)


def test_bpda_breaks_what_masks_its_gradients():
  defended = attacks.chain(coarse, case.logits_fn)
  open_ = attacks.chain(attacks.bpda(coarse), case.logits_fn)
  labels = np.asarray(defended(case.IMAGES)).argmax(1)
  options = dict(key=key, eps=0.12, steps=10, random_start=False)
  masked = attacks.pgd(defended, case.IMAGES, labels, **options)
  np.testing.assert_array_equal(masked, case.IMAGES)
  adv = attacks.pgd(open_, case.IMAGES, labels, **options)
  assert (np.asarray(defended(adv)).argmax(1) != labels).mean() > 0.8


def test_bpda_needs_shapes_that_agree():
  with pytest.raises(UserError, match='keeps the shape'):
    attacks.bpda(case.logits_fn)(case.IMAGES)
  with pytest.raises(UserError, match='function of images'):
    attacks.bpda(3)


def test_bpda_of_a_function_outside_jax():
  """A defence in NumPy, through a callback."""

  def forward(images):
    shape = jax.ShapeDtypeStruct(images.shape, images.dtype)
    return jax.pure_callback(lambda x: np.round(np.asarray(x) * 8) / 8, shape, images)

  model = attacks.chain(attacks.bpda(forward), case.logits_fn)
  same = attacks.chain(attacks.bpda(coarse), case.logits_fn)
  options = dict(key=key, eps=0.1, steps=3)
  np.testing.assert_allclose(
    attacks.pgd(model, case.IMAGES, case.LABELS, **options),
    attacks.pgd(same, case.IMAGES, case.LABELS, **options),
    atol=1e-6,
  )


def noisy(images, key):
  return case.logits_fn(images + 0.3 * jax.random.normal(key, images.shape))


def draws_of(keys, samples):
  """Logits of each draw, (samples, B, K), by the documented keys."""

  def one(image, key):
    return jnp.stack([noisy(image[None], jax.random.fold_in(key, s))[0] for s in range(samples)])

  return jnp.moveaxis(jax.jit(jax.vmap(one))(case.IMAGES, keys), 1, 0)


def test_eot_averages_what_it_says():
  keys = image_keys(jax.random.key(5), case.COUNT)
  draws = draws_of(keys, 3)
  chances = jnp.log(jnp.mean(jax.nn.softmax(draws), axis=0))
  expected = {'logits': draws.mean(0), 'probabilities': chances, 'loss': chances}
  x = jnp.asarray(case.IMAGES)
  for average, logits in expected.items():
    eot = attacks.eot(noisy, 3, key, average=average)
    model = jax.jit(eot)
    assert is_random(eot)
    np.testing.assert_allclose(jax.jit(logits_of)(eot, x, keys), logits, rtol=1e-4, atol=1e-4)
    # Without keys of the attack: those of the model's own.
    own = model(x)
    np.testing.assert_array_equal(own, model(x))
    assert np.abs(own - logits).max() > 1e-3
    np.testing.assert_allclose(model(x[:2]), own[:2], atol=1e-5)


def test_the_gradient_of_eot_is_that_of_the_expected_loss():
  def nonlinear(images, key):
    return 3 * jnp.tanh(noisy(images, key))

  keys, x = image_keys(jax.random.key(5), case.COUNT), jnp.asarray(case.IMAGES)

  def loss_fn(logits):
    return jnp.square(logits[:, 0]) + logits[:, 1]

  def expected(image, key):
    draws = [nonlinear(image[None], jax.random.fold_in(key, s)) for s in range(4)]
    return sum(loss_fn(z)[0] for z in draws) / 4

  losses, gradient = jax.jit(jax.vmap(jax.value_and_grad(expected)))(x, keys)
  asked = jax.jit(ask, static_argnums=2)
  answer = asked(attacks.eot(nonlinear, 4, key), x, loss_fn, keys)
  np.testing.assert_allclose(answer.losses, losses, rtol=1e-4)
  np.testing.assert_allclose(answer.gradient, gradient, rtol=1e-4, atol=1e-4)
  other = asked(attacks.eot(nonlinear, 4, key, average='logits'), x, loss_fn, keys)
  assert np.abs(other.gradient - gradient).max() > 1e-2  # the loss of the mean is another


def test_attacks_on_a_random_model_do_not_depend_on_batches():
  model = attacks.eot(noisy, 2, key)
  options = dict(key=key, eps=0.1, steps=3, stop_early=False)
  whole = attacks.apgd(model, case.IMAGES, case.LABELS, **options)
  part = attacks.apgd(model, case.IMAGES[:2], case.LABELS[:2], **options)
  np.testing.assert_allclose(part, whole[:2], atol=1e-6)
  still = attacks.deepfool(model, case.IMAGES, case.LABELS, steps=2)
  assert still.shape == case.IMAGES.shape


def test_bad_eot_options():
  for options, message in [
    (dict(samples=0), 'samples'),
    (dict(average='median'), 'average'),
    (dict(key=3), 'PRNG key'),
  ]:
    with pytest.raises(UserError, match=message):
      attacks.eot(**({'logits_fn': noisy, 'samples': 2, 'key': key} | options))


def test_chain_keeps_weights_as_data():
  model = attacks.chain(
    jnp.square, Partial(lambda w, x: x.sum((1, 2, 3))[:, None] * w, jnp.ones((1, 2)))
  )
  assert len(jax.tree.leaves(model)) == 1
  np.testing.assert_allclose(model(case.IMAGES)[:, 0], (case.IMAGES**2).sum((1, 2, 3)), rtol=1e-5)


class Net(nn.Module):
  dtype: Any = None

  @nn.compact
  def __call__(self, x):
    return nn.Dense(3, dtype=self.dtype)(x.reshape(x.shape[0], -1))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Model:
  """As a `Classifier`: a module that knows its dtype, float32 outside."""

  variables: Any
  module: nn.Module = dataclasses.field(metadata={'static': True})

  def __call__(self, images):
    return self.module.apply(self.variables, images).astype(jnp.float32)


def test_bfloat16_inside_float32_outside():
  module = Net()
  model = Model(module.init(key, case.IMAGES), module)
  rounded = attacks.in_bfloat16(model)
  x = jnp.asarray(case.IMAGES)
  assert ' bf16[' in str(jax.make_jaxpr(rounded)(x)).replace(':', ' ')
  exact = model(x)
  assert rounded(x).dtype == jnp.float32
  assert 0 < np.abs(rounded(x) - exact).max() < 0.05
  function = attacks.in_bfloat16(Partial(lambda w, x: x.reshape(6, -1) @ w, case.WEIGHTS))
  assert function(x).dtype == jnp.float32
  np.testing.assert_allclose(function(x), x.reshape(6, -1) @ case.WEIGHTS, atol=0.2)
  labels = np.asarray(exact).argmax(1)
  adv = attacks.pgd(rounded, case.IMAGES, labels, key=key, eps=0.2, steps=5)
  assert adv.dtype == jnp.float32
  assert (attacks.distances(adv, case.IMAGES, 'linf') <= 0.2).all()
  answer = ask(as_function(rounded), x, lambda z: z[:, 0])
  assert answer.gradient.dtype == jnp.float32
