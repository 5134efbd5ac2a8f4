"""Checkpoint files: every wrapping that training scripts use, and every way to be no checkpoint."""

import argparse
import builtins
import pickle
import sys
import zipfile

import jax.numpy as jnp
import numpy as np
import pth_writer
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from rest_jax.errors import UserError
from rest_jax.models import pytorch
from rest_jax.models.pytorch import load_state_dict

A = {'w': np.arange(6, dtype=np.float32).reshape(2, 3), 'n': np.array(5)}
WRAPPERS = ('state_dict', 'model', 'model_ema', 'model_state_dict')
B = {'w': -A['w'], 'n': np.array(6)}


def same(left, right):
  assert set(left) == set(right)
  for name in left:
    np.testing.assert_array_equal(left[name], right[name])


def read(content, monkeypatch, tmp_path, **options):
  """`load_state_dict` of a file whose content PyTorch would give as `content`."""
  monkeypatch.setattr(pytorch, '_read_pth', lambda path: content)
  (tmp_path / 'x.pth').touch()
  return load_state_dict(tmp_path / 'x.pth', **options)


@pytest.mark.parametrize(
  'content',
  [
    A,
    {'model': A},
    {'model_ema': A},
    {'state_dict': A},
    {'state_dict_ema': A},
    {'model': A, 'model_ema': B, 'epoch': 3, 'optimizer': {'lr': 1}},
    {'state_dict': {'model': A}},
    {f'module.{name}': array for name, array in A.items()},
    {'model': {f'module.{name}': array for name, array in A.items()}},
  ],
)
def test_wrappings(content, monkeypatch, tmp_path):
  same(read(content, monkeypatch, tmp_path), A)


def test_averaged_weights_on_request(monkeypatch, tmp_path):
  both = {'model': A, 'model_ema': B}
  same(read(both, monkeypatch, tmp_path, ema=True), B)
  for content in ({'model': A}, A):
    with pytest.raises(UserError, match='no averaged weights'):
      read(content, monkeypatch, tmp_path, ema=True)


PREFIXES = ('_orig_mod.', 'module.', 'model.', 'backbone.', 'net.')


@given(
  st.lists(st.sampled_from(PREFIXES), max_size=4), st.lists(st.sampled_from(WRAPPERS), max_size=3)
)
def test_prefixes_and_wrappers_in_any_stacking(prefixes, wrappers):
  content = {''.join(prefixes) + name: array for name, array in A.items()}
  for wrapper in wrappers:
    content = {wrapper: content, 'epoch': 3}
  same(pytorch.plain_names(pytorch.unwrap(content, 'x')), A)


def test_compiled_parts_and_counters_of_profilers():
  names = {
    'module.stage1._orig_mod.0.w': A['w'],
    'module._orig_mod.stage1.0._fsdp_wrapped_module.b': A['n'],
    'module.stage1.total_ops': np.zeros(1),
    'total_ops': np.zeros(1),
    'total_params': np.zeros(1),
  }
  same(pytorch.plain_names(names), {'stage1.0.w': A['w'], 'stage1.0.b': A['n']})
  with pytest.raises(UserError, match='holds w twice'):
    pytorch.plain_names({'w': A['w'], '_orig_mod.w': A['w']})


def test_a_prefix_of_some_names_only_is_a_name(monkeypatch, tmp_path):
  mixed = {'module.w': A['w'], 'n': A['n']}
  same(read(mixed, monkeypatch, tmp_path), mixed)


@pytest.mark.parametrize(
  'content', [{'epoch': 3}, {}, [1, 2], {'model': {'a': 1}}, None, {0: A['w']}]
)
def test_no_state_dict_inside(content, monkeypatch, tmp_path):
  with pytest.raises(UserError, match=r'x\.pth holds no state dict'):
    read(content, monkeypatch, tmp_path)


def test_safetensors(tmp_path):
  path = tmp_path / 'x.safetensors'
  half = {'b': A['w'].astype(jnp.bfloat16), 'h': A['w'].astype(np.float16)}
  safetensors.numpy.save_file(A | half, path)
  tensors = load_state_dict(path)
  same(tensors, A | {'b': A['w'], 'h': A['w']})
  assert tensors['b'].dtype == tensors['h'].dtype == np.float32
  assert tensors['n'].dtype == np.int64
  with pytest.raises(UserError, match='without ema'):
    load_state_dict(path, ema=True)
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(UserError, match=r'x\.safetensors is no complete safetensors file'):
    load_state_dict(path)


def test_no_file_or_another_kind(tmp_path):
  with pytest.raises(UserError, match='there is no checkpoint'):
    load_state_dict(tmp_path / 'absent.pth')
  (tmp_path / 'x.npz').touch()
  with pytest.raises(UserError, match='ends in one of'):
    load_state_dict(tmp_path / 'x.npz')


def test_a_checkpoint_needs_no_pytorch(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, 'torch', None)
  content, storages = pth_writer.state_dict(A)
  wrapped = pth_writer.pickled({'model_ema': content, 'epoch': 3})
  (tmp_path / 'x.pth').write_bytes(pth_writer.zipped(wrapped, storages))
  same(load_state_dict(tmp_path / 'x.pth'), A)
  (tmp_path / 'x.pt').write_bytes(pth_writer.streamed(wrapped, storages, {'0': 4, '1': 8}))
  same(load_state_dict(tmp_path / 'x.pt', ema=True), A)


def test_pytorch_checkpoint(tmp_path):
  torch = pytest.importorskip('torch')
  tensors = {name: torch.from_numpy(np.array(array)) for name, array in A.items()}
  tensors['w'] = torch.nn.Parameter(tensors['w'])
  tensors['b'] = torch.tensor([1.5], dtype=torch.bfloat16)
  args = argparse.Namespace(lr=0.1, model='rest_small')
  path = tmp_path / 'x.pth'
  for legacy in (False, True):
    torch.save(
      {'model': tensors, 'args': args, 'epoch': 9}, path, _use_new_zipfile_serialization=not legacy
    )
    same(load_state_dict(path), A | {'b': np.float32([1.5])})


def test_pytorch_refuses_code_and_damage(tmp_path):
  torch = pytest.importorskip('torch')
  path = tmp_path / 'x.pth'

  class Evil:
    def __reduce__(self):
      return builtins.exec, ('raise SystemExit("ran")',)

  torch.save({'model': {'w': torch.zeros(2)}, 'x': Evil()}, path)
  with pytest.raises(UserError, match=r'needs \S+exec, which is neither'):
    load_state_dict(path)
  torch.save({'w': torch.zeros(2000)}, path)
  whole = path.read_bytes()
  with zipfile.ZipFile(tmp_path / 'zip.pth', 'w') as archive:
    archive.writestr('a', 'b')
  for content in (whole[:-2000], whole[:50], b'', b'hello', pickle.dumps([1]), None):
    if content is not None:
      path.write_bytes(content)
    with pytest.raises(UserError, match=r'\.pth'):
      load_state_dict(path if content is not None else tmp_path / 'zip.pth')
