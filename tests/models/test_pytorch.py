"""PyTorch state dicts in and out: exact, and every misfit told in one error."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_jax.errors import UserError
from rest_jax.models import create_model, model_dir, pytorch_names
from rest_jax.models.pytorch import from_pytorch, to_pytorch

OFFICIAL = json.loads(
  (Path(__file__).parents[1] / 'golden' / 'official_state_dicts.json').read_text()
)
FINITE = 0x7F800000  # the bits of infinity: below are all finite floats of 0 or more
TINY = dict(widths=(8, 16, 24, 32), heads=(1, 2, 4, 8), depths=(1, 1, 1, 1))


def random_variables(model, seed=0):
  """Variables of random bits that are finite, so that nothing but a copy can return them."""
  rng = np.random.default_rng(seed)
  tensors = {
    name: rng.integers(0, FINITE, spec.shape, np.int32).view(spec.dtype)
    if spec.shape
    else np.array(rng.integers(0, 2**31), spec.dtype)
    for name, spec in model_dir.abstract_tensors(model).items()
  }
  return model_dir.unflatten(tensors)


def assert_same_bytes(left, right):
  assert set(left) == set(right)
  for name, array in left.items():
    other = np.asarray(right[name])
    assert (array.dtype, array.shape) == (other.dtype, other.shape), name
    assert array.tobytes() == other.tobytes(), name


@pytest.fixture(scope='module')
def tiny():
  model = create_model('rest_lite', 10, **TINY)
  return model, to_pytorch(random_variables(model), model)


@pytest.mark.parametrize('name', OFFICIAL)
def test_official_names_come_back_byte_for_byte(name):
  rng = np.random.default_rng(0)
  shapes = OFFICIAL[name]['state_dict']
  official = {
    n: np.array(rng.integers(2**31), np.int64)
    if n.endswith('num_batches_tracked')
    else rng.integers(0, FINITE, tuple(s), np.int32).view(np.float32)
    for n, s in shapes.items()
  }
  model = create_model(name)
  variables = from_pytorch(official, model)
  assert sum(x.size for x in jax.tree.leaves(variables['params'])) == OFFICIAL[name]['parameters']
  assert {x.dtype.name for x in jax.tree.leaves(variables)} == {'float32', 'int32'}
  assert_same_bytes(official, to_pytorch(variables, model))


def test_layouts(tiny):
  model, torch_side = tiny
  ours = model_dir.flatten(from_pytorch(torch_side, model))
  conv, kernel = torch_side['patch_embed_2.conv.weight'], ours['params/patch_embed2/conv/kernel']
  assert conv[5, 3, 0, 2].tobytes() == np.asarray(kernel[0, 2, 3, 5]).tobytes()
  depthwise = torch_side['stage1.0.attn.sr.weight']
  kernel = ours['params/stage1/block0/attn/sr/kernel']
  assert depthwise[6, 0, 8, 1].tobytes() == np.asarray(kernel[8, 1, 0, 6]).tobytes()
  dense, kernel = torch_side['stage2.0.attn.kv.weight'], ours['params/stage2/block0/attn/kv/kernel']
  assert dense[30, 2].tobytes() == np.asarray(kernel[2, 30]).tobytes()
  heads = torch_side['stage3.0.attn.transform_conv.weight']
  kernel = ours['params/stage3/block0/attn/head_conv/kernel']
  assert heads[3, 1, 0, 0].tobytes() == np.asarray(kernel[1, 3]).tobytes()


@settings(max_examples=12)
@given(
  version=st.sampled_from(['rest_lite', 'restv2_tiny']),
  width=st.integers(1, 3),
  depths=st.tuples(*[st.integers(1, 2)] * 4),
  reductions=st.tuples(*[st.sampled_from([1, 2, 4])] * 4),
  position=st.sampled_from(['pa', 'gl', 'none']),
  attention=st.sampled_from(['emsa', 'msa']),
  classes=st.integers(0, 3),
)
def test_any_rest_goes_there_and_back(version, width, depths, reductions, classes, **options):
  widths = tuple(8 * width * 2**i for i in range(4))
  model = create_model(
    version, classes, widths=widths, heads=(1, 2, 4, 8), depths=depths, reductions=reductions,
    **options,
  )  # fmt: skip
  variables = random_variables(model)
  state_dict = to_pytorch(variables, model)
  assert not [n for n in state_dict if 'pos.' in n and f'{options["position"]}_conv' not in n]
  back = model_dir.flatten(from_pytorch(state_dict, model))
  assert_same_bytes(model_dir.flatten(variables), back)


@pytest.mark.parametrize('name', ['resnet18', 'resnet50', 'resnet34_cifar'])
def test_resnets_go_there_and_back(name):
  model = create_model(name, 3, width=4)
  variables = random_variables(model)
  state_dict = to_pytorch(variables, model)
  assert {'conv1.weight', 'bn1.running_var', 'layer2.0.downsample.1.bias', 'fc.weight'} <= set(
    state_dict
  )
  assert_same_bytes(
    model_dir.flatten(variables), model_dir.flatten(from_pytorch(state_dict, model))
  )


def test_every_row_of_the_tables_serves_a_model():
  served = {
    pytorch_names.REST: ['rest_lite'],
    pytorch_names.REST_V2: ['restv2_tiny'],
    pytorch_names.RESNET: ['resnet50'],
  }
  for table, names in served.items():
    paths = [p for n in names for p in model_dir.abstract_tensors(create_model(n))]
    modules = {path.partition('/')[2].rpartition('/')[0] for path in paths}
    for row in table:
      assert any(re.fullmatch(row.pattern, module) for module in modules), row.pattern


def test_misfits_are_all_in_one_error(tiny):
  model, state_dict = tiny
  broken = dict(state_dict)
  del broken['stem.conv1.weight'], broken['norm.bias']
  broken |= {'extra.one': np.zeros(3), 'extra.two': np.zeros(())}
  broken['stem.norm1.bias'] = np.zeros(7, np.float32)
  broken['stage1.0.attn.sr.weight'] = np.zeros((8, 9, 9), np.float32)
  with pytest.raises(UserError) as error:
    from_pytorch(broken, model)
  message = str(error.value)
  assert '2 missing, 2 unexpected, 2 misshapen; missing: norm.bias, stem.conv1.weight;' in message
  assert 'unexpected: extra.one, extra.two;' in message
  assert 'stem.norm1.bias is (7,), not (4,)' in message
  assert 'stage1.0.attn.sr.weight is (8, 9, 9), not (8, 1, 9, 9)' in message
  assert 'drop_head' not in message and '\n' not in message


def test_a_checkpoint_of_another_model_is_refused(tiny):
  with pytest.raises(UserError, match=r'does not fit ResT.*missing.*unexpected'):
    from_pytorch(tiny[1], create_model('restv2_tiny', 10, **TINY))


def test_another_number_of_classes_is_told_with_the_way_out(tiny):
  for classes in (7, 0):
    with pytest.raises(UserError, match=rf'has 10 classes, the model\'s {classes}: drop_head=True'):
      from_pytorch(tiny[1], create_model('rest_lite', classes, **TINY))


def test_drop_head_keeps_the_rest_and_starts_a_new_head(tiny, caplog):
  state_dict = tiny[1]
  model = create_model('rest_lite', 7, **TINY)
  new = model_dir.flatten(from_pytorch(state_dict, model, drop_head=True))
  assert 'head.weight' in caplog.text and '7 classes' in caplog.text
  assert new['params/head/kernel'].shape == (32, 7)
  assert 0 < np.std(new['params/head/kernel']) < 0.1
  other = from_pytorch(state_dict, model, drop_head=True, key=jax.random.key(1))
  assert (other['params']['head']['kernel'] != new['params/head/kernel']).any()
  back = to_pytorch(model_dir.unflatten(new), model)
  kept = {n: a for n, a in state_dict.items() if not n.startswith('head.')}
  assert_same_bytes(kept, {n: back[n] for n in kept})


def test_drop_head_for_a_model_without_one(tiny):
  model = create_model('rest_lite', 0, **TINY)
  assert 'head' not in from_pytorch(tiny[1], model, drop_head=True)['params']


def test_batch_counts_may_be_absent(tiny):
  model, state_dict = tiny
  older = {n: a for n, a in state_dict.items() if not n.endswith('num_batches_tracked')}
  back = to_pytorch(from_pytorch(older, model), model)
  counts = {n: a for n, a in back.items() if n not in older}
  assert counts and set(back) == set(state_dict)
  assert all(a == 0 and a.dtype == np.int64 and a.shape == () for a in counts.values())


def test_a_count_beyond_32_bits_is_refused(tiny):
  model, state_dict = tiny
  with pytest.raises(UserError, match='num_batches_tracked'):
    from_pytorch(state_dict | {'stem.norm1.num_batches_tracked': np.array(2**31)}, model)


def test_other_floats_become_float32(tiny):
  model, state_dict = tiny
  for dtype in (np.float16, np.float64):
    bias = np.linspace(-1, 1, 10).astype(dtype)
    head = from_pytorch(state_dict | {'head.bias': bias}, model)['params']['head']['bias']
    assert head.dtype == np.float32
    np.testing.assert_array_equal(np.asarray(head), bias.astype(np.float32))


@pytest.mark.parametrize('kind', [np.int8, bool, np.complex64])
def test_weights_that_are_no_floats_are_refused(tiny, kind):
  """Those of a quantised model mean nothing without their scales."""
  model, state_dict = tiny
  broken = state_dict | {'norm.bias': np.ones(32, kind)}
  with pytest.raises(
    UserError, match=rf'weights are floats, unlike norm.bias \({np.dtype(kind)}\)'
  ):
    from_pytorch(broken, model)


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf, 1e300])
def test_numbers_that_are_none_are_named(tiny, bad):
  """Half precision of 70000 is infinity already; 1e300 is none of float32's."""
  model, state_dict = tiny
  broken = state_dict | {'norm.bias': np.array([bad] + [0.0] * 31)}
  with pytest.raises(UserError, match=r'1 of \d+ arrays hold NaN or infinity: norm.bias \(1 of 32'):
    from_pytorch(broken, model)
  from_pytorch(broken | {'norm.bias': np.zeros(32, np.float16)}, model)


