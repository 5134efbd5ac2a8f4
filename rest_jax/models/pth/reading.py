"""Reads a `.pth` file of either format."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rest_jax.models.pth import archive, stream
from rest_jax.models.pth.faults import PthError, reading

_ZIP = b'PK\x03\x04'
# By the first bytes: what people have in the place of a checkpoint, and what to do.
_OTHERS = {
  b'version https://git-lfs': 'is a pointer of Git LFS: fetch the file itself (git lfs pull)',
  b'<': 'is a web page: the download gave a page in the place of the file, try it in a browser',
  b'\x89HDF': 'is an HDF5 file, none of PyTorch',
  b'\x1f\x8b': 'is compressed by gzip: unpack it first',
}


def read(path: str | os.PathLike[str]) -> Any:
  """What a `.pth` file holds, without PyTorch and without executing anything.

  Args:
    path: a file of `torch.save`, either format.

  Returns:
    Plain data: dicts, lists, tuples, sets, strings, bytes and numbers; `Tensor`s (and what stands
    for NumPy arrays), whose values `np.asarray` reads. Ordered dicts, counters and
    `argparse.Namespace`s become dicts, sizes tuples, devices strings.

  Raises:
    UserError: no such file, none of PyTorch, one that is cut off or damaged, or one that needs
      more than tensors and plain data; the message names what it needs.
  """
  path = Path(path)
  with reading(path), open(path, 'rb') as file:
    size = os.fstat(file.fileno()).st_size
    head = file.read(512)
    if head[257:262] == b'ustar':
      raise PthError('is a checkpoint of PyTorch before 0.1.10: load and save it with PyTorch')
    for start, words in _OTHERS.items():
      if head.startswith(start):
        raise PthError(words)
    if not head:
      raise PthError('is empty')
    return (archive if head.startswith(_ZIP) else stream).read(file, path, size)
