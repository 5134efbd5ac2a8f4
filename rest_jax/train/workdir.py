"""The work directory of a run: what is written there, and through which errors."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rest_jax import files
from rest_jax.errors import UserError
from rest_jax.evaluation import figures
from rest_jax.paths import local
from rest_jax.train.config import differing_keys

_DISK_SIGNS = ('No space left', 'Permission denied', 'Read-only file system', 'quota exceeded')
_SHOWN_KEYS = 8
_ADVICE = 'free some space or give another one with --output, then run the same command again'


@contextlib.contextmanager
def writing(directory: Path) -> Iterator[None]:
  """Turns a failed write below `directory` into one line; other errors pass.

  Raises:
    UserError: the disk is full, the directory is read-only, or no directory.
  """
  try:
    yield
  except BrokenPipeError:  # of the terminal: whoever read the output has left
    raise
  except OSError as error:
    raise _write_error(directory, error) from error
  except Exception as error:
    # Tensor stores report the operating system's message inside errors of their own.
    sign = next((sign for sign in _DISK_SIGNS if sign in str(error)), None)
    if sign is None:
      raise
    raise _write_error(directory, sign) from error


def _write_error(directory: Path, reason: object) -> UserError:
  return files.write_error(_named(directory), reason, _ADVICE)


def _named(directory: Path) -> str:
  return f'the work directory {directory}'


def replacing(path: Path) -> contextlib.AbstractContextManager[Path]:
  """Gives a temporary path that takes the place of `path`, see `rest_jax.files.replacing`."""
  return files.replacing(path, _named(path.parent), _ADVICE)


def save_figure(path: Path, figure: Any) -> None:
  """Writes a Matplotlib figure as PNG through a temporary name."""
  figures.save_figure(path, figure, _named(path.parent), _ADVICE, dpi=100)


def write_text(path: Path, text: str) -> None:
  """Writes a file through a temporary name, so that a kill leaves the old or the new one."""
  files.write_text(path, text, _named(path.parent), _ADVICE)


def write_json(path: Path, value: Any) -> None:
  """Writes indented JSON through a temporary name; NaN becomes null."""
  files.write_json(path, value, _named(path.parent), _ADVICE)


def open_workdir(directory: str | Path, config: dict[str, Any]) -> Path:
  """Creates the work directory, or checks that it belongs to the same experiment.

  Args:
    directory: where the run lives; created with its parents.
    config: the resolved config as plain dictionaries.

  Returns:
    The absolute path.

  Raises:
    UserError: not writable, or it holds checkpoints of another config (the keys are named).
  """
  path = local(directory, 'the work directory').absolute()
  with writing(path):
    path.mkdir(parents=True, exist_ok=True)
    probe = path / f'.write_test_{os.getpid()}'
    probe.write_text('x')
    probe.unlink()
  # Without checkpoints there is nothing to go on with, so another config may take over.
  if any((path / 'checkpoints').glob('*/[0-9]*')):
    _check_same(path, config)
  return path


@contextlib.contextmanager
def unmade_on_failure(directory: str | Path) -> Iterator[None]:
  """Around the start of a run: a start that fails leaves no directory that it made.

  Args:
    directory: of the run; one that was there before stays as it is.
  """
  path = local(directory, 'the work directory').absolute()
  missing = [place for place in (path, *path.parents) if not place.exists()]
  try:
    yield
  except BaseException:
    if path in missing:
      shutil.rmtree(path, ignore_errors=True)
    for parent in missing[1:]:
      with contextlib.suppress(OSError):  # another run may have begun there meanwhile
        parent.rmdir()
    raise


def _check_same(path: Path, config: dict[str, Any]) -> None:
  saved_path = path / 'config.json'
  try:
    saved = json.loads(saved_path.read_text(encoding='utf-8-sig'))
    names = differing_keys(config, saved)
  except (OSError, ValueError, AttributeError) as error:
    raise UserError(
      f'{saved_path}, the config of the checkpoints there, cannot be read ({error}); '
      f'remove {path} or give another --output'
    ) from error
  if names:
    more = f' and {len(names) - _SHOWN_KEYS} more' if len(names) > _SHOWN_KEYS else ''
    raise UserError(
      f'{path} holds a run with another config; it differs in '
      f'{", ".join(names[:_SHOWN_KEYS])}{more}; give another --output, or remove the directory'
    )