def test_wrapped_state_dicts_are_taken_as_they_are(tiny):
  model, state_dict = tiny
  names = {f'module._orig_mod.{name}': array for name, array in state_dict.items()}
  counted = names | {'module.total_ops': np.zeros(1), 'module.stem.total_params': np.zeros(1)}
  back = to_pytorch(from_pytorch({'state_dict': {'model': counted}}, model), model)
  assert_same_bytes(state_dict, back)


def test_a_missing_head_is_told_with_the_way_out(tiny):
  model, state_dict = tiny
  headless = {n: a for n, a in state_dict.items() if not n.startswith('head.')}
  with pytest.raises(UserError, match=r'has no head \(head.bias, head.weight\).*drop_head=True'):
    from_pytorch(headless, model)
  assert from_pytorch(headless, model, drop_head=True)['params']['head']['kernel'].shape == (32, 10)


def test_variables_of_another_model_are_refused(tiny):
  variables = from_pytorch(tiny[1], tiny[0])
  with pytest.raises(UserError, match=r'variables do not fit ResT: .*params/head/bias'):
    to_pytorch(variables, create_model('rest_lite', 3, **TINY))


def test_a_module_without_table_is_refused():
  class Unknown(nn.Module):
    @nn.compact
    def __call__(self, x, train):
      return nn.Dense(2)(x.mean((1, 2)))

  with pytest.raises(UserError, match='Unknown has no table of PyTorch names'):
    from_pytorch({}, Unknown())
  with pytest.raises(UserError, match='no row for params/unheard/kernel'):
    pytorch_names.target('params/unheard/kernel', pytorch_names.REST)
