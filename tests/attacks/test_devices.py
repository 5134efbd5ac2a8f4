"""Images shared over devices: all are busy, and nothing comes out otherwise than on one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from seen_devices import devices
from test_attack_compilations import compilations

from rest_jax import attacks
from rest_jax.attacks import wrappers
from rest_jax.attacks.queries import logits_once

SHAPE, COUNT = (4, 4, 2), 16
seen: list[tuple[int, ...]] = []


def linear(weights, images):
  seen.append(images.shape)  # when traced: what one device gets
  return (images - 0.5).reshape(images.shape[0], -1) @ weights


def noisy(weights, images, key):
  noise = 0.1 * jax.random.normal(key, images.shape)
  return (images + noise - 0.5).reshape(images.shape[0], -1) @ weights


@pytest.fixture
def case():
  rng = np.random.default_rng(0)
  weights = jnp.asarray(rng.normal(size=(32, 5)), jnp.float32)
  images = rng.uniform(size=(COUNT, *SHAPE)).astype(np.float32)
  labels = (images - 0.5).reshape(COUNT, -1) @ np.asarray(weights)
  return Partial(linear, weights), images, labels.argmax(1)


def keys(count):
  return jax.random.split(jax.random.key(3), count)


def test_each_device_evaluates_its_rows(case):
  model, images, _ = case
  seen.clear()
  logits = logits_once(wrappers.shared(model), images, keys(COUNT))
  assert seen == [(COUNT // 4, *SHAPE)]
  busy = {shard.device: shard.data.shape for shard in logits.addressable_shards}
  assert busy == dict.fromkeys(jax.devices(), (COUNT // 4, 5))
  np.testing.assert_allclose(logits, logits_once(model, images, keys(COUNT)), atol=1e-6)


def test_a_random_model_draws_the_same(case):
  weights = case[0].args[0]
  model = attacks.eot(Partial(noisy, weights), 3, jax.random.key(1))
  shared = wrappers.shared(model)
  plain = logits_once(model, case[1], keys(COUNT))
  np.testing.assert_allclose(logits_once(shared, case[1], keys(COUNT)), plain, atol=1e-6)
  options = dict(key=jax.random.key(0), eps=0.05, steps=3)
  both = [attacks.pgd(one, *case[1:], **options) for one in (model, shared)]
  np.testing.assert_allclose(*both, atol=1e-6)


def test_a_batch_that_does_not_divide_is_one_devices(case):
  model, images, _ = case
  seen.clear()
  logits_once(wrappers.shared(model), images[:7], keys(7))
  assert seen == [(7, *SHAPE)]
  assert [wrappers.shared_batch(n) for n in (1, 4, 5, 50)] == [4, 4, 8, 52]


@pytest.mark.parametrize('place', [0, 3])
def test_weights_that_stand_on_one_device_are_used_by_all(case, place):
  model, images, labels = case
  model = jax.device_put(model, jax.devices()[place])
  shared = wrappers.shared(model)
  logits = logits_once(shared, images, keys(COUNT))
  assert len(logits.sharding.device_set) == 4
  attacks.fgsm(shared, images, labels, key=jax.random.key(0), eps=0.1)


def test_on_one_device_the_model_stays_as_it_is(case):
  with devices(1):
    assert wrappers.shared(case[0]) is case[0]
    assert wrappers.shared_batch(7) == 7


def test_an_attack_of_shared_images_still_compiles_once(case):
  model, images, labels = case
  with compilations() as names:
    for seed in (0, 1):
      attacks.square(
        wrappers.shared(model), images, labels, key=jax.random.key(seed), eps=0.2, n_queries=200
      )
  assert names.count('jit(_segment)') == 1


def test_an_evaluation_finds_the_same_on_four_devices_as_on_one(case, tmp_path):
  model, images, labels = case
  arguments = dict(
    threats=attacks.epsilon_grid('linf', [0.02, 0.1]),
    attacks=['fgsm', attacks.named_attack('apgd_ce', steps=3)],
    key=jax.random.key(0),
    batch_size=6,  # of 8 on four devices
    check_health=False,
    pictures=0,
  )
  seen.clear()
  four = attacks.evaluate(model, images, labels, **arguments, output_dir=tmp_path)
  assert seen.count((2, *SHAPE)) > 0
  with devices(1):
    one = attacks.evaluate(model, images, labels, **arguments)
    # What four devices found, one goes on with.
    again = attacks.evaluate(model, images, labels, **arguments, output_dir=tmp_path)
  assert four.rows == one.rows == again.rows
  for run, records in four.records.items():
    for index, record in records.items():
      other = one.records[run][index]
      assert (record.success, record.adversarial) == (other.success, other.adversarial)
      np.testing.assert_allclose(record.loss, other.loss, rtol=1e-5)
