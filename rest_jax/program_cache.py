"""Compiled programs kept on disk from one run of a command to the next.

That is JAX's persistent compilation cache, made safe for runs that are killed or go on side by
side. JAX writes an entry in place: a run that is killed meanwhile leaves half a one, of which every
later run warns and which none replaces. So a run gets a folder of its own, where the entries that
are there already have hard links; what it adds moves to the common folder, whole, when it ends.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rest_jax.errors import UserError
from rest_jax.files import make_folder
from rest_jax.paths import local

FLAG = '--compilation_cache'
OFF = 'off'
HELP = f"""\
  {FLAG}
      folder where compiled programs are kept for the next run, or {OFF}; JAX's own variables
      (JAX_COMPILATION_CACHE_DIR, JAX_ENABLE_COMPILATION_CACHE) come before the default
      (default: rest_jax/programs in the user's cache directory)"""
LARGEST = 2**30  # bytes of a common folder; the oldest entries go first
_SHORTEST = 0.1  # seconds of compilation from which an entry pays for its reading
_ENTRY = '-cache'  # how JAX ends the name of one
_RUN = 'run-'  # how the folder of a run begins
_LOCK = 'lock'  # in it: locked while its run lives


def split_flag(words: Sequence[str]) -> tuple[list[str], str | None]:
  """Takes the flag of this cache out of a command line.

  Args:
    words: of the command line.

  Returns:
    The other words, and the flag's value, None where it is not given.

  Raises:
    UserError: the flag is there twice or has no value.
  """
  rest, given = [], []
  position = 0
  while position < len(words):
    match = re.fullmatch(rf'-?{FLAG[1:]}(?:=(.*))?', words[position])
    if match is None:
      rest.append(words[position])
    elif match[1] is not None:
      given.append(match[1])
    else:
      position += 1
      given.append(words[position] if position < len(words) else '')
    position += 1
  if len(given) > 1:
    raise UserError(f'{FLAG} is given {len(given)} times; leave one of them out')
  if given and (not given[0] or given[0].startswith('-')):
    raise UserError(f'{FLAG} takes a folder, or {OFF}')
  return rest, given[0] if given else None


def use(place: str | None = None) -> Path | None:
  """Keeps what this process compiles from now on, and looks there before compiling.

  Args:
    place: a folder; 'off' for no cache; None for the default, unless JAX's own settings name a
      folder or forbid a cache. A default that cannot be written is left alone in silence.

  Returns:
    The folder of this run, which goes when the process ends; None where there is no cache of ours.

  Raises:
    UserError: the folder that was asked for cannot be written.
  """
  import jax

  config: Any = jax.config

  if place == OFF:
    jax.config.update('jax_enable_compilation_cache', False)
    return None
  if place is not None:
    common = local(place, FLAG) / _machine()
    make_folder(common, f'give another {FLAG}, or {OFF}')
    jax.config.update('jax_enable_compilation_cache', True)
    return _begin(common)
  if config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:
    return None
  with contextlib.suppress(OSError, RuntimeError):  # a home that is missing, full or read-only
    common = _default() / _machine()
    common.mkdir(parents=True, exist_ok=True)
    return _begin(common)
  return None


def leave() -> None:
  """Ends the use of a cache, for runs of several processes.

  Compilers that tune kernels together wait for each other; a process that finds its program on
  disk would be waited for in vain.
  """
  import jax

  config: Any = jax.config

  if config.jax_compilation_cache_dir in map(str, _RUNS):
    jax.config.update('jax_enable_compilation_cache', False)


_RUNS: list[Path] = []  # folders of this process


def _default() -> Path:
  given = os.environ.get('XDG_CACHE_HOME', '')
  # The standard of these variables says to ignore relative ones.
  base = Path(given) if os.path.isabs(given) else Path.home() / '.cache'
  return base / 'rest_jax' / 'programs'


def _machine() -> str:
  """A name for what compiled code needs of a processor: homes are shared by unlike machines."""
  found = ''
  with contextlib.suppress(OSError):
    lines = Path('/proc/cpuinfo').read_text().splitlines()
    found = next((line for line in lines if line.lower().startswith(('flags', 'features'))), '')
  text = f'{platform.system()} {platform.machine()} {found or platform.processor()}'
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _begin(common: Path) -> Path:
  """Makes the folder of this run, filled with what is there, and points JAX to it."""
  import jax
  from jax.experimental.compilation_cache import compilation_cache

  for run in _RUNS:
    if run.parent == common:  # a second command in one process
      jax.config.update('jax_compilation_cache_dir', str(run))
      return run

  _sweep(common)
  run = Path(tempfile.mkdtemp(prefix=f'{_RUN}{os.getpid()}-', dir=common))
  _lock(run)
  known = {path.name for path in common.glob(f'*{_ENTRY}') if _link(path, run / path.name)}
  compilation_cache.reset_cache()
  jax.config.update('jax_compilation_cache_dir', str(run))
  # The folder's name would be part of a program's options, by which it is found again.
  jax.config.update('jax_persistent_cache_enable_xla_caches', 'none')
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', _SHORTEST)
  _RUNS.append(run)
  atexit.register(_end, common, run, known, os.getpid())
  return run


def _lock(run: Path) -> None:
  """Locks a run's folder until the process ends; the file has its name only once it is locked."""
  early = run / f'.{_LOCK}'
  lock = os.open(early, os.O_CREAT | os.O_RDWR)  # closed, and so released, with the process
  with contextlib.suppress(OSError):  # no such locks: then no run is ever taken for a dead one
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    early.rename(run / _LOCK)


def _link(source: Path, target: Path) -> bool:
  """Whether a file is at another place too now: linked, or copied where there are no links."""
  try:
    os.link(source, target)
  except FileExistsError:
    return True
  except FileNotFoundError:  # another run has just dropped it
    return False
  except OSError:
    with contextlib.suppress(OSError):
      shutil.copyfile(source, target)
      return True
    return False
  return True


def _end(common: Path, run: Path, known: set[str], owner: int) -> None:
  """Moves what a run has added to the common folder, and removes the run's."""
  if os.getpid() != owner:  # a fork
    return
  with contextlib.suppress(OSError):
    for path in run.glob(f'*{_ENTRY}'):
      if path.name not in known:
        os.replace(path, common / path.name)
    _shrink(common)
  shutil.rmtree(run, ignore_errors=True)


def _shrink(common: Path) -> None:
  """Drops the oldest entries of a folder that has grown too large."""
  entries = sorted(
    ((path.stat().st_mtime, path.stat().st_size, path) for path in common.glob(f'*{_ENTRY}')),
    reverse=True,
  )
  total = 0
  for _, size, path in entries:
    total += size
    if total > LARGEST:
      path.unlink(missing_ok=True)


def _sweep(common: Path) -> None:
  """Removes the folders of runs that were killed."""
  for run in common.glob(f'{_RUN}*'):
    with contextlib.suppress(OSError):
      lock = os.open(run / _LOCK, os.O_RDWR)
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its run lives
        shutil.rmtree(run, ignore_errors=True)
      finally:
        os.close(lock)
