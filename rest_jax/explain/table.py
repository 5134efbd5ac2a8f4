"""The table of `explain.py --evaluate`: Markdown, CSV, JSON, notes, examples. Part of the script.

Best values are bold, intervals stand beside.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from rest_jax import explain
from rest_jax.evaluation.document import markdown_table
from rest_jax.evaluation.document import to_csv as csv_table
from rest_jax.evaluation.environment import devices_used
from rest_jax.evaluation.intervals import Interval, bootstrap
from rest_jax.explain import figures
from rest_jax.explain.figures import title_of
from rest_jax.explain.study import BASELINES, Study, label
from rest_jax.files import write_array, write_json, write_text
from rest_jax.text import legible, markdown, percent, plural

EXAMPLES = 6  # scenes of examples.png
FINE = ('insertion_fine', 'deletion_fine')
_NOT_SHOWN = ('correct', 'marked', 'seconds', 'queries')


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
  'insertion_fine': Measure('insertion AUC (fine steps) ↑', 1, 1, 3),
  'deletion_fine': Measure('deletion AUC (fine steps) ↓', -1, 1, 3),
  'drop': Measure('average drop % ↓', -1, 100, 1),
  'increase': Measure('increase % ↑', 1, 100, 1),
  'road': Measure('ROAD ↑', 1, 1, 3),
  'pointing': Measure('pointing % ↑', 1, 100, 1),
  'energy': Measure('energy in mask % ↑', 1, 100, 1),
  'sanity': Measure('rank corr. to random weights →0', 0, 1, 3),
  'queries': Measure('queries ↓', -1, 1, 0),
  'milliseconds': Measure('ms an image ↓', -1, 1, 1),
}


@dataclasses.dataclass(frozen=True)
class Row:
  """A line of the table.

  Attributes:
    method: name of the registry, or of a baseline.
    values: estimate by key of `MEASURES`; a missing one is printed as a dash.
    baseline: whether it is a reference that explains nothing; never bold.
    options: what it was run with, such as its layer and its budget.
    counts: of how many images each value is the mean, by key; none of what is no mean.
  """

  method: str
  values: Mapping[str, Interval]
  baseline: bool = False
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  counts: Mapping[str, int] = dataclasses.field(default_factory=dict)


def best_methods(rows: Sequence[Row], measure: str) -> list[str]:
  """The methods with the best mean of a measure as far as it is printed; no baselines."""
  kind = MEASURES[measure]
  means = {
    row.method: round(row.values[measure].value * kind.scale, kind.digits)
    for row in rows
    if not row.baseline and measure in row.values and not math.isnan(row.values[measure].value)
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
  table = [
    [
      f'*{markdown(title_of(row.method))}*' if row.baseline else markdown(title_of(row.method)),
      *(_cell(row.values.get(k), MEASURES[k], row.method in best[k], intervals) for k in shown),
    ]
    for row in rows
  ]
  lines = markdown_table(['method', *(MEASURES[key].title for key in shown)], table)
  return '\n'.join([lines, *(f'\n{note}' for note in notes)]) + '\n'


def _cell(value: Interval | None, kind: Measure, bold: bool, intervals: bool) -> str:
  if value is None or math.isnan(value.value):
    return '–'
  shown = [percent(n, kind.digits) if kind.scale == 100 else f'{n:.{kind.digits}f}' for n in value]
  text = f'**{shown[0]}**' if bold else shown[0]
  if not intervals or math.isnan(value.low):
    return text
  return f'{text} [{shown[1]}, {shown[2]}]'


def standing(rows: Sequence[Row], method: str) -> str:
  """One sentence: in which columns a method is the best and which is where it is not.

  Args:
    rows: of the table, `method` among them.
    method: name of the registry.
  """
  best = {_name(kind): best_methods(rows, key) for key, kind in MEASURES.items()}
  first = [name for name, some in best.items() if method in some]
  others = {name: some for name, some in best.items() if some and method not in some}
  named = ', '.join(f'{name} ({", ".join(map(title_of, some))})' for name, some in others.items())
  text = f'{title_of(method)} is the best in {", ".join(first) or "no column"}'
  return f'{text}; not in {named}.' if named else f'{text}.'


def _name(kind: Measure) -> str:
  """A column's title without its unit and arrow."""
  return re.sub('( %)? [↑↓→].*', '', kind.title)


