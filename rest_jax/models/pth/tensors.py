"""Storages and the tensors that look into them; bytes are read when an array is asked for."""

from __future__ import annotations

import dataclasses
import math
import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from rest_jax.models.pth.faults import PthError, damaged, reading, shown

# PyTorch's complex32 is a pair of halves, which NumPy does not know: it is read as bytes first.
_COMPLEX32 = np.dtype('V4')
DTYPES: dict[str, np.dtype] = {
  name: np.dtype(kind)
  for name, kind in {
    'bool': np.bool_, 'uint8': np.uint8, 'int8': np.int8, 'int16': np.int16, 'int32': np.int32,
    'int64': np.int64, 'uint16': np.uint16, 'uint32': np.uint32, 'uint64': np.uint64,
    'float16': np.float16, 'float32': np.float32, 'float64': np.float64,
    'bfloat16': ml_dtypes.bfloat16, 'complex32': _COMPLEX32, 'complex64': np.complex64,
    'complex128': np.complex128, 'float8_e4m3fn': ml_dtypes.float8_e4m3fn,
    'float8_e4m3fnuz': ml_dtypes.float8_e4m3fnuz, 'float8_e5m2': ml_dtypes.float8_e5m2,
    'float8_e5m2fnuz': ml_dtypes.float8_e5m2fnuz, 'float8_e8m0fnu': ml_dtypes.float8_e8m0fnu,
  }.items()
}  # fmt: skip
STORAGES = {
  f'{name}Storage': DTYPES[dtype]
  for name, dtype in {
    'Bool': 'bool', 'Byte': 'uint8', 'Char': 'int8', 'Short': 'int16', 'Int': 'int32',
    'Long': 'int64', 'Half': 'float16', 'Float': 'float32', 'Double': 'float64',
    'BFloat16': 'bfloat16', 'ComplexFloat': 'complex64', 'ComplexDouble': 'complex128',
    'Untyped': 'uint8',
  }.items()
}  # fmt: skip

_MOST_AXES = 32
# A tensor may be larger than its storage (expanded axes) and several may share one. Real files stay
# far below; a file that goes beyond would fill the memory.
_MOST_TIMES, _ALLOWANCE = 16, 2**26


@dataclasses.dataclass(eq=False)
class Storage:
  """A run of bytes in the file.

  Attributes:
    path: the file.
    dtype: of its elements.
    count: how many.
    offset: of the first byte; None until it is known (the stream has its storages last).
    checksum: CRC-32 of the bytes; 0 for none.
    big_endian: whether the most significant byte comes first.
  """

  path: Path
  dtype: np.dtype
  count: int
  offset: int | None = None
  checksum: int = 0
  big_endian: bool = False
  _bytes: np.ndarray | None = dataclasses.field(default=None, repr=False)

  @property
  def nbytes(self) -> int:
    """Length in bytes."""
    return self.count * self.dtype.itemsize

  def content(self) -> np.ndarray:
    """The bytes, uint8 (nbytes,), read once."""
    if self._bytes is None:
      content = np.empty(self.nbytes, np.uint8)
      with open(self.path, 'rb') as file:
        file.seek(self.offset or 0)
        if file.readinto(content.data) != self.nbytes:
          raise damaged('its end is missing')
      if self.checksum and zlib.crc32(content.data) != self.checksum:
        raise damaged('the bytes of a tensor do not have their checksum')
      self._bytes = content
    return self._bytes


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
  """A storage, or some elements in the middle of one, as older files have them."""

  storage: Storage
  first: int
  count: int


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
  """A strided view of a storage; `np.asarray` reads it, contiguous and in native byte order.

  Attributes:
    shape: of the array.
    dtype: of the array; complex32 is given as complex64.
  """

  part: Part
  element: np.dtype
  first: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]
  conjugate: bool = False
  negative: bool = False

  @property
  def dtype(self) -> np.dtype:
    """NumPy's, of the array."""
    return np.dtype(np.complex64) if self.element == _COMPLEX32 else self.element

  @property
  def nbytes(self) -> int:
    """Length in bytes, were every element stored."""
    return math.prod(self.shape) * self.element.itemsize

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    """The values; those of tensors that share bytes in the file may share them.

    Raises:
      UserError: the file changed since, or its bytes are not those that were written.
    """
    with reading(self.part.storage.path):
      array = np.asarray(self._values())  # arithmetic on a single value leaves no array
    return array if dtype is None and not copy else np.array(array, dtype)

  def _values(self) -> np.ndarray:
    size = self.element.itemsize
    if not self.nbytes:
      return np.empty(self.shape, self.dtype)
    start = self.part.first * self.part.storage.dtype.itemsize + self.first * size
    array = _order(np.ndarray(
      self.shape,
      self.element,
      self.part.storage.content(),
      start,
      tuple(step * size for step in self.strides),
    ), self.part.storage.big_endian)  # fmt: skip
    array = np.conjugate(array) if self.conjugate else array
    return np.negative(array) if self.negative else array


def _order(array: np.ndarray, big_endian: bool) -> np.ndarray:
  """A strided view of the file's bytes as a contiguous array of native order."""
  if array.dtype == np.bool_:
    return array.view(np.uint8) != 0  # a byte other than 0 and 1 is no NumPy truth value
  array = np.require(array, requirements='C')
  if array.dtype == _COMPLEX32:
    pairs = array.reshape(-1).view(np.float16)
    pairs = pairs.byteswap() if big_endian else pairs
    return pairs.astype(np.float32).view(np.complex64).reshape(array.shape)
  return array.byteswap() if big_endian else array


class Budget:
  """How many bytes the tensors of a file may have together."""

  def __init__(self, file_size: int):
    self._size, self._left = file_size, _MOST_TIMES * file_size + _ALLOWANCE

  def take(self, nbytes: int) -> None:
    """Counts a tensor.

    Raises:
      PthError: it is one too many.
    """
    self._left -= nbytes
    if self._left < 0:
      raise damaged(f'its tensors claim far more than the {self._size} bytes that it has')


def strided(
  part: Any, element: np.dtype, first: Any, shape: Any, strides: Any, budget: Budget, **bits: bool
) -> Tensor:
  """A tensor, once all that the file says of it holds.

  Args:
    part: what it looks into.
    element: dtype of an element.
    first: the first element, counted in the part.
    shape: lengths of the axes.
    strides: elements from one index of an axis to the next.
    budget: takes its size.
    **bits: `conjugate` and `negative`.

  Returns:
    The tensor.

  Raises:
    PthError: a number is none, or the view leaves its storage.
  """
  for numbers in ((first,), shape, strides):
    if not isinstance(numbers, tuple) or not all(
      type(n) is int and 0 <= n < 2**48 for n in numbers
    ):
      raise damaged(f'a tensor of shape {shown(shape)} and strides {shown(strides)}')
  if not isinstance(part, Part) or len(shape) != len(strides) or len(shape) > _MOST_AXES:
    raise damaged(f'a tensor of shape {shown(shape)} that looks into no storage')
  tensor = Tensor(part, element, first, shape, strides, **bits)
  if tensor.nbytes:
    last = first + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if (last + 1) * element.itemsize > part.count * part.storage.dtype.itemsize:
      raise damaged(f'a tensor of shape {shown(shape)} is larger than its storage')
    if (tensor.negative and element.kind in 'bV') or (tensor.conjugate and element.kind != 'c'):
      raise PthError(f'was not read: a {element} tensor is stored as a conjugate or negative view')
    budget.take(tensor.nbytes)
  return tensor
