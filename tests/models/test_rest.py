"""Shapes, options and refusals of ResT and ResTv2."""

import functools
import json
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_weights import drawn
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_jax import UserError, create_model, list_models
from rest_jax.models import rest
from rest_jax.models.emsa import pixel_shuffle
from rest_jax.models.layers import BatchNorm, DropPath, shapes_only

OFFICIAL = json.loads(
  (Path(__file__).parents[1] / 'golden' / 'official_state_dicts.json').read_text()
)
TINY = dict(num_classes=3, widths=(8, 8, 16, 16), depths=(1, 1, 1, 1), heads=(1, 2, 2, 4))


def abstract(model, size, channels=3):
  """Shapes of the variables, without computing any."""
  x = jax.ShapeDtypeStruct((1, *size, channels), jnp.float32)
  with shapes_only():
    init = lambda x: model.init({'params': jax.random.key(0)}, x, train=False)  # noqa: E731
    return jax.eval_shape(init, x), x


def tiny(version, **overrides):
  return create_model('rest_lite' if version == 1 else 'restv2_tiny', **{**TINY, **overrides})


@functools.cache
def apply_of(version, **options):
  """What tests share is compiled once: (variables, images) -> logits of a small model."""
  return jax.jit(tiny(version, **options).apply)


@pytest.mark.parametrize('name', list(OFFICIAL))
def test_parameter_count_and_every_size(name):
  model = create_model(name)
  variables, _ = abstract(model, (64, 64))
  count = sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
  assert count == OFFICIAL[name]['parameters']
  # Blocks keep the size, so one a stage does: tracing all of them takes a minute.
  check_sizes(create_model(name, depths=(1, 1, 1, 1)))


