"""The names that may occur in a checkpoint's pickle: what each of them becomes.

A `Name` is a pair of words and stays one: nothing is imported. Where a pickle calls one, `CALLS`
has a function of ours that makes plain data of the arguments: dicts of ordered dicts, counters and
namespaces, tuples of sizes, strings of devices, Python numbers of NumPy's scalars.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from rest_jax.models.pth.faults import Name, damaged, refused, shown
from rest_jax.models.pth.tensors import DTYPES, STORAGES, Budget, Part, Tensor, strided

_ENTRY = 64  # bytes that an entry of a copied list or dict takes, about
_ATOMS = (str, bytes, int, float, bool, type(None))


class Namespace(dict):
  """The entries of an `argparse.Namespace`."""


class NumpyType:
  """A dtype in the making: its byte order comes after it."""

  def __init__(self, text: Any):
    if not isinstance(text, str) or not re.fullmatch(r'[<>=|]?(b1|[iu][1248]|f[248]|c8|c16)', text):
      raise refused(f'holds a NumPy array of {shown(text)}')
    self.dtype = np.dtype(text)

  def set_state(self, state: Any) -> None:
    """Takes what pickled dtypes bring: (version, byte order, ...)."""
    if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ('<', '>', '=', '|'):
      raise damaged(f'a NumPy type in the state {shown(state)}')
    if state[1] != '|':
      self.dtype = self.dtype.newbyteorder(state[1])


class NumpyArray:
  """An array in the making; afterwards what a `Tensor` is to those who read it."""

  def __init__(self):
    self.array = np.empty(0, np.uint8)

  def set_state(self, state: Any) -> None:
    """Takes what pickled arrays bring: (version, shape, dtype, Fortran order, bytes)."""
    if not isinstance(state, tuple) or len(state) != 5:
      raise damaged('a NumPy array without its parts')
    _, shape, kind, fortran, content = state
    if not isinstance(kind, NumpyType) or not isinstance(shape, tuple):
      raise damaged('a NumPy array without shape or type')
    flat = np.frombuffer(as_bytes(content), kind.dtype)
    array = flat.reshape(shape, order='F' if fortran is True else 'C')
    self.array = array.astype(kind.dtype.newbyteorder('='))

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the array."""
    return self.array.shape

  @property
  def dtype(self) -> np.dtype:
    """Of the array."""
    return self.array.dtype

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    """The array."""
    return self.array if dtype is None and not copy else np.array(self.array, dtype)


def as_bytes(value: Any) -> bytes:
  """Bytes, or a Python 2 string that stands for them."""
  return value.encode('latin-1') if isinstance(value, str) else bytes(memoryview(value))


def check_key(key: Any) -> Any:
  """Lets through what may be a key or an element of a set; others can make hashing run away."""
  parts = key if isinstance(key, tuple) and len(key) < 9 else (key,)
  for part in parts:
    if not isinstance(part, (*_ATOMS, Name)) or (isinstance(part, int) and part.bit_length() > 60):
      raise damaged('a dictionary whose keys are no words or numbers')
  return key


