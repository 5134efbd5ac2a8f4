"""Schedule, decay by layer and clipping against values by hand and the authors' ids of layers."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from hypothesis import given
from hypothesis import strategies as st

from rest_jax.errors import UserError
from rest_jax.models import create_model, model_dir
from rest_jax.models.pytorch_names import table_for, target
from rest_jax.train import optim

# By the names of the authors' checkpoints; whatever is not listed has the last id.
V2_TINY = {
  'stem': 0, 'stage1.0': 1, 'patch_2': 2, 'stage2.0': 3, 'stage2.1': 4, 'patch_3': 5,
  'stage3.0': 6, 'stage3.1': 7, 'stage3.2': 8, 'stage3.3': 9, 'stage3.4': 10, 'stage3.5': 11,
  'patch_4': 12, 'stage4.0': 13, 'stage4.1': 14, 'norm': 15, 'head': 15,
}  # fmt: skip
V1_LITE = {
  'stem': 0, 'stage1.0': 1, 'stage1.1': 2, 'patch_embed_2': 3, 'stage2.0': 4, 'stage2.1': 5,
  'patch_embed_3': 6, 'stage3.0': 7, 'stage3.1': 8, 'patch_embed_4': 9, 'stage4.0': 10,
  'stage4.1': 11, 'norm': 12, 'head': 12,
}  # fmt: skip
GOLDEN = Path(__file__).parents[1] / 'golden' / 'official_state_dicts.json'


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


def by_table(name, table):
  """The id of a PyTorch name: that of the listed module it lies in."""
  parts = name.split('.')
  return table['.'.join(parts[:2])] if parts[0].startswith('stage') else table[parts[0]]


@pytest.mark.parametrize(('name', 'table'), [('restv2_tiny', V2_TINY), ('rest_lite', V1_LITE)])
def test_ids_of_every_parameter_by_name(name, table):
  model = create_model(name)
  paths = [path for path in model_dir.abstract_tensors(model) if path.startswith('params/')]
  rows, seen = table_for(model), set()
  depths = optim.depths_of(params_of(model))
  assert depths == tuple(model.depths)
  for path in paths:
    torch_name = target(path, rows).torch_name
    seen.add(torch_name)
    own = optim.layer_id(path.removeprefix('params/'), depths)
    assert own == by_table(torch_name, table), torch_name
  official = json.loads(GOLDEN.read_text())[name]['state_dict']
  buffers = ('running_mean', 'running_var', 'num_batches_tracked')
  assert seen == {n for n in official if n.rpartition('.')[2] not in buffers}


def params_of(model):
  image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  init = functools.partial(model.init, train=False)
  return jax.eval_shape(init, {'params': jax.random.key(0)}, image)['params']


PARAMS = {
  'stem': {'kernel': jnp.full((2, 2), 3.0)},
  'stage1': {'block0': {'kernel': jnp.full((2, 2), 3.0)}},
  'patch_embed2': {'kernel': jnp.full((2, 2), 3.0)},
  'stage2': {'block0': {'bias': jnp.full((2,), 3.0)}},
  'stage3': {'block0': {'kernel': jnp.full((2, 2), 3.0)}},
  'stage4': {'block0': {'kernel': jnp.full((2, 2), 3.0)}},
  'head': {'kernel': jnp.full((2, 2), 3.0)},
}


@pytest.mark.parametrize('name', ['adamw', 'sgd'])
def test_rates_are_multiplied_exactly(config, name):
  """Weight decay and momentum included; powers of a half are exact."""
  config.optim.update(name=name, clip_norm=0.0, weight_decay=0.5)
  grads = jax.tree.map(jnp.ones_like, PARAMS)

  def second_update(decay):
    config.optim.layer_decay = decay
    optimizer = optim.make_optimizer(config.optim, lambda _: 0.1, (1, 1, 1, 1))
    _, current = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
    updates, _ = optimizer.update(grads, current, PARAMS)
    return traverse_util.flatten_dict(updates, sep='/')

  plain, decayed = second_update(1.0), second_update(0.5)
  ids = {
    'stem': 0,
    'stage1': 1,
    'patch_embed2': 2,
    'stage2': 3,
    'stage3': 5,
    'stage4': 7,
    'head': 8,
  }
  for path, update in plain.items():
    expected = np.asarray(update) * 0.5 ** (8 - ids[path.split('/')[0]])
    np.testing.assert_array_equal(decayed[path], expected, err_msg=path)


def test_models_without_stages():
  with pytest.raises(UserError, match=r'four stages of blocks; this model has conv, head; set'):
    optim.depths_of({'conv': {'kernel': 0}, 'head': {'bias': 0}})


@pytest.mark.parametrize(
  ('step', 'rate'), [(0, 0.1), (1, 0.55), (2, 1.0), (9, 1.0), (10, 0.1), (15, 0.01)]
)
def test_step_schedule_by_hand(config, step, rate):
  config.optim.update(lr=1.0, warmup_lr=0.1, warmup_epochs=1.0, schedule='step')
  config.optim.step_epochs = (5.0, 7.5)
  schedule = optim.make_schedule(config.optim, batch_size=8, steps_per_epoch=2.0, total=20)
  assert float(schedule(jnp.int32(step))) == pytest.approx(rate)


def test_poly_of_a_power_by_hand(config):
  config.optim.update(lr=1.0, schedule='linear', power=0.9, warmup_epochs=0.0)
  schedule = optim.make_schedule(config.optim, batch_size=8, steps_per_epoch=2.0, total=10)
  for step in (0, 3, 9):  # mmsegmentation: (1 - s / total)^power
    assert float(schedule(jnp.int32(step))) == pytest.approx((1 - step / 10) ** 0.9, rel=1e-6)
  assert float(schedule(jnp.int32(10))) == 0


@pytest.mark.parametrize('below', ['', 'backbone'])
def test_rates_by_stage_are_multiplied_exactly(config, below):
  config.optim.update(name='sgd', clip_norm=0.0, weight_decay=0.5, stage_decay=0.5)
  params = {below: PARAMS} if below else dict(PARAMS)
  params |= {'norm2': {'scale': jnp.ones(2)}, 'fpn': {'kernel': jnp.full((2, 2), 3.0)}}
  grads = jax.tree.map(jnp.ones_like, params)
  optimizer = optim.make_optimizer(config.optim, lambda _: 0.1)
  updates, _ = optimizer.update(grads, optimizer.init(params), params)
  config.optim.stage_decay = 1.0
  plain, _ = optim.make_optimizer(config.optim, lambda _: 0.1).update(
    grads, optim.make_optimizer(config.optim, lambda _: 0.1).init(params), params
  )
  powers = dict(stem=5, stage1=4, patch_embed2=3, stage2=3, stage3=2, stage4=1, head=0)
  powers |= dict(norm2=0, fpn=0)
  flat = traverse_util.flatten_dict(plain, sep='/')
  for path, update in traverse_util.flatten_dict(updates, sep='/').items():
    name = path.removeprefix('backbone/').split('/')[0]
    np.testing.assert_array_equal(update, flat[path] * 0.5 ** powers[name], err_msg=path)


def test_layers_of_a_backbone_are_numbered_as_those_of_a_classifier():
  below = {'backbone': PARAMS | {'stage2': {'block0': {'kernel': 0}}}, 'fpn': {'kernel': 0}}
  assert optim.depths_of(below) == (1, 1, 1, 1)
  for path in ('stem/conv/kernel', 'stage3/block0/bias', 'patch_embed4/kernel', 'norm/scale'):
    own = optim.layer_id(path, (1, 1, 1, 1))
    assert optim.layer_id(f'backbone/{path}', (1, 1, 1, 1)) == own
