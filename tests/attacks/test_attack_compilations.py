"""What compiles how often: once an attack and shape, whatever weights, radius, key or images."""

import contextlib
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from rest_jax import attacks
from rest_jax.attacks import queries
from rest_jax.callables import as_function

SHAPE, COUNT = (3, 3, 1), 4


@contextlib.contextmanager
def compilations():
  """The names of the programs that were compiled."""
  names = []

  class Listener(logging.Handler):
    def emit(self, record):
      text = record.getMessage()
      if text.startswith('Finished XLA compilation of'):
        names.append(text.split()[4])

  logger, listener = logging.getLogger('jax._src.dispatch'), Listener()
  level, spread = logger.level, logger.propagate
  logger.addHandler(listener)
  logger.setLevel(logging.DEBUG)
  logger.propagate = False
  try:
    yield names
  finally:
    logger.removeHandler(listener)
    logger.setLevel(level)
    logger.propagate = spread


def linear(weights, images):
  return images.reshape(images.shape[0], -1) @ weights


def case(seed, count=COUNT):
  rng = np.random.default_rng(seed)
  weights = jnp.asarray(rng.normal(size=(9, 5)), jnp.float32)
  images = rng.uniform(size=(count, *SHAPE)).astype(np.float32)
  model = Partial(linear, weights)
  return model, images, np.asarray(model(images)).argmax(1)


RUNS = {
  'fgsm': lambda c, key, eps: attacks.fgsm(*c, key=key, eps=eps),
  'pgd': lambda c, key, eps: attacks.pgd(*c, key=key, eps=eps, steps=3, restarts=2),
  'apgd': lambda c, key, eps: attacks.apgd(*c, key=key, eps=eps, steps=3),
  'apgd-t': lambda c, key, eps: attacks.apgd(*c, key=key, eps=eps, steps=2, loss='dlr_targeted'),
  'apgd-l1': lambda c, key, eps: attacks.apgd(*c, key=key, eps=eps, steps=2, norm='l1'),
  'mi_fgsm': lambda c, key, eps: attacks.mi_fgsm(*c, key=key, eps=eps, steps=3),
  'cw': lambda c, key, eps: attacks.cw(*c, key=key, steps=3, search_steps=2),
  'deepfool': lambda c, key, eps: attacks.deepfool(*c, key=key, steps=3),
}


@pytest.mark.parametrize('name', RUNS)
def test_other_weights_images_radii_and_keys_compile_nothing(name):
  with compilations() as first:
    RUNS[name](case(0), jax.random.key(0), 0.1)
  assert any('segment' in n or 'fgsm' in n for n in first)  # the counter counts
  cases = [case(seed) for seed in (1, 2)]
  keys = [jax.random.key(seed) for seed in (1, 2)]
  with compilations() as again:
    RUNS[name](cases[0], keys[0], 0.2)
    RUNS[name](cases[1], keys[1], np.full(COUNT, 0.3))
    RUNS[name](cases[1], keys[1], 0.0)
  assert again == []


def test_a_batch_in_chunks_compiles_once():
  options = dict(key=jax.random.key(0), eps=0.1, steps=4, query_batch=3)
  attacks.pgd(*case(0, 7), **options)
  other = case(1, 8)
  with compilations() as names:
    attacks.pgd(*other, **options)
  assert not [n for n in names if 'segment' in n]


def test_a_batch_in_which_nothing_is_correct_asks_once():
  asked = []

  def counted(weights, images):
    jax.debug.callback(lambda: asked.append(1))
    return linear(weights, images)

  model, images, labels = case(3)
  model = Partial(counted, *model.args)
  for attack, options in [(attacks.apgd, {'eps': 0.5}), (attacks.cw, {}), (attacks.deepfool, {})]:
    asked.clear()
    adv = attack(model, images, (labels + 1) % 5, key=jax.random.key(0), **options)
    np.testing.assert_array_equal(adv, images)
    jax.effects_barrier()
    assert len(asked) == 1


def test_a_model_is_traced_once_for_all_that_asks_it():
  """Attacks, judge and probes are programs of their own; the model's part is written down once."""
  shapes = []

  def counted(weights, images):
    shapes.append(images.shape)
    return linear(weights, images)

  _, images, labels = case(0)
  weights = jnp.asarray(np.random.default_rng(0).normal(size=(9, 5)), jnp.float32)
  model = as_function(Partial(counted, weights))
  keys = jax.random.split(jax.random.key(0), len(images))
  shared = {'key': jax.random.key(1), 'eps': 0.1}
  attacks.pgd(model, images, labels, steps=2, **shared)
  assert shapes == [images.shape] * 2  # once to see how many classes there are
  attacks.apgd(model, images, labels, steps=2, **shared)
  found = queries.logits_once(model, images, keys)
  assert len(shapes) == 2
  with compilations() as names:
    anew = queries.logits_traced_anew(model, images, keys)
  # Another trace, the same program: nothing to compile.
  assert len(shapes) == 3 and not names
  np.testing.assert_array_equal(anew, found)


def test_chance_of_a_trace_is_another_program():
  draws = np.random.default_rng(0)
  model = Partial(
    lambda weights, images: linear(weights, images) + draws.normal(), jnp.ones((9, 5))
  )
  _, images, _ = case(0)
  keys = jax.random.split(jax.random.key(0), len(images))
  first = [queries.logits_once(model, images, keys) for _ in range(2)]
  np.testing.assert_array_equal(*first)
  assert np.abs(first[0] - queries.logits_traced_anew(model, images, keys)).min() > 1e-3
