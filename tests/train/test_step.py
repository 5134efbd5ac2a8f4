"""The mapped steps: accumulation, devices, batch norm, average, evaluation, compilations."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rest_jax.data.device import normalise, to_unit
from rest_jax.models import layers, rest
from rest_jax.train import classifying, optim, parallel, state, step
from rest_jax.train.totals import value_of

LR = optax.constant_schedule(1e-2)


@functools.cache
def mesh_of(count):
  return parallel.make_mesh(jax.devices()[:count])


def setup(config, model, devices=1, optimizer=None, size=8, **options):
  optimizer = optimizer or optim.make_optimizer(config.optim, LR)
  axis = {'bn_axis_name': parallel.AXIS} if config.train.sync_bn else {}
  mesh = mesh_of(devices)
  create = parallel.replicate(
    lambda: state.create_state(
      model(**options), optimizer, jax.random.key(0), size, ema=bool(config.train.ema)
    ),
    mesh,
  )
  one = step.make_train_step(model(**options, **axis), optimizer, LR, config, 3)
  return create(), parallel.map_train_step(one, mesh), mesh


def run(config, model, batch, devices=1, steps=1, **options):
  current, train_step, mesh = setup(config, model, devices, **options)
  history = []
  for _ in range(steps):
    current, metrics = train_step(current, parallel.to_global(batch, mesh))
    history.append(float(metrics['loss']))
  assert train_step._cache_size() == 1
  return jax.device_get(current), history


def assert_close(one, other, **tolerance):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), one, other)


# Plain gradient descent shows the gradient itself; Adam would hide its scale.
@pytest.fixture
def sgd(config):
  config.optim.update(name='sgd', momentum=0.0, weight_decay=0.0, clip_norm=0.0)
  return config


def test_accumulation_gives_the_same_gradient(sgd, batch, tiny_net):
  whole, _ = run(sgd, tiny_net, batch, norm=False)
  sgd.train.accumulate = 4
  pieces, _ = run(sgd, tiny_net, batch, norm=False)
  assert_close(whole.params, pieces.params, atol=1e-7)


def test_accumulation_updates_batch_statistics_each_time(sgd, batch, tiny_net):
  sgd.train.accumulate = 4
  result, _ = run(sgd, tiny_net, batch)
  assert result.batch_stats['norm']['count'] == 4


def test_devices_give_the_same_curve_with_synchronised_batch_norm(config, batch, tiny_net):
  config.train.sync_bn = True
  one, curve = run(config, tiny_net, batch, devices=1, steps=8)
  four, other = run(config, tiny_net, batch, devices=4, steps=8)
  np.testing.assert_allclose(curve, other, atol=1e-5)
  assert curve[-1] < curve[0]
  assert_close(one.params, four.params, atol=1e-4)
  assert_close(one.batch_stats, four.batch_stats, rtol=1e-4, atol=1e-6)


class OneBlock(nn.Module):
  """Each kind of layer that ResT has, once: stem, patch embedding, block with mixed heads."""

  num_classes: int = 3
  bn_axis_name: str | None = None

  @nn.compact
  def __call__(self, x, train: bool = False):
    options: dict[str, Any] = dict(position='pa', bn_axis_name=self.bn_axis_name, bn_frozen=False)
    x = rest.StemV1(8, 4, **options, name='stem')(x, train)
    x = rest.PatchEmbedV1(16, **options, name='patch_embed')(x, train)
    sizes = dict(heads=2, reduction=2, mlp_ratio=4.0)
    rates = dict(drop_path=0.0, drop_rate=0.0, attn_drop_rate=0.0)
    x = rest.Block(**sizes, **rates, version=1, attention='emsa', name='block')(x, train)
    return layers.Dense(self.num_classes, name='head')(x.mean((1, 2)))


def test_devices_give_the_same_curve_with_layers_of_rest(sgd, batch):
  sgd.train.sync_bn = True
  large = batch | {'image': batch['image'].repeat(4, 1).repeat(4, 2)}
  options = dict(steps=6, size=32, optimizer=optim.make_optimizer(sgd.optim, lambda _: 1e-2))
  _, curve = run(sgd, OneBlock, large, devices=1, **options)
  _, other = run(sgd, OneBlock, large, devices=4, **options)
  np.testing.assert_allclose(curve, other, atol=1e-4)
  assert curve[-1] < curve[0]


def test_gradient_is_the_mean_over_devices(sgd, batch, tiny_net):
  one, _ = run(sgd, tiny_net, batch, devices=1, norm=False)
  four, _ = run(sgd, tiny_net, batch, devices=4, norm=False)
  assert_close(one.params, four.params, atol=1e-7)


def test_statistics_of_devices_are_averaged_without_synchronisation(config, batch, tiny_net):
  result, _ = run(config, tiny_net, batch, devices=2)
  halves = [{k: v[i : i + 4] for k, v in batch.items()} for i in (0, 4)]
  stats = [run(config, tiny_net, half)[0].batch_stats['norm'] for half in halves]
  assert result.batch_stats['norm']['count'] == 1
  for name in ('mean', 'var'):
    expected = (stats[0][name] + stats[1][name]) / 2
    np.testing.assert_allclose(result.batch_stats['norm'][name], expected, rtol=1e-5, atol=1e-7)


def test_average_of_the_weights(config, batch, tiny_net):
  config.train.ema = 0.999  # warms up: min(d, (1 + t) / (10 + t)) is 0.1 at first
  start = jax.device_get(setup(config, tiny_net)[0])
  result, _ = run(config, tiny_net, batch)
  expected = jax.tree.map(lambda a, b: 0.1 * a + 0.9 * b, start.params, result.params)
  assert_close(result.ema['params'], expected, rtol=1e-5, atol=1e-7)
  assert result.ema['batch_stats']['norm']['count'] == 1
  assert result.variables(averaged=True) is result.ema
  assert result.variables()['params'] is result.params


def test_dropout_differs_between_devices_and_steps(sgd, tiny_net):
  # All examples are equal, so without dropout all devices and both steps would agree.
  batch = {'image': np.full((4, 8, 8, 3), 200, np.uint8), 'label': np.zeros(4, np.int32)}
  sgd.optim.lr = 0.0
  optimizer = optax.set_to_zero()
  current, train_step, mesh = setup(sgd, tiny_net, 4, optimizer, norm=False, drop_rate=0.5)
  losses = []
  for _ in range(3):
    current, metrics = train_step(current, parallel.to_global(batch, mesh))
    losses.append(float(metrics['loss']))
  assert len(set(losses)) == 3
  again = setup(sgd, tiny_net, 4, optimizer, norm=False, drop_rate=0.5)
  _, metrics = again[1](again[0], parallel.to_global(batch, mesh))
  assert float(metrics['loss']) == losses[0]


def test_augmentation_on_the_device_is_part_of_the_step(config, batch, tiny_net):
  config.augment.update(mixup=0.8, cutmix=1.0, erasing=0.5, label_smoothing=0.1)
  result, curve = run(config, tiny_net, batch, devices=2, steps=3)
  assert np.isfinite(curve).all()
  assert result.step == 3


def test_normalise_by_hand():
  images = jnp.full((1, 1, 1, 3), 0.5)
  out = normalise(images, (0.5, 0.25, 0.0), (1.0, 0.5, 0.25))
  np.testing.assert_allclose(out[0, 0, 0], [0.0, 0.5, 2.0])
  np.testing.assert_array_equal(to_unit(jnp.array([0, 255], jnp.uint8)), [0.0, 1.0])


class Echo:
  """A model whose logits are the first pixels of the image."""

  def apply(self, variables, images, train):
    return images[:, 0, :, 0]


def evaluate_echo(config, logits, labels, mask, zero_totals, devices):
  config.data.mean, config.data.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
  image = np.repeat(np.asarray(logits, np.uint8)[:, None, :, None], 3, axis=-1)
  batch = {'image': image, 'label': np.array(labels, np.int32), 'mask': np.array(mask)}
  mesh = mesh_of(devices)
  mapped = parallel.map_eval_step(classifying.make_eval_step(Echo(), config), mesh)
  return jax.device_get(mapped({}, parallel.to_global(batch, mesh), zero_totals))


@pytest.mark.parametrize('devices', [1, 2])
def test_evaluation_counts_by_hand(config, zero_totals, devices):
  rows = [[9, 0, 1, 2, 3, 4], [9, 8, 7, 6, 5, 4], [9, 8, 7, 6, 5, 4], [9, 8, 7, 6, 5, 4]]
  sums = evaluate_echo(config, rows, [0, 4, 5, 0], [True, True, True, False], zero_totals, devices)
  assert (sums['count'], sums['top1'], sums['top5']) == (3, 1, 2)
  logits = np.array(rows[:3]) / 255
  expected = np.log(np.exp(logits).sum(1)) - logits[[0, 1, 2], [0, 4, 5]]
  assert value_of(sums['loss']) == pytest.approx(expected.sum(), rel=1e-5)


def test_ties_count_against_the_model(config, zero_totals):
  sums = evaluate_echo(config, [[5, 5], [5, 5]], [0, 1], [True, True], zero_totals, 1)
  assert sums['top1'] == 0


def test_batch_must_divide():
  from rest_jax.errors import UserError

  with pytest.raises(UserError, match='multiple of 8, for example 32'):
    parallel.check_batch(30, 2, mesh_of(4))
