"""The table of an evaluation: Markdown, CSV and JSON, best values in bold, intervals beside."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rest_jax.explain.figures import title_of
from rest_jax.files import write_json, write_text
from rest_jax.text import csv_text, markdown


class Measure(NamedTuple):
  """A column of the table.

  Attributes:
    title: its head.
    best: 1 where more is better, -1 where less is, 0 where nearer to 0 is.
    scale: what values are multiplied by for print (100 for shares).
    digits: after the point, in print.
  """

  title: str
  best: int
  scale: float
  digits: int


MEASURES = {
  'insertion': Measure('insertion AUC ↑', 1, 1, 3),
  'deletion': Measure('deletion AUC ↓', -1, 1, 3),
  'drop': Measure('average drop % ↓', -1, 100, 1),
  'increase': Measure('increase % ↑', 1, 100, 1),
  'road': Measure('ROAD ↑', 1, 1, 3),
  'pointing': Measure('pointing % ↑', 1, 100, 1),
  'energy': Measure('energy in mask % ↑', 1, 100, 1),
  'sanity': Measure('rank corr. to random weights →0', 0, 1, 3),
  'queries': Measure('queries ↓', -1, 1, 0),
  'milliseconds': Measure('ms an image ↓', -1, 1, 1),
}


class Estimate(NamedTuple):
  """A mean over images with its bootstrap interval; the ends are NaN where there is none."""

  mean: float
  low: float = math.nan
  high: float = math.nan


@dataclasses.dataclass(frozen=True)
class Row:
  """A line of the table.

  Attributes:
    method: name of the registry, or of a baseline.
    values: estimate by key of `MEASURES`; a missing one is printed as a dash.
    baseline: whether it is a reference that explains nothing; never bold.
    options: what it was run with, such as its layer and its budget.
  """

  method: str
  values: Mapping[str, Estimate]
  baseline: bool = False
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def best_methods(rows: Sequence[Row], measure: str) -> list[str]:
  """The methods with the best mean of a measure as far as it is printed; no baselines."""
  kind = MEASURES[measure]
  means = {
    row.method: round(row.values[measure].mean * kind.scale, kind.digits)
    for row in rows
    if not row.baseline and measure in row.values and not math.isnan(row.values[measure].mean)
  }
  merit = {method: mean * kind.best or -abs(mean) for method, mean in means.items()}
  top = max(merit.values(), default=None)
  return [method for method, value in merit.items() if value == top]


def to_markdown(rows: Sequence[Row], notes: Sequence[str] = (), intervals: bool = True) -> str:
  """The table with its notes below.

  Args:
    rows: methods and baselines.
    notes: lines below the table.
    intervals: whether intervals stand behind the means.
  """
  shown = [key for key in MEASURES if any(key in row.values for row in rows)]
  best = {key: best_methods(rows, key) for key in shown}
  lines = ['| method | ' + ' | '.join(MEASURES[key].title for key in shown) + ' |']
  lines.append('|---' * (len(shown) + 1) + '|')
  for row in rows:
    cells = [
      _cell(row.values.get(key), MEASURES[key], row.method in best[key], intervals) for key in shown
    ]
    name = markdown(title_of(row.method))
    name = f'*{name}*' if row.baseline else name
    lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
  return '\n'.join([*lines, *(f'\n{note}' for note in notes)]) + '\n'


def _cell(value: Estimate | None, kind: Measure, bold: bool, intervals: bool) -> str:
  if value is None or math.isnan(value.mean):
    return '–'
  text = f'{value.mean * kind.scale:.{kind.digits}f}'
  text = f'**{text}**' if bold else text
  if not intervals or math.isnan(value.low):
    return text
  low, high = (f'{end * kind.scale:.{kind.digits}f}' for end in (value.low, value.high))
  return f'{text} [{low}, {high}]'


def standing(rows: Sequence[Row], method: str) -> str:
  """One sentence: in which columns a method is the best and which is where it is not.

  Args:
    rows: of the table, `method` among them.
    method: name of the registry.
  """
  first, others = [], []
  for key, kind in MEASURES.items():
    best = best_methods(rows, key)
    if not best:
      continue
    name = re.sub(' [↑↓→].*', '', kind.title)
    if method in best:
      first.append(name)
    else:
      others.append(f'{name} ({", ".join(title_of(b) for b in best)})')
  text = f'{title_of(method)} is the best in {", ".join(first) or "no column"}'
  return f'{text}; not in {", ".join(others)}.' if others else f'{text}.'


def to_csv(rows: Sequence[Row]) -> str:
  """A line a method, three columns a measure: mean, low, high; unscaled, empty where unknown."""
  shown = [key for key in MEASURES if any(key in row.values for row in rows)]
  file = io.StringIO()
  writer = csv.writer(file, lineterminator='\n')
  heads = [f'{key}{end}' for key in shown for end in ('', '_low', '_high')]
  writer.writerow(['method', 'baseline', *heads])
  for row in rows:
    numbers = [n for key in shown for n in row.values.get(key, Estimate(math.nan))]
    cells = ['' if math.isnan(n) else repr(float(n)) for n in numbers]
    writer.writerow([csv_text(row.method), int(row.baseline), *cells])
  return file.getvalue()


def write_report(
  folder: Path, rows: Sequence[Row], notes: Sequence[str], setup: Mapping[str, Any]
) -> None:
  """Writes table.md, table.csv and table.json.

  Args:
    folder: where.
    rows: methods and baselines.
    notes: below the Markdown table.
    setup: what was run: model, data, number of images and so on; goes into the JSON.

  Raises:
    UserError: the folder cannot be written.
  """
  write_text(folder / 'table.md', to_markdown(rows, notes))
  write_text(folder / 'table.csv', to_csv(rows))
  write_json(folder / 'table.json', {'setup': dict(setup), 'rows': [_plain(row) for row in rows]})


def _plain(row: Row) -> dict[str, Any]:
  values = {
    key: {name: None if math.isnan(n) else float(n) for name, n in value._asdict().items()}
    for key, value in row.values.items()
  }
  return {
    'method': row.method,
    'baseline': row.baseline,
    'options': dict(row.options),
    'values': values,
  }
