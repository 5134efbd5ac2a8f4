"""Files of an earlier run beside those of a new one, in the folder of one picture."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from rest_jax.explain.methods import list_methods


@contextlib.contextmanager
def without_leftovers(folder: Path) -> Iterator[None]:
  """Removes, after the results of a picture were written, those of an earlier run that stayed.

  A comparison of other methods, or the map of another class, would stand beside an explanation.json
  that does not speak of it. Only files that explain.py itself writes go, by their names; none where
  writing fails.

  Args:
    folder: of the picture; it need not be there yet.
  """
  before = {path: _identity(path) for path in _ours(folder)}
  yield
  for path, was in before.items():
    if _identity(path) == was:  # what was written again is another file, by a temporary name
      path.unlink(missing_ok=True)


def _ours(folder: Path) -> list[Path]:
  """The maps, overlays and figures that explain.py may have written there."""
  methods, tag = '|'.join(map(re.escape, list_methods())), r'(_top\d+)?'
  of_method = rf'({methods}){tag}(\.png|\.jpg|\.npy|_insertion\.gif)'
  name = re.compile(rf'{of_method}|(comparison|curves|sanity){tag}\.png')
  paths = folder.iterdir() if folder.is_dir() else ()
  return [path for path in paths if name.fullmatch(path.name) and path.is_file()]


def _identity(path: Path) -> int | None:
  with contextlib.suppress(OSError):
    return path.stat().st_ino
  return None
