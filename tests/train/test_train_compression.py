"""Band compression under adversarial training: what is trained moves, measured gains stay."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rest_jax.models import registry
from rest_jax.models.compression import BandCompression, Compression
from rest_jax.train import parallel
from rest_jax.train.pipeline import Plan
from rest_jax.train.task import build_task


class ThreeLayers(nn.Module):
  """A convolution, a layer of each strategy that has arrays, mean, linear layer."""

  num_classes: int = 3
  bn_axis_name: str | None = None

  @nn.compact
  def __call__(self, x, train: bool = False):
    x = nn.Conv(8, (3, 3), use_bias=False, name='conv')(x)
    for i, strategy in enumerate(('wiener', 'learned', 'soft_threshold'), 1):
      x = BandCompression(Compression(strategy, bands=4, groups=2), name=f'compress{i}')(x)
    return nn.Dense(self.num_classes, name='head')(nn.relu(x).mean((1, 2)))


def test_pgd_training(config, batch, monkeypatch):
  monkeypatch.setitem(registry._BUILDERS, 'three_layers', ThreeLayers)
  config.model.name = 'three_layers'
  config.train.ema = 0.5
  config.adversarial.update(kind='pgd', eps=0.1, steps=2)
  mesh = parallel.make_mesh(jax.devices()[:2])
  task = build_task(config, Plan(10, 1.0, frozenset({10}), 1), mesh, 'abc')
  state = task.create()
  gains = np.random.default_rng(0).uniform(size=(4, 8)).astype(np.float32)
  start = jax.device_get(state)
  np.testing.assert_array_equal(start.batch_stats['compress1']['gain'], 1)
  kept = jax.tree.map(lambda x: jax.device_put(gains, x.sharding), state.batch_stats)
  state = dataclasses.replace(state, batch_stats=kept)
  for _ in range(3):
    state, metrics = task.train_step(state, parallel.to_global(batch, mesh))
  end = jax.device_get(state)
  assert np.isfinite(metrics['loss'])
  np.testing.assert_array_equal(end.batch_stats['compress1']['gain'], gains)
  moved = jax.tree.map(lambda a, b: bool((a != b).any()), start.params, end.params)
  assert all(jax.tree.leaves(moved))
  threshold = jnp.maximum(end.params['compress3']['threshold'], 0)
  assert (threshold > 0).any()
