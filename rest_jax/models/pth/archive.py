"""The zip archive of PyTorch 1.6 and later: data.pkl and one record a storage, none compressed.

Only what `torch.save` writes is read: nothing is ever inflated, so that no record can be larger
than the file.

Source: PKWARE's APPNOTE.TXT, sections 4.3 (records) and 4.5.3 (64-bit sizes).
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from rest_jax.models.pth import pickles
from rest_jax.models.pth.faults import Name, PthError, damaged, refused, shown
from rest_jax.models.pth.names import Names
from rest_jax.models.pth.tensors import STORAGES, Budget, Part, Storage

_END, _END64, _LOCATOR64 = b'PK\x05\x06', b'PK\x06\x06', b'PK\x06\x07'
_ENTRY, _LOCAL = b'PK\x01\x02', b'PK\x03\x04'
_MOST_COMMENT, _WHOLE32 = 65535, 0xFFFFFFFF


class Record(NamedTuple):
  """Where a record's bytes are, and their CRC-32 (0: PyTorch was told to leave it out)."""

  offset: int
  size: int
  checksum: int


def read(file: BinaryIO, path: Path, size: int) -> Any:
  """The content of an archive; errors as `pickles.load`.

  Args:
    file: open at any place.
    path: of the file, which tensors read from later.
    size: of the file.
  """
  records = dict(_records(file, size))
  folders = [name.partition('/')[0] for name in records if name.count('/') == 1]
  folder = next((f for f in folders if f'{f}/data.pkl' in records), None)
  if folder is None:
    raise PthError('is a zip archive, but none of PyTorch: it has no data.pkl')
  if f'{folder}/constants.pkl' in records:
    raise PthError('is a TorchScript program: save its state_dict() alone')
  big_endian = _is_big_endian(file, records.get(f'{folder}/byteorder'))
  storages: dict[str, Storage] = {}

  def persistent(identifier: Any) -> Part:
    kind, key, count = storage_identifier(identifier)
    if key not in storages:
      record = records.get(f'{folder}/data/{key}')
      storages[key] = _storage(path, record, kind, count, key, big_endian)
    storage = storages[key]
    if (storage.dtype, storage.count) != (kind, count):
      raise damaged(f'two accounts of the storage {shown(key)}')
    return Part(storage, 0, count)

  record = records[f'{folder}/data.pkl']
  _check_sum(file, record)
  source = pickles.Source(file, record.offset, record.offset + record.size)
  return pickles.load(source, Names(Budget(size)), persistent)


def storage_identifier(identifier: Any) -> tuple[np.dtype, str, int]:
  """Dtype, key and element count in ('storage', kind, key, device, count, ...).

  Raises:
    PthError: it is none.
  """
  if not isinstance(identifier, tuple) or len(identifier) < 5 or identifier[0] != 'storage':
    first = identifier[0] if isinstance(identifier, tuple) and identifier else identifier
    raise refused(f'holds a {shown(first)} beside its tensors')
  _, kind, key, _, count = identifier[:5]
  name = kind.name if isinstance(kind, Name) else ''
  if name not in STORAGES:
    raise refused(f'holds a storage of the kind {shown(kind)}')
  if not isinstance(key, str) or type(count) is not int or not 0 <= count < 2**48:
    raise damaged('a storage without key or length')
  return STORAGES[name], key, count


def _storage(
  path: Path, record: Record | None, kind: np.dtype, count: int, key: str, big_endian: bool
) -> Storage:
  if record is None:
    raise damaged(f'the storage {shown(key)} is missing')
  storage = Storage(path, kind, count, record.offset, record.checksum, big_endian)
  if storage.nbytes != record.size:
    raise damaged(
      f'the storage {shown(key)} has {record.size} bytes where {storage.nbytes} are said'
    )
  return storage


def _is_big_endian(file: BinaryIO, record: Record | None) -> bool:
  """Whether the archive was written by a machine with the most significant byte first."""
  if record is None:
    return False
  order = _at(file, record.offset, min(record.size, 16))
  if order not in (b'little', b'big'):
    raise damaged('a byte order that is neither little nor big')
  return order == b'big'


def _check_sum(file: BinaryIO, record: Record) -> None:
  if record.checksum and zlib.crc32(_at(file, record.offset, record.size)) != record.checksum:
    raise damaged('the bytes of data.pkl do not have their checksum')


def _at(file: BinaryIO, offset: int, size: int) -> bytes:
  file.seek(offset)
  content = file.read(size)
  if len(content) != size:
    raise damaged('its end is missing')
  return content


def _records(file: BinaryIO, size: int):
  """Names and places of all records."""
  start, length = _directory(file, size)
  if not 0 <= start <= start + length <= size:
    raise damaged('its list of records is cut off')
  content, place, seen = _at(file, start, length), 0, set()
  while place < length:
    fields = struct.unpack_from('<4s6H3I5H2I', content, place)
    flags, method, checksum = fields[3], fields[4], fields[7]
    name_length, extra_length, comment_length = fields[10:13]
    place += 46
    name = str(content[place : place + name_length], 'utf-8')
    extra = content[place + name_length : place + name_length + extra_length]
    place += name_length + extra_length + comment_length
    if fields[0] != _ENTRY or place > length or name in seen:
      raise damaged('a wrong entry in its list of records')
    if method or flags & 1:
      raise PthError(
        f'is no archive as PyTorch writes it: {shown(name)} is compressed or encrypted; load and '
        'save it with PyTorch'
      )
    seen.add(name)
    stored, offset = _sizes(fields[8], fields[9], fields[16], extra)
    yield name, Record(_data_offset(file, offset, stored, size), stored, checksum)


def _directory(file: BinaryIO, size: int) -> tuple[int, int]:
  """Where the list of records begins, and its length."""
  first = max(0, size - 22 - _MOST_COMMENT)
  tail = _at(file, first, size - first)
  place = tail.rfind(_END)
  if place < 0 or len(tail) - place < 22:
    raise damaged('its end is missing')
  length, start = struct.unpack_from('<II', tail, place + 12)
  if place >= 20 and tail[place - 20 : place - 16] == _LOCATOR64:
    (end64,) = struct.unpack_from('<Q', tail, place - 12)
    content = _at(file, end64, 56) if end64 <= size - 56 else b''
    if content[:4] != _END64:
      raise damaged('its end is missing')
    length, start = struct.unpack_from('<QQ', content, 40)
  return start, length


def _sizes(packed: int, stored: int, offset: int, extra: bytes) -> tuple[int, int]:
  """Size and offset of a record, from the 64-bit field where 32 bits are not enough."""
  wide = []
  place = 0
  while place + 4 <= len(extra):
    kind, length = struct.unpack_from('<HH', extra, place)
    if kind == 1:
      count = min(length, len(extra) - place - 4) // 8
      wide = list(struct.unpack_from(f'<{count}Q', extra, place + 4))
    place += 4 + length
  numbers = [wide.pop(0) if n == _WHOLE32 and wide else n for n in (stored, packed, offset)]
  if numbers[0] != numbers[1]:
    raise damaged('a record with two sizes')
  return numbers[0], numbers[2]


def _data_offset(file: BinaryIO, offset: int, stored: int, size: int) -> int:
  """Where a record's bytes begin, behind its own header."""
  if offset > size - 30:
    raise damaged('a record outside the file')
  header = _at(file, offset, 30)
  name_length, extra_length = struct.unpack_from('<HH', header, 26)
  start = offset + 30 + name_length + extra_length
  if header[:4] != _LOCAL or start + stored > size:
    raise damaged('a record outside the file')
  return start
