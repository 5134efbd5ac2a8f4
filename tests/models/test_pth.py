"""The reader of `.pth`: exact in both formats, and of a hostile file never more than a line.

The files are written by `pth_writer`, so no PyTorch is needed; where it is installed, its own files
are compared too.
"""

import argparse
import collections
import os
import resource
import struct
import time
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pth_writer import (
  DTYPES,
  STORAGES,
  Call,
  Name,
  Persistent,
  Raw,
  dtype_of,
  pickled,
  plain,
  state_dict,
  streamed,
  tensor,
  zipped,
)  # fmt: skip

from rest_jax.errors import UserError
from rest_jax.models import pth
from rest_jax.models.pytorch import load_state_dict

A = {'w': np.arange(6, dtype=np.float32).reshape(2, 3), 'n': np.array(5)}


def read(content, tmp_path):
  """What a file of these bytes holds, tensors as arrays."""
  path = tmp_path / 'x.pth'
  path.write_bytes(content)
  found = pth.read(path)
  if not isinstance(found, dict):
    return found
  return {k: np.asarray(v) if hasattr(v, 'dtype') else v for k, v in found.items()}


def fault(content, tmp_path):
  """The line about a file of these bytes."""
  with pytest.raises(UserError) as error:
    read(content, tmp_path)
  assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 500
  return str(error.value)


def of_value(value, tmp_path):
  """What comes out where `value` goes in."""
  return read(zipped(pickled({'x': value}), {}), tmp_path)['x']


@st.composite
def views(draw):
  """A dtype, the elements of a storage, and a strided view of them."""
  dtype = draw(st.sampled_from(DTYPES))
  shape = draw(st.lists(st.integers(0, 4), max_size=4))
  seed = draw(st.integers(0, 99))
  raw = np.random.default_rng(seed).bytes(dtype_of(dtype).itemsize * (int(np.prod(shape)) + 5))
  raw = bytes(b & 1 for b in raw) if dtype == 'bool' else raw
  flat = np.frombuffer(raw, dtype_of(dtype))
  offset = draw(st.integers(0, 5))
  view = flat[offset : offset + int(np.prod(shape))].reshape(shape)
  view = view.transpose(draw(st.permutations(range(view.ndim))))
  steps = [draw(st.integers(1, 3)) for _ in range(view.ndim)]
  view = view[tuple(slice(None, None, step) for step in steps)]
  if draw(st.booleans()):
    view = np.broadcast_to(view, (2, *view.shape))
  return dtype, flat, offset, view


