"""Places that the user names: expanded, checked before any work, and made safe where we name them.

Everything here is about local files; a place in a cloud is refused in words, because a library
that takes 's3://bucket' for a relative path makes a folder called 's3:'.
"""

from __future__ import annotations

import collections
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from rest_jax.errors import UserError

_SCHEME = re.compile(r'([A-Za-z][A-Za-z0-9+.-]+):/')
# Names that some file system cannot have, whatever their ending.
_RESERVED = frozenset(
  ('con', 'prn', 'aux', 'nul', *(f'{p}{n}' for p in ('com', 'lpt') for n in '0123456789¹²³'))
)
_NAMELESS = 'picture'  # results of '...' and the like
_LONGEST = 200  # bytes of a name; file systems end at 255, and endings and numbers follow


def local(place: str | os.PathLike[str], what: str = 'a path') -> Path:
  """A path as the user means it.

  Args:
    place: a path; '~' and '~user' at its beginning are homes.
    what: what it is, for the error: a flag, a config key, an argument.

  Returns:
    The path, neither resolved nor looked up.

  Raises:
    UserError: it is empty, a home that does not exist, or an address such as gs://bucket/x.
  """
  text = os.fspath(place)
  if not text.strip():
    raise UserError(f'{what} is empty: give a path, or leave it out')
  if '\0' in text:
    raise UserError(f'{what} is {text!r}: a path has no zero bytes')
  if match := _SCHEME.match(text):
    raise UserError(
      f'{what} is {text}: places under {match[1]}:// are not read or written, only local files; '
      'copy it to this machine, or mount it'
    )
  try:
    return Path(text).expanduser()
  except RuntimeError as error:
    raise UserError(f'{what} is {text}: {str(error).rstrip(".").lower()}') from error


def expanded(name: str, what: str = 'a name') -> str:
  """A name that may be a path (of a model, of data): what `local` does, as a string."""
  place = os.fspath(local(name, what))
  return place if name.startswith('~') else name


def model_name(name: str, what: str = 'the model') -> str:
  """`expanded` for a name of a model, which may be one of the Hub ('hf://owner/name')."""
  return name if name.startswith('hf://') else expanded(name, what)


def check_folder(folder: Path, what: str = '--output') -> Path:
  """Looks, without making anything, whether a folder can be made and written to.

  Args:
    folder: where results shall go.
    what: the flag or argument that named it.

  Returns:
    The folder.

  Raises:
    UserError: it is a file, lies inside one, or cannot be written.
  """
  there = folder.absolute()
  try:
    while not os.path.lexists(there) and there != there.parent:
      there = there.parent
    is_folder = there.is_dir()
  except OSError as error:
    raise UserError(f'{what} is {folder}: {error.strerror or error}; give another one') from error
  if not is_folder:
    where = 'a file' if there == folder.absolute() else f'inside {there}, which is a file'
    raise UserError(f'{what} is {folder}, {where}; results need a folder, give another one')
  if not os.access(there, os.W_OK | os.X_OK):
    raise UserError(f'{what} is {folder}: {there} cannot be written; give another one')
  return folder


def safe_name(name: str, otherwise: str) -> str:
  """A name for a file or folder that every file system takes, as near to `name` as it goes.

  Args:
    name: of others: may hold bytes that are no UTF-8, separators, dots alone, 300 characters.
    otherwise: the name where nothing is left of it.

  Returns:
    One component of a path, 1 to 200 bytes in UTF-8, with neither a dot nor a space at its ends.
  """
  kept = unicodedata.normalize('NFC', name.encode('utf-8', 'replace').decode('utf-8'))
  kept = ''.join('_' if c in '<>:"/\\|?*' or not (c.isprintable()) else c for c in kept)
  kept = _cut(kept.strip('. '), _LONGEST).strip('. ')
  # 'nul.txt' is as reserved as 'nul'.
  return f'_{kept}' if kept.split('.')[0].strip().casefold() in _RESERVED else kept or otherwise


def _cut(text: str, most: int) -> str:
  return text.encode()[:most].decode('utf-8', 'ignore')


def safe_names(names: Iterable[str], otherwise: str) -> list[str]:
  """`safe_name` of each, no two the same, also where a file system ignores case.

  Args:
    names: any; of equal ones the later get a number.
    otherwise: as in `safe_name`.
  """
  taken: set[str] = set()
  made: list[str] = []
  for name in names:
    stem = safe_name(name, otherwise)
    unique, number = stem, 2
    while _folded(unique) in taken:
      unique, number = f'{stem}_{number}', number + 1
    taken.add(_folded(unique))
    made.append(unique)
  return made


def _folded(name: str) -> str:
  return unicodedata.normalize('NFC', name.casefold())


def output_names(files: Sequence[Path]) -> list[str]:
  """A name for each file's results: its stem, with suffix or number where two share one.

  Every file system takes them, also one that ignores case; none is that of another folder, as '..'.
  """
  safe = collections.Counter(map(_stem, files))
  return safe_names((f.name if safe[_stem(f)] > 1 else f.stem for f in files), _NAMELESS)


def _stem(file: Path) -> str:
  return safe_name(file.stem, _NAMELESS).casefold()
