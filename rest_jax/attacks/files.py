"""Writing what an evaluation leaves on disk: through temporary names, failures as one line."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rest_jax.errors import UserError


@contextlib.contextmanager
def writing(directory: Path) -> Iterator[None]:
  """Turns a failed write below `directory` into one line.

  Raises:
    UserError: the disk is full, the directory is read-only, or no directory.
  """
  try:
    yield
  except OSError as error:
    raise UserError(
      f'cannot write to {directory}: {error.strerror or error}; '
      'free some space or give another output_dir, then run the same again'
    ) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
  """Gives a temporary path beside `path` that takes its place at the end.

  A kill leaves the old file or the new one, whole. The ending stays, writers go by it.
  """
  temporary = path.with_name(f'.{path.stem}.{os.getpid()}{path.suffix}')
  with writing(path.parent):
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      yield temporary
      os.replace(temporary, path)
    finally:
      temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
  """Writes a text file.

  Raises:
    UserError: it cannot be written.
  """
  with replacing(path) as temporary:
    temporary.write_text(text, encoding='utf-8')


def write_npz(path: Path, **arrays: Any) -> None:
  """Writes arrays to an uncompressed `.npz`; perturbed pixels hardly compress.

  Raises:
    UserError: it cannot be written.
  """
  with replacing(path) as temporary:
    np.savez(temporary, **arrays)


def write_json(path: Path, value: Any) -> None:
  """Writes indented JSON; NaN and infinity, which it has not, become null.

  Raises:
    UserError: it cannot be written.
  """
  write_text(path, json.dumps(_finite(value), indent=2) + '\n')


def _finite(value: Any) -> Any:
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if isinstance(value, dict):
    return {name: _finite(one) for name, one in value.items()}
  return [_finite(one) for one in value] if isinstance(value, list | tuple) else value
