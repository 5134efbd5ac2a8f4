"""Results of an evaluation as JSON lines, appended as they come, so that a kill loses one line."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rest_jax.errors import UserError
from rest_jax.files import write_text


class Records:
  """The file of an evaluation: a header with its settings, then one line a method and batch."""

  def __init__(self, path: Path, settings: Mapping[str, Any]):
    """Opens or creates the file.

    Args:
      path: of the JSON lines.
      settings: what the results depend on; plain JSON values.

    Raises:
      UserError: the file belongs to other settings, is damaged before its end, or cannot be
        written.
    """
    self.path = path
    self._settings = json.loads(json.dumps(dict(settings)))
    self._lock = threading.Lock()  # devices report from threads of their own
    self._lines: dict[tuple[str, int], dict[str, Any]] = {}
    if path.exists():
      self._read()
    else:
      write_text(path, json.dumps({'settings': self._settings}) + '\n')

  def get(self, method: str, batch: int) -> dict[str, Any] | None:
    """What was found for a method on a batch, None where that is still to do."""
    return self._lines.get((method, batch))

  def add(self, method: str, batch: int, found: Mapping[str, Any]) -> None:
    """Appends a line and makes sure that it is on the disk.

    Raises:
      UserError: the file cannot be written.
    """
    line = {'method': method, 'batch': batch, **found}
    try:
      with self._lock, self.path.open('a', encoding='utf-8') as file:
        file.write(json.dumps(line) + '\n')
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
      raise UserError(
        f'cannot write {self.path}: {error.strerror or error}; make room, then run the same '
        'command again'
      ) from error
    self._lines[method, batch] = line

  def _read(self) -> None:
    try:
      text = self.path.read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
      raise UserError(f'cannot read {self.path}: {error}; remove it to begin anew') from error
    whole, _, torn = text.rpartition('\n')
    lines = [self._parse(line, number) for number, line in enumerate(whole.split('\n'), 1)]
    self._check_settings(lines[0])
    try:
      self._lines = {(line['method'], line['batch']): line for line in lines[1:]}
    except (TypeError, KeyError) as error:
      raise UserError(f'{self.path} is no file of an evaluation: give another --output') from error
    if torn:  # of a process that was killed while it wrote
      write_text(self.path, whole + '\n')

  def _parse(self, line: str, number: int) -> dict[str, Any]:
    try:
      return json.loads(line)
    except ValueError as error:
      raise UserError(
        f'{self.path} is damaged in line {number}; remove it to begin anew'
      ) from error

  def _check_settings(self, header: Any) -> None:
    saved = header.get('settings') if isinstance(header, dict) else None
    if not isinstance(saved, dict):
      raise UserError(f'{self.path} is no file of an evaluation: give another --output')
    keys = sorted(
      key for key in {*saved, *self._settings} if saved.get(key) != self._settings.get(key)
    )
    if keys:
      raise UserError(
        f'{self.path} holds results of other settings; they differ in {", ".join(keys)}; '
        'give another --output, or remove it'
      )