@settings(max_examples=300)
@given(views(), st.sampled_from(['little', 'big', None, 'stream', 'part']))
def test_every_dtype_shape_and_stride(tmp_path_factory, view, form):
  dtype, flat, offset, view = view
  strides = tuple(step // flat.itemsize for step in view.strides)
  part = ('9', offset, flat.size - offset) if form == 'part' and dtype in STORAGES else None
  first = 0 if part else offset
  spec = tensor(dtype, '7', flat.size, first, view.shape, strides, view=part)
  if form in ('stream', 'part'):
    size = flat.itemsize if dtype in STORAGES else 1
    content = streamed(pickled({'x': spec}), {'7': flat.tobytes()}, {'7': size})
  else:
    raw = flat.byteswap().tobytes() if form == 'big' else flat.tobytes()
    content = zipped(pickled({'x': spec}), {'7': raw}, byteorder=form)
  found = read(content, tmp_path_factory.getbasetemp())['x']
  assert (found.dtype, found.shape) == (view.dtype, view.shape)
  assert found.tobytes() == view.tobytes() and found.flags.c_contiguous and found.dtype.isnative


def test_complex_halves_conjugates_and_negatives(tmp_path):
  halves = np.array([1, 2, -3, 0.5], np.float16)
  spec = tensor('complex64', '0', 1, 0, (), (), {'conj': True, 'neg': True})
  narrow = Call(
    Name('torch._utils', '_rebuild_tensor_v3'),
    (Persistent(('storage', Name('torch.storage', 'UntypedStorage'), '1', 'cpu', 8)), 0, (2,), (1,),
     False, None, Name('torch', 'complex32')),
  )  # fmt: skip
  storages = {'0': np.complex64(1 + 2j).tobytes(), '1': halves.tobytes()}
  found = read(zipped(pickled({'x': spec, 'y': narrow}), storages), tmp_path)
  assert found['x'] == np.complex64(-1 + 2j) and found['x'].dtype == np.complex64
  np.testing.assert_array_equal(found['y'], np.array([1 + 2j, -3 + 0.5j], np.complex64))


def test_shared_storages_are_read_once(tmp_path):
  row = tensor('float32', '0', 6, 3, (3,), (1,))
  whole = tensor('float32', '0', 6, 0, (2, 3), (3, 1))
  found = read(zipped(pickled({'a': whole, 'b': row}), {'0': A['w'].tobytes()}), tmp_path)
  np.testing.assert_array_equal(found['b'], A['w'][1])
  assert np.shares_memory(found['a'], found['b'])


def numpy_number(text, order, raw):
  kind = Call(Name('numpy', 'dtype'), (text, False, True), (3, order, None, None, None, -1, -1, 0))
  return Call(Name('numpy.core.multiarray', 'scalar'), (kind, raw))


def latin(raw):
  return Call(Name('_codecs', 'encode'), (raw.decode('latin-1'), 'latin1'))


@pytest.mark.parametrize(
  'written, expected',
  [
    (Call(Name('torch', 'Size'), ((2, 3),)), (2, 3)),
    (Call(Name('torch', 'device'), ('cuda', 1)), 'cuda:1'),
    (Call(Name('argparse', 'Namespace'), (), {'lr': 0.1}, new=True), {'lr': 0.1}),
    (Call(Name('collections', 'OrderedDict'), (), {'_metadata': {}}), {}),
    (Call(Name('collections', 'OrderedDict'), ([['a', 1]],)), {'a': 1}),
    (Call(Name('collections', 'Counter'), ({30: 1},)), {30: 1}),
    (Call(Name('__builtin__', 'set'), ([1, 2],)), {1, 2}),
    (Call(Name('builtins', 'complex'), (1.0, 2.0)), 1 + 2j),
    (latin(b'\xff\x00'), b'\xff\x00'),
    (numpy_number('f8', '<', latin(struct.pack('<d', 2.5))), 2.5),
    (numpy_number('i4', '>', struct.pack('>i', -7)), -7),
    (Raw(b'I01\n'), True), (Raw(b'I-12\n'), -12), (Raw(b'L99L\n'), 99), (Raw(b'F1.5\n'), 1.5),
    (Raw(b"S'abc'\n"), 'abc'), (Raw(b'Vabc\n'), 'abc'), (Raw(b'U\x01\xe9'), 'é'),
    (Raw(b'\x8c\x02\xc3\xa9'), 'é'), (Raw(b'\x8a\x02\x00\x80'), -32768), (Raw(b'C\x01x'), b'x'),
    (Raw(b'\x8f(K\x01\x90'), {1}), (Raw(b'(K\x01\x91'), {1}), (Raw(b'(K\x01K\x02l'), [1, 2]),
    (Raw(b'(K\x01K\x02d'), {1: 2}), (Raw(b'K\x05\x94h\x01\x86'), (5, 5)), (Raw(b'K\x010N'), None),
    (Raw(b'(K\x011N'), None), (Raw(b'K\x052\x86'), (5, 5)), (Raw(b']K\x01a'), [1]),
    (Raw(b'\x8c\x0bcollections\x8c\x0bOrderedDict\x93)R'), {}),
  ],
)  # fmt: skip
def test_plain_data_beside_the_tensors(written, expected, tmp_path):
  found = of_value(written, tmp_path)
  assert (found == expected and type(found) is not bool) or found is expected


def test_numpy_arrays(tmp_path):
  kind = Call(Name('numpy', 'dtype'), ('i2', False, True), (3, '>', None, None, None, -1, -1, 0))
  start = (Name('numpy', 'ndarray'), (0,), latin(b'b'))
  state = (1, (2, 2), kind, True, struct.pack('>4h', 1, 2, 3, 4))
  array = Call(Name('numpy._core.multiarray', '_reconstruct'), start, state)
  np.testing.assert_array_equal(of_value(array, tmp_path), np.array([[1, 3], [2, 4]], np.int16))


def test_parameters_are_their_tensors(tmp_path):
  spec, raw = plain(A['w'], '0')
  with_state = Call(
    Name('torch._utils', '_rebuild_parameter_with_state'), (spec, True, {}, {'t': 1})
  )
  typed = Call(
    Name('torch._tensor', '_rebuild_from_type_v2'),
    (spec.name, Name('torch', 'Tensor'), spec.args, {'tag': 3}),
  )
  content = {'p': Call(Name('torch._utils', '_rebuild_parameter'), (spec, True, {})),
             's': with_state, 't': typed}  # fmt: skip
  for array in read(zipped(pickled(content), {'0': raw}), tmp_path).values():
    np.testing.assert_array_equal(array, A['w'])


@pytest.mark.parametrize(
  'pickle, name',
  [
    (pickled(Call(Name('os', 'system'), ('touch ran',))), 'os.system'),
    (pickled(Call(Name('posix', 'system'), ('touch ran',))), 'posix.system'),
    (pickled({'w': Call(Name('builtins', 'eval'), ('1',))}), 'builtins.eval'),
    (pickled(Call(Name('builtins', 'getattr'), ('a', 'b'))), 'builtins.getattr'),
    (pickled(Call(Name('torch.hub', 'load'), ('a', 'b'))), 'torch.hub.load'),
    (pickled(Call(Name('torch.storage', '_load_from_bytes'), (b'',))), '_load_from_bytes'),
    (pickled(Call(Name('torch._utils', '_rebuild_qtensor'), ())), '_rebuild_qtensor'),
    (pickled(Name('mymodule', 'Net')), 'mymodule.Net'),
    (b'\x80\x04\x8c\x02os\x8c\x06system\x93.', 'os.system'),
    (b"(S'ls'\nios\nsystem\n.", 'instruction INST'),
    (b'(cos\nsystem\no.', 'os.system'),
    (b'(NNo.', 'instruction OBJ'),
    (b'\x82\x01.', 'instruction EXT1'),
    (b'N)\x92.', 'instruction NEWOBJ_EX'),
    (b'Pname\n.', 'instruction PERSID'),
    (b'\xff.', 'instruction 0xff'),
    (b'X\x01\x00\x00\x00a)R.', 'calls a'),
    (pickled(Call(Name('torch', 'float32'), ())), 'calls torch.float32'),
    (pickled(Call(Name('argparse', 'Namespace'), (), {'a': 1}, new=True)), None),
    (pickled(Persistent(('module', Name('torch', 'Tensor'), 'f.py', 'source'))), 'module'),
    (pickled(Call(Name('torch.device\nx', 'y'), ())), 'torch.device.x'),
  ],
)  # fmt: skip
def test_what_is_no_data_is_refused_by_name(pickle, name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(os, 'system', lambda command: pytest.fail('executed'))
  for content in (zipped(pickle, {}), streamed(pickle, {}, {})):
    if name is None:
      assert read(content, tmp_path) == {'a': 1}
      continue
    line = fault(content, tmp_path)
    assert name in line and 'nothing of it was executed' in line
  assert not (tmp_path / 'ran').exists()


def huge(count, offset=0, shape=(1,), strides=(1,)):
  return {'w': tensor('float32', '0', count, offset, shape, strides)}


_SET = b'c__builtin__\nset\nh\x00\x85R0'  # a set of the list that has the number 0


def _collide(n):
  """An entry whose key has the same hash for every n."""
  return b'\x8a\x0a' + ((2**61 - 1) * n).to_bytes(10, 'little') + b'Ns'


BOMBS = {
  'text': b'\x8d' + struct.pack('<Q', 2**62) + b'x.',
  'bytes': b'\x96' + struct.pack('<Q', 2**40) + b'x.',
  'line': b'I' + b'9' * 200_000 + b'\n.',
  'digits': b'I' + b'9' * 60_000 + b'\n.',
  'storage': pickled(huge(2**46)),
  'offset': pickled(huge(1, offset=2**46)),
  'expanded': pickled(huge(1, shape=(2**40,), strides=(0,))),
  'expanded often': pickled([huge(1, shape=(2**20,), strides=(0,))] * 60),
  'negative': pickled(huge(1, shape=(-1,))),
  'many axes': pickled(huge(1, shape=(1,) * 40, strides=(0,) * 40)),
  'empty and endless': pickled(huge(1, shape=(0, 2**70), strides=(1, 1))),
  'lists in lists': b']' * 100_000 + b'a' * 99_999 + b'.',
  'tuples in tuples': b')' + b'\x85' * 100_000 + b'.',
  'nested keys': b'})' + b'\x85' * 100_000 + b'Ns.',
  'doubling': b'N' + b'2\x86' * 5_000 + b'.',
  'doubling in a size': b'ctorch\nSize\nN' + b'2\x86' * 5_000 + b'\x85R.',
  'doubling in a message': b'cos\nsystem\nN' + b'2\x86' * 5_000 + b'R.',
  'same list again': b'](' + b'N' * 20_000 + b'eq\x00' + 5_000 * _SET + b'.',
  'large keys': b'}' + b''.join(map(_collide, range(1, 20_000))) + b'.',
}  # fmt: skip


@pytest.mark.parametrize('name', BOMBS)
def test_bombs_do_not_go_off(name, tmp_path):
  storage, path = {'0': b'\0\0\0\0'}, tmp_path / 'x.pth'
  start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  for content in (zipped(BOMBS[name], storage), streamed(BOMBS[name], storage, {'0': 4})):
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
      load_state_dict(path)
    assert len(str(error.value)) < 2000
  assert time.process_time() - start < 10
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17  # KiB


def test_zip_bombs_and_other_archives(tmp_path):
  content, storages = state_dict({'w': np.zeros(100_000, np.float32)})
  small = zipped(pickled(content), storages, method=zipfile.ZIP_DEFLATED)
  assert len(small) < 10_000 and 'is compressed' in fault(small, tmp_path)
  whole = zipped(pickled(content), storages)
  assert 'no data.pkl' in fault(whole.replace(b'data.pkl', b'data.pkx'), tmp_path)
  place = whole.rindex(b'archive/data/0') - 46  # its entry in the list of records
  for field, value in ((20, 2**31), (24, 2**31), (42, 2**31), (10, 8)):
    broken = bytearray(whole)
    broken[place + field : place + field + 4] = struct.pack('<I', value)
    fault(bytes(broken), tmp_path)


def test_a_program_is_told_from_a_checkpoint(tmp_path):
  content = zipped(pickled({}), {})
  path = tmp_path / 'x.pth'
  path.write_bytes(content)
  with zipfile.ZipFile(path, 'a') as archive:
    archive.writestr('archive/constants.pkl', b'')
  with pytest.raises(UserError, match=r'x\.pth is a TorchScript program'):
    pth.read(path)


@pytest.mark.parametrize(
  'content, words',
  [
    (b'', 'is empty'),
    (b'version https://git-lfs.github.com/spec/v1\n', 'Git LFS'),
    (b'<!DOCTYPE html><html>', 'web page'),
    (b'\x1f\x8b\x08', 'gzip'),
    (b'\x89HDF\r\n', 'HDF5'),
    (b'x' * 257 + b'ustar' + b'\0' * 300, 'before 0.1.10'),
    (pickled([1]), 'another pickle'),
    (pickled(0x1950A86A20F9469CFC6C) + pickled(1002), 'version'),
    (b'hello', 'x.pth'),
    (b'PK\x03\x04', 'x.pth'),
  ],
)
def test_what_people_have_in_the_place_of_a_checkpoint(content, words, tmp_path):
  assert words in fault(content, tmp_path)


def test_damage_of_the_storages_is_noticed(tmp_path):
  content, storages = state_dict(A)
  whole = zipped(pickled(content), storages)
  place = whole.index(A['w'].tobytes())
  assert 'checksum' in fault(whole[:place] + b'\1' + whole[place + 1 :], tmp_path)
  assert 'is missing' in fault(zipped(pickled(content), {'0': storages['0']}), tmp_path)
  assert 'where 24 are said' in fault(zipped(pickled(content), storages | {'0': b'1'}), tmp_path)
  assert 'byte order' in fault(zipped(pickled(content), storages, byteorder='middle'), tmp_path)
  stream = streamed(pickled(content), storages, {'0': 4, '1': 8})
  assert read(stream, tmp_path)['n'] == 5
  for cut in range(len(stream) - 60, len(stream)):
    assert 'end is missing' in fault(stream[:cut], tmp_path)
  assert 'length' in fault(streamed(pickled(content), storages, {'0': 1, '1': 8}), tmp_path)


def examples():
  """Pickles and storages of small checkpoints."""
  content, storages = state_dict(A | {'h': np.ones((2, 2), np.float16), 'c': np.ones(2, np.uint16)})
  args = Call(Name('argparse', 'Namespace'), (), {'lr': 0.1, 'name': 'x'}, new=True)
  more = {'epoch': 3, 'args': args, 'best': numpy_number('f8', '<', latin(struct.pack('<d', 2.5)))}
  metadata = Call(Name('collections', 'OrderedDict'), (), {'_metadata': {'': 1}})
  return [
    (pickled(c), storages) for c in (content, {'model': content, **more}, [content, metadata])
  ]


def mutated(content, rng):
  """The bytes with some changed, left out, doubled, or without their end."""
  content = bytearray(content)
  for _ in range(rng.integers(1, 4)):
    kind, place = rng.integers(6), int(rng.integers(len(content)))
    if kind < 3:
      content[place] = rng.integers(256)
    elif kind == 3:
      del content[place : place + int(rng.integers(1, 9))]
    elif kind == 4:
      content[place:place] = content[place : place + int(rng.integers(1, 40))]
    else:
      content[place] ^= 1 << int(rng.integers(8))
  return bytes(content[: rng.integers(1, len(content) + 1)] if rng.integers(8) == 0 else content)


def test_ten_thousand_mutated_files(tmp_path):
  rng, path, read_anyway = np.random.default_rng(0), tmp_path / 'x.pth', 0
  seeds, sizes = examples(), {'0': 4, '1': 8, '2': 2, '3': 1}
  for i in range(10_000):
    pickle, storages = seeds[i % 3]
    inner = mutated(pickle, rng) if i % 4 else pickle
    content = zipped(inner, storages) if i % 5 == 0 else streamed(inner, storages, sizes)
    path.unlink(missing_ok=True)  # several file systems wait for the disk where a file is cut to 0
    path.write_bytes(content if i % 4 else mutated(content, rng))
    try:
      load_state_dict(path)
      read_anyway += 1
    except UserError as error:
      assert str(path) in str(error)
      assert len(str(error)) < 2000
  assert 100 < read_anyway < 5000


def test_a_file_that_holds_itself(tmp_path):
  path = tmp_path / 'x.pth'
  path.write_bytes(zipped(b'}q\x00X\x05\x00\x00\x00modelh\x00s.', {}))
  with pytest.raises(UserError, match='holds no state dict'):
    load_state_dict(path)
  path.write_bytes(zipped(pickled({3: plain(A['w'], '0')[0]}), {'0': A['w'].tobytes()}))
  with pytest.raises(UserError, match='holds no state dict'):
    load_state_dict(path)


def test_files_of_pytorch(tmp_path):
  torch = pytest.importorskip('torch')
  path, generator = tmp_path / 'x.pth', torch.manual_seed(0)
  names = (*DTYPES, 'float8_e4m3fnuz', 'float8_e5m2fnuz', 'float8_e8m0fnu')
  tensors = {}
  for name in names:
    dtype = getattr(torch, name)
    raw = torch.randint(0, 2 if name == 'bool' else 256, (dtype.itemsize * 24,), dtype=torch.uint8,
                        generator=generator)  # fmt: skip
    base = raw.view(dtype).reshape(2, 3, 4)
    views = (base, base.permute(2, 0, 1), base[1, 2, 3], base[:, 1:, ::2], base[:0], base[:, :1])
    tensors |= {f'{name}.{i}': view for i, view in enumerate(views)}
    tensors[f'{name}.expanded'] = base[:, :1].expand(2, 5, 4)
  tensors['conj'] = torch.tensor([1 + 2j]).conj()
  tensors['imag'] = torch.tensor([1 + 2j]).conj().imag
  tensors['parameter'] = torch.nn.Parameter(torch.ones(2))
  wrapped = {'model': collections.OrderedDict(tensors), 'args': argparse.Namespace(lr=0.1)}
  wrapped |= {'rng': np.float64(3), 'size': torch.Size([1]), 'device': torch.device('cpu')}
  for new in (True, False):
    torch.save(wrapped, path, _use_new_zipfile_serialization=new)
    found = pth.read(path)
    assert found['args'] == {'lr': 0.1} and found['rng'] == 3 and found['size'] == (1,)
    for name, value in tensors.items():
      array = np.asarray(found['model'][name])
      value = torch.empty(value.shape, dtype=value.dtype).copy_(value.detach())
      assert array.shape == tuple(value.shape), name
      assert array.tobytes() == bytes(value.reshape(-1).view(torch.uint8).tolist()), name
