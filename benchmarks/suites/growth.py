"""Suite of growth: time and memory as tokens, batch, groups and images grow, with exponents."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cases import Case, Options, Ours, Theirs, suite
from rest_jax.evaluation import document

FIGURE = 'growth.png'
WHAT = {'time': 'seconds of a call', 'memory': 'bytes of a call, at most'}


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
  """The slope of log(values) over log(sizes), least squares: 1 where they grow alike."""
  x, y = [math.log(v) for v in sizes], [math.log(v) for v in values]
  mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
  above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
  return above / sum((a - mean_x) ** 2 for a in x)


def conclude(records: list[dict[str, Any]], folder: Path) -> list[Any]:
  """A table of fitted exponents, and the figure."""
  curves = _curves(records)
  rows = []
  for (growing, side), points in curves.items():
    fitted = [
      f'{exponent(*zip(*found, strict=True)):.2f}' if len(found) > 1 else '-'
      for found in (points['time'], points['memory'])
    ]
    sizes = [size for size, _ in points['time']]
    span = f'{min(sizes):g} to {max(sizes):g}' if sizes else '-'
    rows.append([document.Cell(text) for text in (growing, side, span, *fitted)])
  head = ['what grows', 'side', 'from, to', 'exponent of time', 'exponent of memory']
  draw(curves, folder / FIGURE)
  return [
    document.Table('Fitted over all points, in logarithms:', head, rows),
    document.Figure(folder / FIGURE, 'Time and memory over what grows, both axes logarithmic.'),
  ]


def _curves(records: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, list[Any]]]:
  """(what grows, side) to points (size, value) of time and memory."""
  curves: dict[tuple[str, str], dict[str, list[Any]]] = {}
  for record in records:
    for name, side in record['sides'].items():
      key = f'{record["case"]["work"]}: {record["case"]["grows"]}', name
      points = curves.setdefault(key, {'time': [], 'memory': []})
      if side.get('seconds'):
        points['time'].append((record['case']['size'], statistics.median(side['seconds'])))
      if side.get('peak'):
        points['memory'].append((record['case']['size'], side['peak']))
  return {key: points for key, points in curves.items() if points['time']}


def draw(curves: dict[tuple[str, str], dict[str, list[Any]]], path: Path) -> None:
  """A column of plots for each thing that grows: time above, memory below."""
  from rest_jax.evaluation.figures import COLOURS, new_figure, save_figure

  kinds = list(dict.fromkeys(growing for growing, _ in curves))
  figure = new_figure(3.2 * max(len(kinds), 1), 5.2)
  axes = figure.subplots(2, max(len(kinds), 1), squeeze=False)
  for column, growing in enumerate(kinds):
    sides = [side for kind, side in curves if kind == growing]
    for row, what in enumerate(WHAT):
      axis = axes[row][column]
      for colour, side in zip(COLOURS, sides, strict=False):
        points = curves[growing, side][what]
        if points:
          axis.plot(*zip(*points, strict=True), marker='o', color=colour, label=side)
      sizes = sorted({size for side in sides for size, _ in curves[growing, side]['time']})
      axis.set(xscale='log', yscale='log', xlabel=growing.partition(': ')[2])
      axis.set_xticks(sizes, [f'{size:g}' for size in sizes], fontsize='small')
      axis.minorticks_off()
      if not row:
        axis.set_title(growing, fontsize='medium')
      if not column:
        axis.set_ylabel(WHAT[what])
      if axis.lines:
        axis.legend(fontsize='small')
  save_figure(path, figure, dpi=110)


@suite('growth', conclude)
def growth(options: Options) -> list[Case]:
  """Growth.

  What a call takes as one quantity grows and all else stays: a process for each side of each
  point, so that the peak of memory is its own. Tokens are those of the first stage.
  """
  if options.quick:
    return [_attention(side) for side in (16, 32)]
  sides = (224, 320, 448, 640, 896)
  cases = []
  for work, most in (('forward', 5), ('gradient', 4)):
    cases += [_model(work, 1, side, 'tokens', (side // 4) ** 2) for side in sides[:most]]
  for work, batches in (('forward', (1, 2, 4, 8, 16, 32)), ('gradient', (1, 2, 4, 8))):
    cases += [_model(work, batch, 224, 'batch', batch) for batch in batches]
  cases += [_attention(side) for side in (14, 28, 42, 56, 84)]
  cases += [_cam(1, groups, 'groups', groups) for groups in (4, 8, 16, 32, 64)]
  return cases + [_cam(images, 8, 'images', images) for images in (1, 2, 4, 8)]


def _about(work: str, grows: str, size: int) -> dict[str, Any]:
  return {'work': work, 'grows': grows, 'size': size}


def _model(work: str, batch: int, size: int, grows: str, value: int) -> Case:
  model = 'rest_small'
  params = dict(model=model, batch=batch, size=size)
  task = f'models.{work}'
  sides = {'ours': Ours(task, params), 'peer': Theirs(task, params, 'rest')}
  return Case(_about(f'{work} {model}', grows, value), sides, items=batch, fresh=True, repeats=7)


def _attention(side: int) -> Case:
  common = dict(batch=1, side=side, width=64, heads=2)
  emsa = {**common, 'reduction': 8, 'mix': True}
  task = 'attention.attention'
  sides = {
    'EMSA': Ours(task, emsa),
    'MSA': Ours(task, {**common, 'reduction': 1, 'mix': False}),
    "authors' EMSA": Theirs(task, emsa, 'rest'),
  }
  return Case(_about('attention', 'tokens', side * side), sides, fresh=True, repeats=7)


def _cam(images: int, groups: int, grows: str, value: int) -> Case:
  model = 'resnet50'
  params = dict(model=model, size=224, batch=images, groups=groups)
  task = 'cams.group_cam'
  sides = {'ours': Ours(task, params), 'peer': Theirs(task, params, 'groupcam')}
  about = _about(f'Group-CAM {model}', grows, value)
  return Case(about, sides, items=images, fresh=True, repeats=5)
