"""Layer decay against the ids of the authors' optim_factory, written out by name."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from rest_jax.errors import UserError
from rest_jax.models import create_model, model_dir
from rest_jax.models.convert_tables import table_for, target
from rest_jax.train import layer_decay, optim

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


def by_table(name, table):
  """The id of a PyTorch name: that of the listed module it lies in."""
  parts = name.split('.')
  return table['.'.join(parts[:2])] if parts[0].startswith('stage') else table[parts[0]]


@pytest.mark.parametrize(('name', 'table'), [('restv2_tiny', V2_TINY), ('rest_lite', V1_LITE)])
def test_ids_of_every_parameter_by_name(name, table):
  model = create_model(name)
  paths = [path for path in model_dir.abstract_tensors(model) if path.startswith('params/')]
  rows, seen = table_for(model), set()
  depths = layer_decay.depths_of(params_of(model))
  assert depths == tuple(model.depths)
  for path in paths:
    torch_name = target(path, rows).torch_name
    seen.add(torch_name)
    own = layer_decay.layer_id(path.removeprefix('params/'), depths)
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
    layer_decay.depths_of({'conv': {'kernel': 0}, 'head': {'bias': 0}})


@pytest.mark.parametrize(
  ('step', 'rate'), [(0, 0.1), (1, 0.55), (2, 1.0), (9, 1.0), (10, 0.1), (15, 0.01)]
)
def test_step_schedule_by_hand(config, step, rate):
  config.optim.update(lr=1.0, warmup_lr=0.1, warmup_epochs=1.0, schedule='step')
  config.optim.step_epochs = (5.0, 7.5)
  schedule = optim.make_schedule(config.optim, batch_size=8, steps_per_epoch=2.0, total=20)
  assert float(schedule(jnp.int32(step))) == pytest.approx(rate)
