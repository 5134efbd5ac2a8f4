"""Image files with their labels: random access to what a folder or a list of labels names."""

from __future__ import annotations

import array
import dataclasses
import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from rest_jax.data.images import open_image

_END = 4096  # bytes at both ends of a file that its digest is of: a header, a checksum


class FileNames(Sequence[str]):
  """Paths in one piece of memory: a worker gets a copy, and a million strings take 200 MB."""

  def __init__(self, paths: Sequence[str]):
    """Packs the paths."""
    # Letter by letter, which need not end at a slash.
    self._prefix = os.path.commonprefix([min(paths), max(paths)]) if paths else ''  # noqa: RUF071
    parts = [os.fsencode(path[len(self._prefix) :]) for path in paths]
    self._ends = np.cumsum([len(part) for part in parts])
    self._packed = b''.join(parts)

  def __len__(self) -> int:
    return len(self._ends)

  def __eq__(self, other: object) -> bool:
    return isinstance(other, FileNames) and list(self) == list(other)

  def __getitem__(self, index):
    if isinstance(index, slice):
      return [self[i] for i in range(*index.indices(len(self)))]
    index = range(len(self))[index]
    start = self._ends[index - 1] if index else 0
    return self._prefix + os.fsdecode(self._packed[start : self._ends[index]])


@dataclasses.dataclass(frozen=True)
class FolderSource:
  """Random access to image files; decoded when asked for.

  Attributes:
    files: path of each image.
    labels: class number of each image.
    digest: of the list of files and labels, whatever folder it stands in; '' where nobody asks.
    extras: further features of each example by name, one value an image.
  """

  files: Sequence[str]
  labels: Sequence[int]
  digest: str = ''
  extras: dict[str, Sequence[Any]] = dataclasses.field(default_factory=dict)

  def __len__(self) -> int:
    return len(self.files)

  def open(self, index: int) -> dict:
    """Returns {'image': an `EncodedImage`, 'label': int} and the extras."""
    extras = {name: values[index] for name, values in self.extras.items()}
    return {'image': open_image(self.files[index]), 'label': self.labels[index], **extras}

  def __getitem__(self, index: int) -> dict:
    example = self.open(index)
    return {**example, 'image': np.asarray(example['image'].picture())}


def contents_digest(files: Sequence[str]) -> str:
  """A digest of what files hold, by their sizes and their ends: pictures may change in place.

  Args:
    files: paths; one that cannot be read counts as empty.
  """
  digest = hashlib.sha256()
  for file in files:
    try:
      with open(file, 'rb', buffering=0) as opened:
        size = os.fstat(opened.fileno()).st_size
        ends = opened.read(_END)
        if size > _END:
          opened.seek(max(size - _END, _END))
          ends += opened.read(_END)
    except OSError:
      size, ends = 0, b''
    digest.update(b'%d\0' % size + ends)
  return digest.hexdigest()


def folder_source(
  root: str, files: Sequence[str], labels: Sequence[int], **extras: Sequence[Any]
) -> FolderSource:
  """A source with its digest.

  Args:
    root: folder that the data set is; the digest does not depend on where it stands.
    files: paths below it.
    labels: class numbers.
    **extras: further features, one value an image.
  """
  digest = hashlib.sha256()
  for file, label in zip(files, labels, strict=True):
    digest.update(os.fsencode(os.path.relpath(file, root)) + b'\0%d\0' % label)
  return FolderSource(FileNames(files), array.array('i', labels), digest.hexdigest(), extras)
