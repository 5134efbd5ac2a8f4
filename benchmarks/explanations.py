"""Joins the records of several runs of `explain.py --evaluate` and compares methods image by image.

  python -m benchmarks.explanations work/cams work/gradients --join work/all
  python -m benchmarks.explanations benchmarks/results/photographs.jsonl.gz --method group_cam

The runs are of one model, data set and seed, with other methods or images each. In work/all the
same `explain.py --evaluate --output work/all` goes on from all of them; a name that ends in
.jsonl.gz is written as one file, to be kept. The second command prints what a method has over each
other one: the mean over the images that both have, with its 95 % bootstrap interval; bold where the
interval says that the first is better.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rest_jax.errors import UserError, run_script
from rest_jax.evaluation.document import markdown_table
from rest_jax.evaluation.intervals import Interval, bootstrap
from rest_jax.evaluation.records import RESULTS
from rest_jax.explain.figures import title_of
from rest_jax.explain.study import label, split_label
from rest_jax.explain.table import FINE, MEASURES
from rest_jax.files import replacing

COMPARED = ('insertion', 'deletion', *FINE, 'drop', 'road')
DIGITS = 6  # of a value that is kept
Rows = dict[str, dict[int, dict[str, Any]]]
Values = Mapping[int, float]  # by image


def main(words: Sequence[str] | None = None) -> int:
  """Joins and compares; the exit status."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('results', nargs='+', type=Path, help='output folders, or files of records')
  parser.add_argument('--join', type=Path, help='folder, or .jsonl.gz, that gets all records')
  parser.add_argument('--method', help='what is compared with each other one')
  args = parser.parse_args(words)
  header, rows = joined([file_of(path) for path in args.results])
  if args.join is not None:
    write(args.join, header, rows)
  if args.method is not None:
    print(to_markdown(args.method, differences(rows, args.method)))
  return 0


def file_of(path: Path) -> Path:
  """The records of an output folder, or the file itself."""
  return path / RESULTS if path.is_dir() else path


def joined(files: Sequence[Path]) -> tuple[dict[str, Any], Rows]:
  """Header and rows of all files; of an image that two have, the first file's row.

  Raises:
    UserError: a file cannot be read, or is of another model or other settings than the first.
  """
  rows: Rows = {}
  first: dict[str, Any] = {}
  for file in files:
    header, *lines = _lines(file)
    first = first or header
    if header != first:
      raise UserError(f'{file} is of another model or other settings than {files[0]}')
    for line in lines:
      rows.setdefault(line.pop('case'), {}).setdefault(line.pop('image'), line)
  return first, rows


def _lines(file: Path) -> Iterator[dict[str, Any]]:
  try:
    data = file.read_bytes()
    text = (gzip.decompress(data) if file.suffix == '.gz' else data).decode()
    yield from map(json.loads, text.splitlines())
  except (OSError, EOFError, ValueError) as error:
    raise UserError(f'cannot read the records {file}: {error}') from error


def write(place: Path, header: Mapping[str, Any], rows: Rows) -> None:
  """Writes records, with values of six digits, as a folder's or as a compressed file."""
  lines = [header] + [
    {'case': case, 'image': image, **{name: _short(value) for name, value in row.items()}}
    for case, found in rows.items()
    for image, row in sorted(found.items())
  ]
  text = ''.join(json.dumps(line) + '\n' for line in lines).encode()
  packed = place.name.endswith('.jsonl.gz')
  with replacing(place if packed else place / RESULTS) as temporary:
    temporary.write_bytes(gzip.compress(text, mtime=0) if packed else text)


def _short(value: Any) -> Any:
  return float(f'{value:.{DIGITS}g}') if isinstance(value, float) else value


def differences(rows: Rows, method: str) -> dict[str, dict[str, tuple[Interval, int]]]:
  """What `method` has over each other case, by measure: mean and interval, and of how many images.

  Raises:
    UserError: there are no records of the method.
  """
  if method not in rows:
    raise UserError(f'no records of {method}; there are {", ".join(rows)}')
  found: dict[str, dict[str, tuple[Interval, int]]] = {}
  for case in rows:
    if case != method and not split_label(case)[1]:
      gaps = {n: less(values_of(rows, method, n), values_of(rows, case, n)) for n in COMPARED}
      found[case] = {name: (mean_of([*gap.values()]), len(gap)) for name, gap in gaps.items()}
  return found


def values_of(rows: Rows, case: str, name: str) -> Values:
  """A measure of a case by image, where it has a value."""
  found = rows.get(label(case, 'fine'), {}) if name in FINE else rows[case]
  return {image: row[name] for image, row in found.items() if row.get(name) is not None}


def less(ours: Values, theirs: Values) -> Values:
  """One less the other, of the images that both have."""
  return {image: ours[image] - theirs[image] for image in sorted(ours.keys() & theirs.keys())}


def mean_of(values: Sequence[float]) -> Interval:
  """The mean and its interval; not a number where there are no values."""
  return Interval(*map(float, bootstrap(np.asarray(values)))) if values else Interval(np.nan)


def to_markdown(method: str, found: Mapping[str, Mapping[str, tuple[Interval, int]]]) -> str:
  """The differences as a table."""
  shown = [n for n in COMPARED if any(of[n][1] for of in found.values())]
  table = []
  for case, measures in found.items():
    counts = sorted({measures[name][1] for name in shown})
    cells = [cell(name, measures[name][0]) for name in shown]
    table.append([title_of(case), *cells, '–'.join(map(str, counts))])
  titles = [MEASURES[name].title for name in shown]
  return markdown_table([f'{title_of(method)} minus', *titles, 'images'], table)


def cell(name: str, interval: Interval) -> str:
  """A difference of a measure, bold where its interval says that the first is better."""
  kind = MEASURES[name]
  if np.isnan(interval.value):
    return '–'
  mean, low, high = (f'{end * kind.scale:+.{kind.digits}f}' for end in interval)
  ahead = interval.low > 0 if kind.best > 0 else interval.high < 0
  return f'{f"**{mean}**" if ahead else mean} [{low}, {high}]'


if __name__ == '__main__':
  run_script(main)
