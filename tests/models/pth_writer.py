"""Writes `.pth` files without PyTorch, instruction by instruction, in both formats.

A second hand: it shares nothing with the reader but the specification of pickle and zip.
"""

import dataclasses
import io
import struct
import zipfile
from typing import Any

import ml_dtypes
import numpy as np

# The storage classes of the dtypes that have one; the others are written as untyped bytes.
STORAGES = {
  'bool': 'Bool', 'uint8': 'Byte', 'int8': 'Char', 'int16': 'Short', 'int32': 'Int',
  'int64': 'Long', 'float16': 'Half', 'float32': 'Float', 'float64': 'Double',
  'bfloat16': 'BFloat16', 'complex64': 'ComplexFloat', 'complex128': 'ComplexDouble',
}  # fmt: skip
UNTYPED = ('uint16', 'uint32', 'uint64', 'float8_e4m3fn', 'float8_e5m2')
DTYPES = (*STORAGES, *UNTYPED)


def dtype_of(name):
  """NumPy's dtype of a PyTorch name."""
  return np.dtype(getattr(ml_dtypes, name) if hasattr(ml_dtypes, name) else name)


@dataclasses.dataclass(frozen=True)
class Name:
  """GLOBAL."""

  module: str
  name: str


@dataclasses.dataclass
class Call:
  """REDUCE (or NEWOBJ), and BUILD where there is a state."""

  name: Any
  args: tuple
  state: Any = None
  new: bool = False


@dataclasses.dataclass
class Persistent:
  """BINPERSID."""

  identifier: Any


@dataclasses.dataclass
class Raw:
  """Instructions as they are."""

  code: bytes


def pickled(value) -> bytes:
  """A pickle of protocol 2."""
  out, memo = io.BytesIO(), {}
  out.write(b'\x80\x02')
  _emit(value, out.write, memo)
  return out.getvalue() + b'.'


def _emit(value, write, memo):
  if isinstance(value, str):
    _emit_text(value, write, memo)
  elif isinstance(value, Name):
    write(f'c{value.module}\n{value.name}\n'.encode())
  elif isinstance(value, Call):
    _emit(value.name, write, memo)
    _emit(value.args, write, memo)
    write(b'\x81' if value.new else b'R')
    if value.state is not None:
      _emit(value.state, write, memo)
      write(b'b')
  elif isinstance(value, Persistent):
    _emit(value.identifier, write, memo)
    write(b'Q')
  elif isinstance(value, dict):
    write(b'}(')
    for pair in value.items():
      for part in pair:
        _emit(part, write, memo)
    write(b'u')
  elif isinstance(value, list | tuple):
    write(b'](' if isinstance(value, list) else b'(')
    for part in value:
      _emit(part, write, memo)
    write(b'e' if isinstance(value, list) else b't')
  else:
    write(_atom(value))


def _emit_text(text, write, memo):
  if text in memo:
    write(b'h' + bytes([memo[text]]))
    return
  content = text.encode()
  write(b'X' + struct.pack('<I', len(content)) + content)
  if len(memo) < 256:
    memo[text] = len(memo)
    write(b'q' + bytes([memo[text]]))


def _atom(value) -> bytes:
  if isinstance(value, Raw):
    return value.code
  if value is None or isinstance(value, bool):
    return {None: b'N', True: b'\x88', False: b'\x89'}[value]
  if isinstance(value, float):
    return b'G' + struct.pack('>d', value)
  if isinstance(value, bytes):
    return b'B' + struct.pack('<I', len(value)) + value
  if 0 <= value < 256:
    return b'K' + bytes([value])
  if -(2**31) <= value < 2**31:
    return b'J' + struct.pack('<i', value)
  content = value.to_bytes(value.bit_length() // 8 + 1, 'little', signed=True)
  return b'\x8a' + bytes([len(content)]) + content


def tensor(dtype, key, count, offset, shape, strides, bits=None, view=None):
  """What stands for a tensor in a pickle.

  Args:
    dtype: PyTorch's name.
    key: of the storage.
    count: elements of the storage.
    offset: first element.
    shape: lengths.
    strides: in elements.
    bits: the metadata of conjugate and negative views.
    view: (key, first, count) of a part of the storage, as old files have it.
  """
  typed = dtype in STORAGES
  kind = (
    Name('torch', f'{STORAGES[dtype]}Storage') if typed else Name('torch.storage', 'UntypedStorage')
  )
  length = count if typed else count * dtype_of(dtype).itemsize
  identifier = ('storage', kind, key, 'cpu', length)
  hooks = Call(Name('collections', 'OrderedDict'), ())
  args = (Persistent(identifier if view is None else (*identifier, view)), offset, shape, strides,
          False, hooks)  # fmt: skip
  args = args if typed else (*args, Name('torch', dtype))
  args = args if bits is None else (*args, bits)
  return Call(Name('torch._utils', f'_rebuild_tensor_v{2 if typed else 3}'), args)


def plain(array, key):
  """A contiguous tensor and its storage's bytes."""
  array = np.asarray(array)
  strides = tuple(step // array.itemsize for step in np.empty(array.shape, array.dtype).strides)
  spec = tensor(array.dtype.name, key, array.size, 0, array.shape, strides)
  return spec, array.tobytes()


def state_dict(arrays):
  """The content and the storages of a dict of arrays, as torch.save has them."""
  parts = {name: plain(array, str(i)) for i, (name, array) in enumerate(arrays.items())}
  content = {name: spec for name, (spec, _) in parts.items()}
  return content, {str(i): raw for i, (_, raw) in enumerate(parts.values())}


def zipped(pickle: bytes, storages, *, byteorder='little', method=zipfile.ZIP_STORED) -> bytes:
  """The archive of a pickle and its storages."""
  out = io.BytesIO()
  with zipfile.ZipFile(out, 'w', method) as archive:
    records = {'data.pkl': pickle, 'version': b'3\n'}
    records |= {'byteorder': byteorder.encode()} if byteorder else {}
    records |= {f'data/{key}': raw for key, raw in storages.items()}
    for name, content in records.items():
      archive.writestr(zipfile.ZipInfo(f'archive/{name}'), content, method)
  return out.getvalue()


def streamed(pickle: bytes, storages, sizes) -> bytes:
  """The older stream; `sizes` are bytes an element of every storage."""
  system = {'protocol_version': 1001, 'little_endian': True, 'type_sizes': {'int': 4}}
  parts = [pickled(0x1950A86A20F9469CFC6C), pickled(1001), pickled(system), pickle]
  parts.append(pickled(list(storages)))
  for key, raw in storages.items():
    parts += [struct.pack('<q', len(raw) // sizes[key]), raw]
  return b''.join(parts)