class Names:
  """What the names of one file may do; keeps count of its tensors."""

  def __init__(self, budget: Budget):
    self._budget = budget
    self._calls: dict[str, Callable[..., Any]] = {
      **_PLAIN,
      'torch._utils._rebuild_tensor': self._tensor,
      'torch._utils._rebuild_tensor_v2': self._tensor_v2,
      'torch._utils._rebuild_tensor_v3': self._tensor_v3,
      'torch._tensor._rebuild_from_type_v2': self._from_type,
    }

  def find(self, module: str, name: str) -> Name:
    """A name that a pickle may use.

    Raises:
      PthError: any other.
    """
    found = Name(module, name)
    if str(found) not in self._calls and str(found) not in _DATA:
      raise refused(f'needs {shown(found)}, which is neither a tensor nor plain data')
    return found

  def call(self, name: Any, args: Any) -> Any:
    """What a pickle gets where it calls `name(*args)`.

    Raises:
      PthError: what is called is no name of the list, or the arguments do not fit.
    """
    call = self._calls.get(str(name)) if isinstance(name, Name) else None
    if call is None or not isinstance(args, tuple):
      raise refused(f'calls {shown(name)}')
    self._charge(args)
    return call(*args)

  def build(self, value: Any, state: Any) -> None:
    """What a pickle gives an object beside its making.

    Raises:
      PthError: an object that takes none.
    """
    self._charge(state if isinstance(state, tuple) else (state,))
    if isinstance(value, NumpyType | NumpyArray):
      value.set_state(state)
    elif isinstance(value, Namespace) and isinstance(state, dict):
      value.update(state)
    elif not isinstance(value, dict) or not isinstance(state, dict):
      # An ordered dict's attributes (PyTorch's _metadata: versions of modules) are no weights.
      raise damaged(f'a {type(value).__name__} with attributes')

  def _charge(self, values: tuple) -> None:
    """Counts what may be copied: a few bytes can name the same long list again and again."""
    for value in values:
      if isinstance(value, str | bytes | bytearray):
        self._budget.take(len(value))
      elif isinstance(value, list | tuple | dict | set):
        self._budget.take(_ENTRY * len(value))

  def _tensor(self, part, first, shape, strides) -> Tensor:
    dtype = part.storage.dtype if isinstance(part, Part) else np.dtype(np.uint8)
    return strided(part, dtype, first, shape, strides, self._budget)

  def _tensor_v2(self, part, first, shape, strides, grad=False, hooks=None, more=None) -> Tensor:
    dtype = part.storage.dtype if isinstance(part, Part) else np.dtype(np.uint8)
    return self._typed(part, first, shape, strides, dtype, more)

  def _tensor_v3(self, part, first, shape, strides, grad, hooks, dtype, more=None) -> Tensor:
    name = dtype.name if isinstance(dtype, Name) and dtype.module == 'torch' else ''
    if name not in DTYPES:
      raise refused(f'holds a tensor of {shown(dtype)}, which NumPy has no type for')
    return self._typed(part, first, shape, strides, DTYPES[name], more)

  def _typed(self, part, first, shape, strides, dtype, more) -> Tensor:
    bits = more if isinstance(more, dict) else {}
    return strided(
      part, dtype, first, shape, strides, self._budget,
      conjugate=bits.get('conj') is True, negative=bits.get('neg') is True,
    )  # fmt: skip

  def _from_type(self, function, kind, args, state) -> Any:
    """A tensor with attributes of its own, which are left out."""
    if kind not in (Name('torch', 'Tensor'), Name('torch.nn.parameter', 'Parameter')):
      raise refused(f'holds a tensor of the class {shown(kind)}')
    if function == Name('torch._tensor', '_rebuild_from_type_v2'):
      raise damaged('a tensor with attributes within another one')
    return self.call(function, args)


def _parameter(data, grad=False, hooks=None, state=None) -> Any:
  return data


def _mapping(entries=()) -> dict:
  pairs = entries.items() if isinstance(entries, dict) else entries
  return {check_key(key): value for key, value in pairs}


def _counter(entries: Any = ()) -> dict:
  if not isinstance(entries, dict):
    raise damaged('a counter without counts')
  return dict(entries)


def _scalar(kind, content) -> Any:
  if not isinstance(kind, NumpyType):
    raise damaged('a NumPy number without type')
  return np.frombuffer(as_bytes(content), kind.dtype, 1)[0].item()


def _array(kind, shape, code) -> NumpyArray:
  if kind != Name('numpy', 'ndarray'):
    raise refused(f'holds an array of the class {shown(kind)}')
  return NumpyArray()


def _encode(text, encoding) -> bytes:
  if not isinstance(text, str) or encoding != 'latin1':
    raise damaged('bytes in an unknown encoding')
  return text.encode('latin-1')


def _size(lengths=()) -> tuple[int, ...]:
  if not isinstance(lengths, tuple) or not all(type(n) is int for n in lengths):
    raise damaged('a size that is no list of whole numbers')
  return lengths


def _set(values=()) -> set:
  if not isinstance(values, list | tuple):
    raise damaged('a set of no list')
  return {check_key(value) for value in values}


def _complex(real, imaginary) -> complex:
  return complex(float(real), float(imaginary))


def _bytes(content=b'', encoding=None) -> bytes:
  if not isinstance(content, bytes | str):
    raise damaged('bytes that are none')
  return as_bytes(content)


def _words(*parts) -> str:
  return ':'.join(shown(part) for part in parts)


_PLAIN: dict[str, Callable[..., Any]] = {
  'torch._utils._rebuild_parameter': _parameter,
  'torch._utils._rebuild_parameter_with_state': _parameter,
  'torch.Size': _size,
  'torch.device': _words,
  'collections.OrderedDict': _mapping,
  'collections.Counter': _counter,
  'argparse.Namespace': lambda: Namespace(),
  '_codecs.encode': _encode,
  'numpy.dtype': lambda text, align=False, copy=True: NumpyType(text),
  **{
    f'numpy.{core}.multiarray.{name}': call
    for core in ('core', '_core')
    for name, call in {'scalar': _scalar, '_reconstruct': _array}.items()
  },
  **{
    f'{module}.{name}': call
    for module in ('builtins', '__builtin__')
    for name, call in {
      'set': _set, 'frozenset': _set, 'complex': _complex, 'bytearray': _bytes, 'bytes': _bytes,
    }.items()
  },
}  # fmt: skip

# Names that are given to others and never called.
_DATA = frozenset(
  ['torch.Tensor', 'torch.nn.parameter.Parameter', 'numpy.ndarray']
  + [f'torch.{name}' for name in DTYPES]
  + [f'{module}.{name}' for module in ('torch', 'torch.cuda', 'torch.storage') for name in STORAGES]
)
