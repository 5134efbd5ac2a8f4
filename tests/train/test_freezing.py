"""Frozen parts: not a bit of them changes, and they run as in evaluation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from flax.errors import InvalidRngError

from rest_jax.data.device import normalise, to_unit
from rest_jax.errors import UserError
from rest_jax.models import create_model
from rest_jax.train import freezing, optim, parallel, state, step

PARAMS = {'stem': {'w': 1, 'b': 2}, 'stage1': {'block0': {'w': 3}}, 'head': {'w': 4}}


@pytest.mark.parametrize(
  ('pattern', 'frozen', 'modules'),
  [
    ('', set(), set()),
    ('stem', {'stem/w', 'stem/b'}, {('stem',)}),
    ('stem/w', {'stem/w'}, set()),  # its bias is trained, so the module is
    (
      '.*w',
      {'stem/w', 'stage1/block0/w', 'head/w'},
      {('stage1',), ('stage1', 'block0'), ('head',)},
    ),
    (
      '(?!head/)',
      {'stem/w', 'stem/b', 'stage1/block0/w'},
      {('stem',), ('stage1',), ('stage1', 'block0')},
    ),
  ],
)
def test_what_a_pattern_matches(pattern, frozen, modules):
  trained, kept = freezing.split(PARAMS, pattern)
  assert set(traverse_util.flatten_dict(kept, sep='/')) == frozen
  assert freezing.merge(trained, kept) == PARAMS
  assert freezing.frozen_modules(PARAMS, pattern) == modules


@pytest.mark.parametrize(
  ('pattern', 'message'),
  [('stage7', "'stage7' matches no parameter; paths begin with stem, stage1"), ('', None)],
)
def test_patterns_that_are_refused(pattern, message):
  if message is None:
    freezing.check_pattern(PARAMS, pattern)
    with pytest.raises(UserError, match=r"optim.freeze='s\|h' matches every parameter"):
      freezing.check_pattern(PARAMS, 's|h')
  else:
    with pytest.raises(UserError, match=message):
      freezing.check_pattern(PARAMS, pattern)


def bits(tree):
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_frozen_parts_stay_bitwise(config, batch, tiny_net):
  """Parameters, statistics and their averages; three devices round where they average."""
  config.optim.freeze = 'conv|norm'
  config.train.ema = 0.3
  optimizer = optim.make_optimizer(config.optim, lambda _: 0.1)
  mesh = parallel.make_mesh(jax.devices()[:3])
  create = functools.partial(
    state.create_state,
    tiny_net(drop_rate=0.0),
    optimizer,
    jax.random.key(0),
    8,
    ema=True,
    freeze=config.optim.freeze,
  )
  start = jax.device_get(parallel.replicate(create, mesh)())
  # Values that the first average or addition of zero would change.
  stats = {'mean': np.full(8, 0.1, np.float32), 'var': np.full(8, 0.7, np.float32)}
  stats = {'norm': {**stats, 'count': np.int32(5)}}
  params = {
    **start.params,
    'norm': {'scale': np.full(8, -0.0, np.float32), 'bias': stats['norm']['var']},
  }
  start = start.replace(
    params=params, batch_stats=stats, ema={'params': params, 'batch_stats': stats}
  )
  train_step = parallel.map_train_step(
    step.make_train_step(tiny_net(), optimizer, lambda _: 0.1, config, 3), mesh
  )
  batch = {name: rows[:6] for name, rows in batch.items()}
  new = start
  for _ in range(2):
    new, _ = train_step(new, parallel.to_global(batch, mesh))
  new = jax.device_get(new)
  for part in ('conv', 'norm'):
    assert bits(new.params[part]) == bits(params[part]) == bits(new.ema['params'][part])
  assert bits(new.batch_stats) == bits(stats) == bits(new.ema['batch_stats'])
  assert bits(new.params['head']) != bits(params['head'])
  assert bits(new.ema['params']['head']) != bits(params['head'])
  # Only the head has moments, and only its gradient is measured.
  sizes = {leaf.shape for leaf in jax.tree.leaves(new.opt_state) if leaf.ndim}
  assert sizes == {(8, 3), (3,)}

  # The batch norm used its running statistics: the loss is that of the evaluation's features.
  images = normalise(to_unit(jnp.asarray(batch['image'])), config.data.mean, config.data.std)
  logits = tiny_net().apply({'params': params, 'batch_stats': stats}, images, train=False)
  log_probs = jax.nn.log_softmax(logits)[np.arange(6), batch['label']]
  _, first = train_step(start, parallel.to_global(batch, mesh))
  assert float(first['loss']) == pytest.approx(-float(log_probs.mean()), rel=1e-5)


@pytest.mark.parametrize('remat', [False, True])
def test_a_frozen_backbone_needs_no_chance(remat):
  """Stochastic depth and dropout ask for a key; in frozen modules they are off."""
  model = create_model(
    'rest_lite',
    num_classes=3,
    widths=(8, 16, 32, 64),
    depths=(1, 1, 2, 1),
    drop_path_rate=0.5,
    drop_rate=0.5,
    remat=remat,
  )
  images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
  init = functools.partial(model.init, train=False)
  variables = jax.eval_shape(init, {'params': jax.random.key(0)}, images)

  def run(pattern):
    modules = freezing.frozen_modules(variables['params'], pattern)
    with freezing.evaluating(modules):
      apply = functools.partial(model.apply, train=True, mutable=['batch_stats'])
      return jax.eval_shape(apply, variables, images)

  assert run('(?!head/)')[0].shape == (2, 3)
  with pytest.raises(InvalidRngError, match='dropout'):
    run('stem|stage1/')