def to_csv(rows: Sequence[Row]) -> str:
  """A line a method, three columns a measure: mean, low, high; unscaled, empty where unknown."""
  shown = [key for key in MEASURES if any(key in row.values for row in rows)]
  head = [f'{key}{end}' for key in shown for end in ('', '_low', '_high')]
  nothing = Interval(math.nan)
  table = [
    [row.method, row.baseline, *(float(n) for k in shown for n in row.values.get(k, nothing))]
    for row in rows
  ]
  return csv_table(['method', 'baseline', *head], table)


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
  values: dict[str, dict[str, float]] = {
    key: dict(zip(('mean', 'low', 'high'), map(float, interval), strict=True))
    for key, interval in row.values.items()
  }
  for key, count in row.counts.items():
    values[key]['count'] = count
  return {
    'method': row.method,
    'baseline': row.baseline,
    'options': dict(row.options),
    'values': values,
  }


# ---- From records to the table ------------------------------------------------------------------


def keep_examples(folder: Path, method: str, maps: np.ndarray) -> None:
  """Keeps the maps of the first images for examples.png."""
  write_array(_maps_file(folder, method), np.asarray(maps[:EXAMPLES], np.float32))


def _maps_file(folder: Path, method: str) -> Path:
  return folder / 'maps' / f'{method.replace(":", "_")}.npy'


def write(study: Study) -> str:
  """Writes table.md, table.csv, table.json and examples.png.

  Args:
    study: whose records are complete.

  Returns:
    A line for the terminal.

  Raises:
    UserError: the folder cannot be written.
  """
  folder = study.command.output
  rows = [_row(study, method) for method in sorted(study.methods, key=_order)]
  rows += [_row(study, name, baseline=True) for name in BASELINES]
  write_report(folder, rows, _notes(study, rows), _setup(study))
  _draw_examples(study, folder)
  return f'table.md, table.csv, table.json and examples.png are in {legible(folder)}'


def _order(method: str) -> int:
  known = list(figures.TITLES)
  return known.index(method) if method in known else len(known)


def _row(study: Study, name: str, baseline: bool = False) -> Row:
  """The line of a method, from its records."""
  records, images, seed = study.records, range(study.count), study.command.seed
  measures = [key for key in records.rows(name)[0] if key not in _NOT_SHOWN]
  known = {key: _known(records.column(name, key, images)) for key in measures}
  if study.command.fine_steps:
    known |= {key: _known(records.column(label(name, 'fine'), key, images)) for key in FINE}
  if not baseline:
    first = range(min(study.count, study.command.batch_size))
    known['sanity'] = _known(records.column(label(name, 'sanity'), 'sanity', first))
  values = {key: _estimate(some, seed) for key, some in known.items()}
  counts = {key: len(some) for key, some in known.items()}
  if baseline:
    return Row(name, values, baseline=True, counts=counts)
  values['queries'] = Interval(float(np.mean(records.column(name, 'queries', images))))
  times = [seconds * 1000 for seconds in _known(records.column(name, 'seconds', images))]
  values['milliseconds'] = Interval(min(times, default=math.nan))
  return Row(name, values, options=study.options[name], counts=counts)


def _known(values: Sequence[Any]) -> list[Any]:
  """Those of images that have one."""
  return [value for value in values if value is not None]


def _estimate(values: Sequence[float], seed: int) -> Interval:
  if not values:
    return Interval(math.nan)
  return Interval(*map(float, bootstrap(np.asarray(values), seed=seed)))


def _layer(study: Study) -> str | None:
  """The layer that the CAM methods looked at."""
  if not any(explain.METHODS[method.split(':')[0]].needs_layer for method in study.methods):
    return None
  size = study.classifier.input_size
  return explain.tap(study.classifier, study.command.layer).resolve((1, size, size, 3))


def _setup(study: Study) -> dict[str, Any]:
  asked = {name: getattr(study.command, name) for name in ('data', 'model', 'seed', 'batch_size')}
  layer, device, accuracy = _layer(study), _devices(study), _accuracy(study)
  return asked | {'images': study.count, 'accuracy': accuracy, 'layer': layer, 'device': device}


