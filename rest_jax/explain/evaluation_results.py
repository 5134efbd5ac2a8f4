"""From the records of an evaluation to its table, notes and examples. Part of the script."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from rest_jax import explain
from rest_jax.explain import figures
from rest_jax.explain.metrics import bootstrap
from rest_jax.explain.report import Estimate, Row, standing, write_report
from rest_jax.explain.study import BASELINES, SANITY, Study
from rest_jax.files import write_array
from rest_jax.text import legible, markdown

EXAMPLES = 6  # scenes of examples.png
_NOT_SHOWN = ('correct',)


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
  found = [study.records.get(name, number) for number in range(study.batches)]
  lines = [line for line in found if line is not None]
  keys = [key for key in lines[0]['values'] if key not in _NOT_SHOWN]
  seed = study.command.seed
  known = {key: [v for line in lines for v in line['values'][key] if v is not None] for key in keys}
  values = {key: _estimate(some, seed) for key, some in known.items() if some}
  if baseline:
    return Row(name, values, baseline=True)
  sanity = study.records.get(name, SANITY)
  if sanity is not None:
    values['sanity'] = _estimate(sanity['values'], seed)
  values['queries'] = Estimate(lines[0]['queries'])
  times = [line['seconds'] * 1000 for line in lines if line['seconds'] is not None]
  values['milliseconds'] = Estimate(min(times) if times else math.nan)
  return Row(name, values, options=study.options[name])


def _estimate(values: Sequence[float], seed: int) -> Estimate:
  return Estimate(*(float(end) for end in bootstrap(np.asarray(values), seed=seed)))


def _layer(study: Study) -> str | None:
  """The layer that the CAM methods looked at."""
  if not any(explain.METHODS[method.split(':')[0]].needs_layer for method in study.methods):
    return None
  size = study.classifier.input_size
  return explain.tap(study.classifier, study.command.layer).resolve((1, size, size, 3))


def _setup(study: Study) -> dict[str, Any]:
  command, device = study.command, jax.devices()[0]
  return {
    'data': command.data,
    'images': study.count,
    'accuracy': _accuracy(study),
    'model': command.model,
    'layer': _layer(study),
    'seed': command.seed,
    'batch_size': command.batch_size,
    # A device takes a batch at a time.
    'device': f'{min(jax.local_device_count(), study.batches)} x {device.device_kind}',
  }


def _accuracy(study: Study) -> float:
  lines = [study.records.get(BASELINES[0], number) for number in range(study.batches)]
  return float(np.mean([v for line in lines if line for v in line['values']['correct']]))


def _notes(study: Study, rows: Sequence[Row]) -> list[str]:
  size, layer = study.classifier.input_size, _layer(study)
  budgets = [
    f'{figures.title_of(row.method)} {key}={value}'
    for row in rows
    for key, value in row.options.items()
    if key not in ('layer', 'query_batch') and value is not None
  ]
  notes = [
    f'{markdown(study.line)}. Model {markdown(study.command.model)} at {size} px '
    f'({_accuracy(study):.1%} of them right); the predicted class is explained. In brackets: 95 % '
    'bootstrap intervals over the images. Bold: best.',
    'Insertion starts from the blurred image, deletion ends at the mean colour, a 28th of the '
    f'pixels a step; pointing is strict, {15 / 224 * size:.1f} px tolerance (15 px at 224); '
    'ROAD removes 20, 50 and 80 %.',
  ]
  if layer is not None:
    notes.append(
      f'CAM methods look at layer {markdown(layer)}. Options: {", ".join(budgets) or "defaults"}.'
    )
  notes.append(
    'Times: the quickest batch but the first, which compiles; one query is one forward pass, '
    'a backward pass counts as one. Random weights: one draw of all layers, the first batch. '
    'Baselines in italics explain nothing: the centre, and noise.'
  )
  if any(row.method == 'group_cam' for row in rows) and len(study.methods) > 1:
    notes.append(standing(rows, 'group_cam'))
  return notes


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
