"""The stream that PyTorch wrote before 1.6: five pickles, then the storages' bytes.

In this order: a magic number, the protocol's version, a dict about the system that wrote it, the
content, the keys of its storages; then for each key an int64 count of elements and the elements,
least significant byte first whatever the system was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

from rest_jax.models.pth import pickles
from rest_jax.models.pth.archive import storage_identifier
from rest_jax.models.pth.faults import PthError, damaged, shown
from rest_jax.models.pth.names import Names
from rest_jax.models.pth.tensors import Budget, Part, Storage

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001


def read(file: BinaryIO, path: Path, size: int) -> Any:
  """The content of a stream; arguments and errors as `archive.read`."""
  names, source = Names(Budget(size)), pickles.Source(file, 0, size)
  storages: dict[str, Storage] = {}

  def persistent(identifier: Any) -> Part:
    kind, key, count = storage_identifier(identifier)
    storage = storages.setdefault(key, Storage(path, kind, count))
    if (storage.dtype, storage.count) != (kind, count) or storage.nbytes > size:
      raise damaged(f'a wrong account of the storage {shown(key)}')
    view = identifier[5] if len(identifier) > 5 else None
    return Part(storage, 0, count) if view is None else _part(storage, view)

  if pickles.load(source, names, persistent) != _MAGIC:
    raise PthError('is no PyTorch checkpoint: it begins with another pickle')
  version = pickles.load(source, names, persistent)
  if version != _VERSION:
    raise damaged(f'the version of its protocol is {shown(version)}')
  pickles.load(source, names, persistent)  # the system's byte order and sizes, which change nothing
  content = pickles.load(source, names, persistent)
  keys = pickles.load(source, names, persistent)
  if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
    raise damaged('its list of storages is none')
  for key in keys:
    _place(storages.get(key), source, key)
  missing = [key for key, storage in storages.items() if storage.offset is None]
  if missing:
    raise damaged(f'the storage {shown(missing[0])} is missing')
  return content


def _part(storage: Storage, view: Any) -> Part:
  """The part that (key, first element, count) says."""
  _, first, count = view if isinstance(view, tuple) and len(view) == 3 else (None, None, None)
  if type(first) is not int or type(count) is not int or min(first, count) < 0:
    raise damaged('a part of a storage without place or length')
  if first + count > storage.count:
    raise damaged('a part of a storage that leaves it')
  return Part(storage, first, count)


def _place(storage: Storage | None, source: pickles.Source, key: str) -> None:
  count = source.number('<q')
  if storage is None or storage.count != count or storage.offset is not None:
    raise damaged(f'another length of the storage {shown(key)}')
  storage.offset = source.skip(storage.nbytes)
