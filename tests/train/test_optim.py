"""Schedule, weight decay and clipping against values worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest_jax.models import create_model
from rest_jax.train import optim


def apply_once(config, params, grads, lr=0.1):
  optimizer = optim.make_optimizer(config.optim, optax.constant_schedule(lr))
  updates, _ = optimizer.update(grads, optimizer.init(params), params)
  return optax.apply_updates(params, updates)


@pytest.mark.parametrize(
  ('step', 'rate'), [(0, 0.2), (1, 0.4), (2, 0.6), (4, 1.0), (7, 0.55), (10, 0.1), (99, 0.1)]
)
def test_schedule_by_hand(step, rate):
  schedule = optim.warmup_cosine(1.0, total=10, warmup=4, start=0.2, floor=0.1)
  assert float(schedule(jnp.int32(step))) == pytest.approx(rate, abs=1e-6)


def test_papers_schedule():
  # ResT, batch 2048: 5e-4 x 2048/512 = 2e-3 after 5 of 300 epochs, from 1e-6, down to 1e-5.
  from rest_jax.train.config import default_config

  config = default_config()
  config.optim.update(lr=5e-4, lr_batch=512, warmup_epochs=5.0, min_lr=1e-5)
  schedule = optim.make_schedule(config.optim, batch_size=2048, steps_per_epoch=625.0, total=187500)
  assert float(schedule(0)) == pytest.approx(1e-6)
  assert float(schedule(3125)) == pytest.approx(2e-3)
  # Half way down the cosine: the mean of both ends.
  assert float(schedule(3125 + (187500 - 3125) // 2)) == pytest.approx(1.005e-3, rel=1e-4)
  assert float(schedule(187500)) == pytest.approx(1e-5, rel=1e-3)


@given(
  total=st.integers(1, 200),
  warmup=st.integers(0, 200),
  step=st.integers(0, 300),
  floor=st.floats(0.0, 0.5),
)
def test_schedule_stays_between_its_ends(total, warmup, step, floor):
  schedule = optim.warmup_cosine(
    1.0, total=total, warmup=min(warmup, total), start=0.01, floor=floor
  )
  low = min(0.01, floor) if warmup else floor
  assert low - 1e-6 <= float(schedule(jnp.int32(step))) <= 1.0 + 1e-6


def test_constant_schedule_after_warmup(config):
  config.optim.update(schedule='constant', warmup_epochs=1.0, lr=0.5)
  schedule = optim.make_schedule(config.optim, batch_size=8, steps_per_epoch=10.0, total=100)
  assert [round(float(schedule(s)), 5) for s in (10, 50, 100)] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize('name', ['rest_lite', 'restv2_tiny'])
def test_decay_mask_by_name(name):
  model = create_model(name, num_classes=3, widths=(8, 16, 32, 64), depths=(1, 1, 1, 1))
  image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  shapes = jax.eval_shape(
    lambda key, x: model.init({'params': key}, x, train=False)['params'], jax.random.key(0), image
  )
  mask = jax.tree_util.tree_flatten_with_path(optim.decay_mask(shapes))[0]
  assert len(mask) > 50
  for path, decays in mask:
    assert decays == (path[-1].key == 'kernel'), path


def test_adamw_decays_matrices_only(config):
  config.optim.update(weight_decay=0.5, clip_norm=0.0)
  params = {'kernel': jnp.full((2, 2), 3.0), 'bias': jnp.full((2,), 3.0)}
  new = apply_once(config, params, jax.tree.map(jnp.zeros_like, params))
  np.testing.assert_allclose(new['kernel'], 3.0 - 0.1 * 0.5 * 3.0, rtol=1e-6)
  np.testing.assert_array_equal(new['bias'], 3.0)


def test_sgd_with_momentum_by_hand(config):
  config.optim.update(name='sgd', weight_decay=0.0, clip_norm=0.0, momentum=0.9)
  optimizer = optim.make_optimizer(config.optim, optax.constant_schedule(0.1))
  params = {'kernel': jnp.ones((1, 1))}
  state = optimizer.init(params)
  for expected in (1.0 - 0.1 * 2.0, 0.8 - 0.1 * (0.9 * 2.0 + 2.0)):
    updates, state = optimizer.update({'kernel': jnp.full((1, 1), 2.0)}, state, params)
    params = optax.apply_updates(params, updates)
    assert float(params['kernel'][0, 0]) == pytest.approx(expected)


def test_sgd_decay_is_part_of_the_gradient(config):
  config.optim.update(name='sgd', weight_decay=0.5, clip_norm=0.0)
  params = {'kernel': jnp.full((1, 1), 3.0), 'bias': jnp.full((1,), 3.0)}
  new = apply_once(config, params, jax.tree.map(jnp.ones_like, params))
  assert float(new['kernel'][0, 0]) == pytest.approx(3.0 - 0.1 * (1.0 + 0.5 * 3.0))
  assert float(new['bias'][0]) == pytest.approx(3.0 - 0.1)


def test_clip_by_global_norm(config):
  config.optim.update(name='sgd', weight_decay=0.0, momentum=0.0, clip_norm=1.0)
  params = {'a': jnp.zeros((1,)), 'b': jnp.zeros((1,))}
  new = apply_once(config, params, {'a': jnp.full((1,), 3.0), 'b': jnp.full((1,), 4.0)})
  assert float(new['a'][0]) == pytest.approx(-0.1 * 0.6)
  assert float(new['b'][0]) == pytest.approx(-0.1 * 0.8)
