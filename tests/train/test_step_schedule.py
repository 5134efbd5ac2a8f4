"""The ablation's recipe: SGD whose learning rate falls to a tenth every 30 epochs."""

from __future__ import annotations

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rest_jax.errors import UserError
from rest_jax.models import create_model
from rest_jax.train import optim
from rest_jax.train.command import load_config

CONFIG = Path(__file__).parents[2] / 'configs' / 'rest_lite_ablation.py'


@pytest.fixture(scope='module')
def config():
  return load_config(CONFIG)


def test_the_rate_falls_to_a_tenth_every_thirty_epochs(config):
  steps = 1_281_167 / 2048
  schedule = optim.make_schedule(
    config.optim, batch_size=2048, steps_per_epoch=steps, total=round(100 * steps)
  )
  # 0.1 x 2048 / 512, and half of that in the middle of the warm-up.
  wanted = {2.5: 0.2, 5: 0.4, 29.9: 0.4, 30.1: 0.04, 59.9: 0.04, 60.1: 4e-3, 89.9: 4e-3}
  wanted |= {90.1: 4e-4, 99.9: 4e-4}
  for epoch, rate in wanted.items():
    assert float(schedule(jnp.int32(math.ceil(epoch * steps)))) == pytest.approx(rate, rel=1e-3)
  assert float(schedule(jnp.int32(0))) == pytest.approx(1e-6)


def test_momentum_and_decay_are_pytorchs(config):
  rate, decay, momentum = 0.5, 1e-4, 0.9
  optimizer = optim.make_optimizer(config.optim, optax.constant_schedule(rate))
  params = {'kernel': jnp.full((2, 2), 3.0), 'bias': jnp.full((2,), 3.0)}
  gradients = [0.25, -1.0, 2.0]
  state = optimizer.init(params)
  kernel, velocity, bias, bias_velocity = 3.0, 0.0, 3.0, 0.0
  for gradient in gradients:
    grads = jax.tree.map(lambda p, g=gradient: jnp.full_like(p, g), params)
    updates, state = optimizer.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    velocity = momentum * velocity + gradient + decay * kernel
    bias_velocity = momentum * bias_velocity + gradient  # no decay on vectors
    kernel, bias = kernel - rate * velocity, bias - rate * bias_velocity
  np.testing.assert_allclose(params['kernel'], kernel, rtol=1e-6)
  np.testing.assert_allclose(params['bias'], bias, rtol=1e-6)


def test_the_protocol(config):
  augment = config.augment
  assert augment.flip and augment.crop_scale == (0.08, 1.0)
  assert not (augment.rand_augment or augment.mixup or augment.cutmix or augment.erasing)
  assert not (augment.color_jitter or augment.label_smoothing) and augment.repeats == 1
  assert (config.train.epochs, config.train.batch_size, config.optim.name) == (100, 2048, 'sgd')


def test_variants_are_models():
  for variant in ('emsa', 'msa', 'gl', 'none'):
    overrides = load_config(CONFIG, variant).model.overrides.to_dict()
    model = create_model('rest_lite', **overrides)
    assert model.attention == ('msa' if variant == 'msa' else 'emsa')
  with pytest.raises(UserError, match=r'emsa, msa, gl, none'):
    load_config(CONFIG, 'pa')
