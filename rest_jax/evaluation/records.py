"""Records of an evaluation: a JSON line an image and case, on disk before the work goes on.

The first line is a header that pins the model, the data and the settings. Who finds the file goes
on from it; of a process that was killed, the batch at hand is lost and nothing else.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rest_jax.errors import UserError
from rest_jax.evaluation.fingerprint import same_model
from rest_jax.files import write_text, writing

RESULTS = 'results.jsonl'
Row = dict[str, Any]  # of one image and case: a value by column
_FORMAT = 2
_LONGEST = 60  # characters of a setting that an error shows


class Records:
  """What is known of each image in each case, in memory and, where a path is given, on disk."""

  def __init__(
    self,
    path: Path | None,
    settings: Mapping[str, Any],
    *,
    model: Mapping[str, Any] | None = None,
    place: str = 'output_dir',
    replace: bool = False,
  ):
    """Starts anew or goes on.

    Args:
      path: of the JSON lines, created where missing; None keeps everything in memory.
      settings: what the results depend on beside the model; JSON values.
      model: from `fingerprint.pin`.
      place: what the user gives to name another place: the argument or the flag.
      replace: results of something else give way, instead of being refused.

    Raises:
      UserError: the file belongs to another model or other settings, was written by another
        version, is damaged before its end, or cannot be written.
    """
    self.path, self._place = path, place
    self.replaced = False  # whether results of something else gave way
    self._lock = threading.Lock()  # devices report from threads of their own
    self._rows: dict[str, dict[int, Row]] = {}
    header = {'format': _FORMAT, 'model': model and dict(model), 'settings': dict(settings)}
    header = json.loads(json.dumps(header))  # tuples become lists
    if path is not None and not self._resume(path, header, replace):
      write_text(path, json.dumps(header) + '\n', path.parent, self._advice)

  @property
  def cases(self) -> list[str]:
    """Labels of the cases that have rows."""
    return list(self._rows)

  def rows(self, case: str) -> Mapping[int, Row]:
    """The rows of a case by image; what is not there is still to do."""
    return self._rows.get(case, {})

  def column(self, case: str, name: str, images: Sequence[int] | np.ndarray) -> list[Any]:
    """One column of a case for these images, in their order; None where a row has no such value.

    Raises:
      KeyError: an image without a record.
    """
    rows = self.rows(case)
    return [rows[int(image)].get(name) for image in images]

  def add(
    self, case: str, images: Sequence[int] | np.ndarray, columns: Mapping[str, Sequence[Any] | Any]
  ) -> None:
    """Keeps rows; on disk they are when this returns. A later row takes an earlier one's place.

    Args:
      case: label.
      images: (N,) indices in the source.
      columns: (N,) values of each, or (N, ...) lists; what is not finite becomes None.

    Raises:
      UserError: the file cannot be written.
    """
    found: dict[int, Row] = {int(image): {} for image in images}
    for name, column in columns.items():
      values = np.asarray(column).tolist() if hasattr(column, 'dtype') else column
      for row, value in zip(found.values(), values, strict=True):
        row[name] = _plain(value)
    with self._lock:
      if self.path is not None and found:
        self._append(self.path, [{'case': case, 'image': i, **row} for i, row in found.items()])
      # A new mapping: whoever iterates over the rows of a case keeps those of that moment.
      self._rows[case] = {**self._rows.get(case, {}), **found}

  @property
  def _advice(self) -> str:
    return f'free some space or give another {self._place}, then run the same again'

  def _append(self, path: Path, lines: list[dict[str, Any]]) -> None:
    """Writes lines in one piece; of a write that fails nothing is left."""
    text = ''.join(json.dumps(line, allow_nan=False) + '\n' for line in lines)
    # Without a buffer, which would write the rest of a failed write when it is closed.
    with writing(path.parent, self._advice), path.open('ab', buffering=0) as file:
      before, left = file.seek(0, os.SEEK_END), memoryview(text.encode())
      try:
        while left:
          left = left[file.write(left) :]
        os.fsync(file.fileno())
      except OSError:
        os.truncate(path, before)
        raise

  def _resume(self, path: Path, header: dict[str, Any], replace: bool) -> bool:
    """Reads what is there; False where the file has to be begun."""
    lines = _whole_lines(path, self._advice)
    if not lines:
      return False
    try:
      check_header(path, _parse(path, 1, lines[0], self._place), header, self._place)
      for number, line in enumerate(lines[1:], 2):
        self._keep(path, number, _parse(path, number, line, self._place))
    except UserError:
      if not replace:
        raise
      self._rows, self.replaced = {}, True
      return False
    return True

  def _keep(self, path: Path, number: int, line: Row) -> None:
    """A line as a row of its case."""
    case, image = line.pop('case', None), line.pop('image', None)
    if not isinstance(case, str) or not isinstance(image, int):
      raise _damaged(path, number, self._place)
    self._rows.setdefault(case, {})[image] = line


def check_header(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any], place: str):
  """Refuses results of something else.

  Args:
    path: of the results.
    found: the header there: 'format', 'model' and 'settings'.
    wanted: the header of this evaluation.
    place: as in `Records`.

  Raises:
    UserError: one line that says what differs.
  """
  advice = f'give another {place}, or remove it'
  settings = found.get('settings')
  if found.get('format') != wanted['format'] or not isinstance(settings, dict):
    raise UserError(f'{path} was written by another version of rest_jax; {advice}')
  if not same_model(found.get('model'), wanted['model']):
    asked = bool(wanted['model'] and wanted['model']['probe'])
    random = ' (or of one that answers at random)' if asked else ''
    named = ', or say which model it is with model_id' if asked else ''
    raise UserError(f'{path} holds results of another model{random}; {advice}{named}')
  now = wanted['settings']
  names = [name for name in sorted({*settings, *now}) if settings.get(name) != now.get(name)]
  if names:
    shown = ', '.join(_difference(name, settings.get(name), now.get(name)) for name in names)
    raise UserError(f'{path} holds results of other settings: {shown}; {advice}')


def _difference(name: str, there: Any, now: Any) -> str:
  """A setting with both values, its name alone where they are long."""
  text = f'{name} ({there} there, {now} now)'
  return text if len(text) <= _LONGEST else name


def _whole_lines(path: Path, advice: str) -> list[str]:
  """Lines of a file; the last, where a kill cut it off, is removed from the file too."""
  with writing(path.parent, advice):
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
      return []
    content = path.read_bytes()
    whole = content[: content.rfind(b'\n') + 1]
    if len(whole) < len(content):
      os.truncate(path, len(whole))
  return whole.decode('utf-8', errors='replace').split('\n')[:-1]


def _parse(path: Path, number: int, line: str, place: str) -> Row:
  """A line as a dictionary."""
  try:
    value = json.loads(line)
  except ValueError as error:
    raise _damaged(path, number, place) from error
  if not isinstance(value, dict):
    raise _damaged(path, number, place)
  return value


def _damaged(path: Path, number: int, place: str) -> UserError:
  cure = 'remove that line to have its image judged again' if number > 1 else 'remove the file'
  return UserError(f'{path}, line {number} is damaged; {cure}, or give another {place}')


def _plain(value: Any) -> Any:
  """A value of JSON, which has no NaN; lists may hold lists."""
  if isinstance(value, list):
    return [_plain(one) for one in value]
  value = value.item() if isinstance(value, np.generic) else value
  return None if isinstance(value, float) and not math.isfinite(value) else value