@functools.cache  # with one block a stage some models are the same
def check_sizes(model):
  variables, _ = abstract(model, (64, 64))
  for size in ((32, 32), (33, 47), (225, 333), (640, 384)):
    x = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    maps = jax.eval_shape(lambda v, x: model.apply(v, x, method='features'), variables, x)
    assert [m.shape for m in maps] == [
      (2, -(-size[0] // r), -(-size[1] // r), w)
      for r, w in zip((4, 8, 16, 32), model.widths, strict=True)
    ]
  logits = jax.eval_shape(lambda v, x: model.apply(v, x), variables, x)
  assert logits.shape == (2, 1000)


@pytest.mark.parametrize('version', [1, 2])
@pytest.mark.parametrize('stride', [1, 2, 4])
def test_stem_stride_sets_the_maps_and_no_parameter(version, stride):
  variables, _ = abstract(tiny(version), (32, 32))
  model = tiny(version, stem_stride=stride)
  assert jax.tree.map(jnp.shape, abstract(model, (32, 32))[0]) == jax.tree.map(jnp.shape, variables)
  x = jax.ShapeDtypeStruct((2, 32, 57, 3), jnp.float32)
  maps = jax.eval_shape(lambda v, x: model.apply(v, x, method='features'), variables, x)
  assert [m.shape[1:3] for m in maps] == [
    (-(-32 // r), -(-57 // r)) for r in (stride, 2 * stride, 4 * stride, 8 * stride)
  ]


@pytest.mark.parametrize('version', [1, 2])
@pytest.mark.parametrize('size', [(32, 32), (57, 83)])
def test_odd_sizes_compute(version, size):
  apply = apply_of(version)
  x = jax.random.normal(jax.random.key(1), (2, *size, 3))
  variables = drawn(tiny(version), x)
  logits = apply(variables, x)
  assert logits.shape == (2, 3) and bool(jnp.isfinite(logits).all())
  # Every image by itself: nothing leaks from one to the next.
  np.testing.assert_allclose(apply(variables, x[1:]), logits[1:], atol=1e-4)


@pytest.mark.parametrize(
  ('options', 'missing'),
  [
    (dict(position='none'), 'pos'),
    (dict(attention='msa'), 'sr'),
    (dict(attention='msa'), 'head_conv'),
    (dict(attention='msa'), 'up'),
  ],
)
@pytest.mark.parametrize('version', [1, 2])
def test_ablations_drop_their_parameters(version, options, missing):
  variables, x = abstract(tiny(version, **options), (64, 64))
  names = {k for path in _paths(variables['params']) for k in path}
  assert missing not in names
  assert jax.eval_shape(tiny(version, **options).apply, variables, x).shape == (1, 3)


def _paths(tree):
  return [[p.key for p in path] for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def test_gl_adds_the_local_map():
  model = tiny(1, position='gl')
  x = jax.random.normal(jax.random.key(0), (1, 32, 32, 3))
  variables = drawn(model, x)
  zero = jax.tree_util.tree_map_with_path(
    lambda path, leaf: leaf * 0 if 'pos' in str(path) else leaf, variables
  )
  without = {**zero, 'params': _without_pos(zero['params'])}
  np.testing.assert_allclose(
    jax.jit(model.apply)(zero, x),
    jax.jit(tiny(1, position='none').apply)(without, x),
    atol=1e-5,
  )


def _without_pos(tree):
  if not isinstance(tree, dict):
    return tree
  return {k: _without_pos(v) for k, v in tree.items() if k != 'pos'}


def test_no_head_gives_pooled_features():
  variables, x = abstract(tiny(2, num_classes=0), (32, 32))
  assert 'head' not in variables['params']
  assert jax.eval_shape(tiny(2, num_classes=0).apply, variables, x).shape == (1, 16)


@pytest.mark.parametrize('version', [1, 2])
def test_bfloat16_computes_low_and_keeps_parameters(version):
  x = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
  variables = drawn(tiny(version), x)
  model = tiny(version, dtype=jnp.bfloat16)
  assert abstract(model, (32, 32))[0] == abstract(tiny(version), (32, 32))[0]
  low, want = jax.jit(model.apply)(variables, x), apply_of(version)(variables, x)
  assert low.dtype == jnp.float32
  np.testing.assert_allclose(low, want, atol=0.05 * float(jnp.abs(want).max()) + 1e-3)
  maps = jax.eval_shape(lambda v, x: model.apply(v, x, method='features'), variables, x)
  assert {m.dtype for m in maps} == {jnp.dtype(jnp.bfloat16)}


def test_training_uses_randomness_and_evaluation_does_not():
  model = tiny(1, drop_path_rate=0.9, drop_rate=0.5, attn_drop_rate=0.5)
  x = jax.random.normal(jax.random.key(0), (4, 32, 32, 3))
  variables = drawn(model, x)

  @jax.jit
  def train(key):
    return model.apply(variables, x, train=True, mutable=['batch_stats'], rngs={'dropout': key})

  first, again, other = (train(jax.random.key(i))[0] for i in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  assert not np.array_equal(first, other)
  # Two programs: fused otherwise, they round otherwise.
  np.testing.assert_allclose(
    jax.jit(model.apply)(variables, x), apply_of(1)(variables, x), rtol=0, atol=1e-5
  )


def test_remat_changes_nothing():
  """It is of blocks, and two of a stage show it; the model hands it to each of its stages."""
  model = tiny(1, heads=(2, 2, 2, 2), reductions=(2, 2, 2, 2), remat=True).bind({})
  assert all(getattr(model, f'stage{i}').remat for i in (1, 2, 3, 4))
  x = jax.random.normal(jax.random.key(0), (2, 8, 8, 8))
  stages = [rest.Stage((0.0, 0.0), remat, dict(model.stage1.block)) for remat in (False, True)]
  variables = drawn(stages[0], x, train=False)
  traced = [
    jax.jit(jax.grad(lambda v, s=stage: jnp.sum(s.apply(v, x, True) ** 2))).trace(variables)
    for stage in stages
  ]
  assert ['remat' in str(t.jaxpr) for t in traced] == [False, True]
  plain, again = (t.lower().compile()(variables)['params'] for t in traced)
  size = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(plain))
  chex.assert_trees_all_close(plain, again, atol=1e-6 * size, rtol=1e-4)


def test_stochastic_depth_rises_linearly():
  model = create_model('rest_small', drop_path_rate=0.1).bind({})
  stages = (model.stage1, model.stage2, model.stage3, model.stage4)
  rates = [rate for stage in stages for rate in stage.drop_paths]
  np.testing.assert_allclose(rates, np.linspace(0, 0.1, 12), atol=1e-12)


@given(rate=st.floats(0.0, 0.9), seed=st.integers(0, 9))
def test_drop_path_keeps_or_drops_whole_samples(rate, seed):
  x = jnp.ones((64, 2, 2, 1))
  out = DropPath(rate).apply({}, x, True, rngs={'dropout': jax.random.key(seed)})
  values = np.unique(np.asarray(out).reshape(64, -1), axis=1)
  assert values.shape[1] == 1
  assert set(np.round(values.ravel(), 4)) <= {0.0, np.float32(round(1 / (1 - rate), 4))}


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_pixel_shuffle_places_channels_as_pytorch(height, width, factor):
  channels = 2 * factor**2
  x = np.arange(height * width * channels).reshape(1, height, width, channels)
  out = np.asarray(pixel_shuffle(jnp.asarray(x), factor))
  for c, i, j in np.ndindex(2, height * factor, width * factor):
    source = x[0, i // factor, j // factor, c * factor**2 + (i % factor) * factor + j % factor]
    assert out[0, i, j, c] == source


@settings(max_examples=5)
@given(st.integers(2, 6), st.floats(-3, 3), st.floats(0.1, 4))
def test_batch_norm_statistics_by_hand(samples, mean, deviation):
  x = np.random.default_rng(samples).normal(mean, deviation, (samples, 1, 1, 2))
  norm = BatchNorm()
  variables = norm.init(jax.random.key(0), jnp.asarray(x, jnp.float32), False)
  out, new = norm.apply(variables, jnp.asarray(x, jnp.float32), True, mutable=['batch_stats'])
  flat = x.reshape(samples, 2)
  want = (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
  np.testing.assert_allclose(np.asarray(out).reshape(samples, 2), want, atol=1e-3)
  stats = new['batch_stats']
  np.testing.assert_allclose(stats['mean'], 0.1 * flat.mean(0), rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(stats['var'], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-4)
  assert stats['count'] == 1


def test_batch_norm_synchronised_over_devices():
  x = jax.random.normal(jax.random.key(0), (8, 2, 2, 3)) + jnp.arange(8.0).reshape(8, 1, 1, 1)
  variables = BatchNorm().init(jax.random.key(0), x, False)
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ('batch',))
  spec = jax.sharding.PartitionSpec

  def forward(x):
    norm = BatchNorm(axis_name='batch')
    return norm.apply(variables, x, True, mutable=['batch_stats'])

  mapped = jax.shard_map(
    forward, mesh=mesh, in_specs=spec('batch'), out_specs=(spec('batch'), spec()), check_vma=False
  )
  got = jax.jit(mapped)(x)
  want = BatchNorm().apply(variables, x, True, mutable=['batch_stats'])
  chex.assert_trees_all_close(got, want, atol=1e-5)


@pytest.mark.parametrize(
  ('shape', 'match'),
  [
    ((1, 20, 20, 3), '32 px or more a side, got 20x20'),
    ((1, 64, 31, 3), 'got 64x31'),
    ((1, 64, 64, 1), 'takes 3 channels'),
    ((64, 64, 3), r'\(B, H, W, C\)'),
  ],
)
@pytest.mark.parametrize('version', [1, 2])
def test_refuses_images(version, shape, match):
  with pytest.raises(UserError, match=match):
    jax.eval_shape(tiny(version).init, jax.random.key(0), jnp.zeros(shape))


@pytest.mark.parametrize(
  ('options', 'match'),
  [
    (dict(widths=(8, 8, 8)), 'widths takes four numbers'),
    (dict(heads=(3, 3, 3, 3)), 'does not divide into 3 heads'),
    (dict(reductions=(3, 2, 1, 1)), '1 or even'),
    (dict(stem_stride=8), '1, 2 or 4'),
    (dict(position='sin'), "'pa', 'gl' or 'none'"),
    (dict(attention='flash'), "'emsa' or 'msa'"),
  ],
)
def test_refuses_options(options, match):
  with pytest.raises(UserError, match=match):
    abstract(tiny(1, **options), (32, 32))


def test_create_model_names_what_is_near():
  with pytest.raises(UserError, match=r'did you mean rest_small'):
    create_model('rest_smal')
  with pytest.raises(UserError, match=r'no option .width.; did you mean widths'):
    create_model('rest_lite', width=(8, 8, 8, 8))


def test_list_models_takes_a_pattern():
  assert list_models('restv2*') == ['restv2_base', 'restv2_large', 'restv2_small', 'restv2_tiny']
  assert set(OFFICIAL) < set(list_models())
