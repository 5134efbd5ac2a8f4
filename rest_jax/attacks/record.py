"""Results of an evaluation: one record an image, attack and radius, as JSON lines on disk.

The first line of `results.jsonl` is a header that pins the model and the settings. A run that finds
the file goes on from it: what has a record is not attacked again.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from rest_jax.attacks.threat import Norm
from rest_jax.errors import UserError
from rest_jax.evaluation.files import writing

RESULTS = 'results.jsonl'
_FORMAT = 1
_PROBE_RTOL = 1e-3  # logits of the same weights on another device differ by less


class RunName(NamedTuple):
  """What an image's record is filed under: an attack, a norm, a radius.

  Attributes:
    attack: label of the attack.
    norm: 'linf', 'l2' or 'l1'.
    eps: radius; None for a minimum-norm attack, which has none.
  """

  attack: str
  norm: Norm
  eps: float | None

  @property
  def stem(self) -> str:
    """The name as part of a file's."""
    return f'{self.attack}_{self.norm}' + ('' if self.eps is None else f'_{self.eps:.9g}')


@dataclasses.dataclass(frozen=True)
class Record:
  """What an attack did to one image.

  Attributes:
    index: of the image in the source.
    label: true class.
    target: class to be reached; None where any wrong one will do.
    clean: predicted class of the image; where it is not `label`, nothing was attacked.
    adversarial: predicted class of the adversarial image, -1 for logits that are not numbers.
    clean_loss: cross-entropy of the image, nats; None where not finite.
    loss: cross-entropy of the adversarial image, nats.
    distance: of the adversarial image from the image, in the threat's norm.
    queries: evaluations of the model that the attack's steps spent on the image; None where an
      attack does not count them.
    attack: label of the attack.
    norm: 'linf', 'l2' or 'l1'.
    eps: radius; None for a minimum-norm attack.
    seed: the evaluation's key as hexadecimal words.
    inside: the adversarial image is in the ball, up to rounding, and in [0, 1].
    success: it is inside, and an evaluation after the attack found the attack's goal reached, or
      logits that are not numbers.
    confirmed: a second evaluation said the same about `success`.
    reused: smaller radius whose adversarial image was taken over; None where it was searched for.
    pixels: checksum of the image.
  """

  index: int
  label: int
  target: int | None
  clean: int
  adversarial: int
  clean_loss: float | None
  loss: float | None
  distance: float
  queries: int | None
  attack: str
  norm: Norm
  eps: float | None
  seed: str
  inside: bool
  success: bool
  confirmed: bool
  reused: float | None
  pixels: str

  @property
  def run(self) -> RunName:
    """What the record is filed under."""
    return RunName(self.attack, self.norm, self.eps)

  @property
  def correct(self) -> bool:
    """Whether the image itself is classified correctly."""
    return self.clean == self.label

  @property
  def robust(self) -> bool:
    """Whether the image is classified correctly and withstood the attack."""
    return self.correct and not self.success

  def to_json(self) -> str:
    """One line, without its end."""
    values = dataclasses.asdict(self)
    for name in ('clean_loss', 'loss'):  # JSON has no NaN
      value = values[name]
      values[name] = value if value is not None and math.isfinite(value) else None
    return json.dumps(values)


class ResultStore:
  """Records by run and image, in memory and, where a directory is given, on disk."""

  def __init__(self, directory: Path | None, header: dict[str, Any]):
    """Starts anew or goes on.

    Args:
      directory: of `results.jsonl`, created where missing; None keeps everything in memory.
      header: pins the run, JSON values. 'model' holds 'weights' (a hash or None) and 'probe'
        (logits on fixed images, empty for none).

    Raises:
      UserError: the directory cannot be written, or holds results of another model or other
        settings, or a damaged file.
    """
    self.directory = directory
    self.records: dict[RunName, dict[int, Record]] = {}
    self._path = None if directory is None else directory / RESULTS
    header = json.loads(json.dumps({'format': _FORMAT, **header}))  # tuples become lists
    if self._path is not None:
      with writing(self._path.parent):
        self._path.parent.mkdir(parents=True, exist_ok=True)
      if not self._resume(self._path, header):
        self._append(self._path, [json.dumps(header)])

  def done(self, run: RunName) -> dict[int, Record]:
    """The records of a run by image index."""
    return self.records.setdefault(run, {})

  def add(self, records: Iterable[Record]) -> None:
    """Keeps records; on disk they are when this returns.

    Raises:
      UserError: the file cannot be written.
    """
    records = list(records)
    if self._path is not None and records:
      self._append(self._path, [record.to_json() for record in records])
    for record in records:
      self.done(record.run)[record.index] = record

  def _append(self, path: Path, lines: list[str]) -> None:
    with writing(path.parent), path.open('a', encoding='utf-8') as file:
      file.write(''.join(line + '\n' for line in lines))
      file.flush()
      os.fsync(file.fileno())

  def _resume(self, path: Path, header: dict[str, Any]) -> bool:
    """Reads what is there; False where there is nothing."""
    lines = _whole_lines(path)
    if not lines:
      return False
    _check_header(path, _parse(path, 1, lines[0]), header)
    for number, line in enumerate(lines[1:], start=2):
      try:
        record = Record(**_parse(path, number, line))
      except TypeError as error:
        raise _damaged(path, number) from error
      self.done(record.run)[record.index] = record
    return True


def _whole_lines(path: Path) -> list[str]:
  """Lines of a file; the last, where a kill cut it off, is removed from the file too."""
  if not path.exists():
    return []
  with writing(path.parent):
    content = path.read_bytes()
    whole = content[: content.rfind(b'\n') + 1]
    if len(whole) < len(content):
      os.truncate(path, len(whole))
  return whole.decode('utf-8', errors='replace').splitlines()


def _parse(path: Path, number: int, line: str) -> dict[str, Any]:
  try:
    value = json.loads(line)
  except ValueError as error:
    raise _damaged(path, number) from error
  if not isinstance(value, dict):
    raise _damaged(path, number)
  return value


def _damaged(path: Path, number: int) -> UserError:
  return UserError(
    f'{path}, line {number} is damaged; remove that line to attack its image again, '
    'or give another output_dir'
  )


def _check_header(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
  if not _same_model(found.get('model'), wanted['model']):
    raise UserError(
      f'{path} holds results of another model (or of one that answers at random); '
      'give another output_dir, or say which model it is with model_id'
    )
  names = [n for n in sorted({*found, *wanted} - {'model'}) if found.get(n) != wanted.get(n)]
  if names:
    shown = ', '.join(f'{n} ({found.get(n)} there, {wanted.get(n)} now)' for n in names)
    raise UserError(f'{path} holds results with other settings: {shown}; give another output_dir')


def _same_model(found: Any, wanted: dict[str, Any]) -> bool:
  """Both the weights and what the model answers: the same weights may stand in another function."""
  if not isinstance(found, dict) or found.get('weights') != wanted['weights']:
    return False
  old, new = found.get('probe') or [], wanted['probe']
  scale = max((abs(value) for value in new if value is not None), default=0.0)
  return len(old) == len(new) and all(
    a == b or (None not in (a, b) and abs(a - b) <= _PROBE_RTOL * scale)
    for a, b in zip(old, new, strict=True)
  )