def _accuracy(study: Study) -> float:
  return float(np.mean(study.records.column(BASELINES[0], 'correct', range(study.count))))


def _devices(study: Study) -> str:
  """Those that took part: a device takes a case of a batch at a time."""
  return devices_used(sum(len(study.cases(piece)) for piece in study.pieces()))


def _notes(study: Study, rows: Sequence[Row]) -> list[str]:
  size, layer = study.classifier.input_size, _layer(study)
  budgets = [
    f'{title_of(row.method)} {key}={value}'
    for row in rows
    for key, value in row.options.items()
    if key not in ('layer', 'query_batch') and value is not None
  ]
  notes = [
    f'{markdown(study.line)}. Model {markdown(study.command.model)} at {size} px '
    f'({percent(_accuracy(study), 1, "%")} of them right); the predicted class is explained. In '
    'brackets: 95 % bootstrap intervals over the images. Bold: best.',
    'Insertion starts from the blurred image, deletion ends at the mean colour, a 28th of the '
    f'pixels a step{", a 112th where the steps are fine" * study.command.fine_steps}; '
    f'pointing is strict, {15 / 224 * size:.1f} px tolerance (15 px at 224); '
    'ROAD removes 20, 50 and 80 %.',
  ]
  if layer is not None:
    notes.append(
      f'CAM methods look at layer {markdown(layer)}. Options: {", ".join(budgets) or "defaults"}.'
    )
  notes.append(
    f'Times on {_devices(study)}: the quickest batch but the first, which compiles; one query is '
    'one forward pass, a backward pass counts as one. Random weights: one draw of all layers, the '
    'first batch; a constant map has no rank correlation. Baselines in italics explain nothing: '
    'the centre, and noise.'
  )
  if fewer := fewer_images(rows, study.count):
    notes.append(f'{fewer}{_unseen(study, rows)}.')
  if any(row.method == 'group_cam' for row in rows) and len(study.methods) > 1:
    notes.append(standing(rows, 'group_cam'))
  return notes


def fewer_images(rows: Sequence[Row], total: int) -> str:
  """Which columns are means of fewer images than the table's, and of how many; '' where none is.

  Args:
    rows: of the table.
    total: images of the table.
  """
  parts = []
  for key, kind in MEASURES.items():
    counts = {row.method: row.counts[key] for row in rows if key in row.counts}
    most = max(counts.values(), default=total)
    others = [f'{title_of(name)} {count}' for name, count in counts.items() if count < most]
    if most < total or others:
      parts.append(f'{_name(kind)} {most}' + (f' ({", ".join(others)})' if others else ''))
  return f'Means of fewer than all {plural(total, "image")}: {"; ".join(parts)}' if parts else ''


def _unseen(study: Study, rows: Sequence[Row]) -> str:
  """Why there is nothing to point at in some images; '' where there is in all, or in none."""
  seen = next((row.counts['pointing'] for row in rows if 'pointing' in row.counts), study.count)
  marked = _known(study.records.column(BASELINES[0], 'marked', range(study.count)))
  reasons = {
    'no object in the data': len(marked) - int(sum(marked)),
    "none of it in the model's view": int(sum(marked)) - seen,
  }
  text = ' and '.join(f'{plural(n, "image")} with {why}' for why, n in reasons.items() if n)
  return f'; {text}' if marked and text else ''


def _draw_examples(study: Study, folder: Path) -> None:
  count = min(EXAMPLES, study.count, study.command.batch_size)
  names = study.classifier.class_names
  pictures, titles = [], []
  for number in range(count):
    example = study.source[number]
    pixels = study.classifier.preprocess(example['image'])[0]
    pictures.append(Image.fromarray(np.rint(pixels * 255).astype(np.uint8)))
    titles.append(f'class {names[int(example["label"])]}')
  load = functools.partial(np.load, allow_pickle=False)
  methods = sorted(study.methods, key=_order)
  maps = {method: load(_maps_file(folder, method))[:count] for method in methods}
  figures.save_figure(folder / 'examples.png', figures.examples_figure(pictures, titles, maps))
