"""Writing what a function leaves in its `output_dir`: `rest_jax.files` with that advice."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from rest_jax import files
from rest_jax.evaluation import figures

_ADVICE = 'free some space or give another output_dir, then run the same again'


def writing(directory: Path) -> contextlib.AbstractContextManager[None]:
  """Turns a failed write below `directory` into one line.

  Raises:
    UserError: the disk is full, the directory is read-only, or no directory.
  """
  return files.writing(directory, _ADVICE)


def replacing(path: Path) -> contextlib.AbstractContextManager[Path]:
  """Gives a temporary path beside `path` that takes its place at the end.

  A kill leaves the old file or the new one, whole. The ending stays, writers go by it.
  """
  return files.replacing(path, path.parent, _ADVICE)


def save_figure(path: Path, figure: Any, dpi: int = 130) -> None:
  """Writes a Matplotlib figure as PNG.

  Raises:
    UserError: it cannot be written.
  """
  figures.save_figure(path, figure, path.parent, _ADVICE, dpi=dpi)


def write_text(path: Path, text: str) -> None:
  """Writes a text file.

  Raises:
    UserError: it cannot be written.
  """
  files.write_text(path, text, path.parent, _ADVICE)


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
  files.write_json(path, value, path.parent, _ADVICE)
