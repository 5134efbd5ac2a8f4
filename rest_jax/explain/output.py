"""Files of results, each written through a temporary name: a kill leaves the old or the new one."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rest_jax.errors import UserError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
  """Gives a temporary path with the same ending, which takes the file's place at the end.

  Args:
    path: the file to be written; its folder is made.

  Raises:
    UserError: the folder or the file cannot be written.
  """
  temporary = path.with_name(f'.{os.getpid()}_{path.name}')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    yield temporary
    os.replace(temporary, path)
  except OSError as error:
    raise UserError(
      f'cannot write {path}: {error.strerror or error}; make room or give another --output'
    ) from error
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
  """Writes UTF-8 text; errors as `replacing`."""
  with replacing(path) as temporary:
    temporary.write_text(text, encoding='utf-8')


def write_json(path: Path, value: Any) -> None:
  """Writes indented JSON; errors as `replacing`."""
  write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + '\n')


def write_array(path: Path, array: np.ndarray) -> None:
  """Writes a .npy file; errors as `replacing`."""
  with replacing(path) as temporary:
    np.save(temporary, array, allow_pickle=False)
