"""What `train.py --mode evaluate` leaves behind: report.md, results.json, confusion.png."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from rest_jax.evaluation.document import Block, Figure, Heading, Text, plain_table, to_markdown
from rest_jax.evaluation.environment import command_line, describe_devices, environment
from rest_jax.evaluation.figures import literal, new_figure
from rest_jax.text import distinct, markdown, markdown_code, percent, plural
from rest_jax.train.validation import Validation
from rest_jax.train.workdir import save_figure, write_json, write_text

_NAMED = 30  # classes that a picture can name on its axes


def write_report(
  directory: Path,
  result: Validation,
  classifier: Any,
  model: str,
  source: str,
  view: dict[str, Any],
) -> str:
  """Writes the three files, each through a temporary name.

  Args:
    directory: made where it does not exist.
    result: the measures.
    classifier: has `class_names` and `config`.
    model: what `--model` said.
    source: name and split of the data.
    view: size and crop of the test images.

  Returns:
    One line for the terminal.

  Raises:
    UserError: the directory cannot be written.
  """
  names = classifier.class_names
  _draw(directory, result, names)
  write_json(directory / 'results.json', _results(result, names, model, source, view))
  parts = _parts(directory, result, names, view)
  write_text(directory / 'report.md', to_markdown(f'{model} on {source}', parts, directory))
  top5 = f'top-5 {percent(result.top5, 2, "%")}, ' if len(names) > 5 else ''
  speed = '' if math.isnan(result.images_per_second) else f', {result.images_per_second:.0f} img/s'
  return (
    f'{model} on {plural(result.count, "image")} of {source}: '
    f'top-1 {percent(result.top1, 2, "%")}, {top5}loss {result.loss:.4f}, '
    f'ECE {result.ece:.2%}{speed}; report in {directory}'
  )


def _results(result: Validation, names, model: str, source: str, view: dict[str, Any]) -> Any:
  """What results.json holds; what is not a number becomes null there."""
  return {
    'model': model,
    'data': source,
    'view': view,
    'count': result.count,
    'top1': result.top1,
    'top5': result.top5 if len(names) > 5 else None,  # of five classes it says nothing
    'loss': result.loss,
    'ece': result.ece,
    'images_per_second': result.images_per_second,
    'class_top1': dict(zip(distinct(names), result.class_top1.tolist(), strict=True)),
    'calibration': result.bins.tolist(),
    'confusion': result.confusion.tolist(),
    'environment': environment(),
  }


def _parts(directory: Path, result: Validation, names, view: dict[str, Any]) -> list[Block]:
  """The report."""
  speed, shown = result.images_per_second, ', '.join(f'{key} {v}' for key, v in view.items())
  measures = [
    percent(result.top1, 2, '%'),
    percent(result.top5, 2, '%') if len(names) > 5 else '–',
    f'{result.loss:.4f}',
    f'{result.ece:.2%}',
    'too few batches' if math.isnan(speed) else f'{speed:.0f}',
  ]
  counts = result.confusion.sum(axis=1)
  classes = [
    [markdown(name), percent(accuracy, 2, '%'), str(count)]
    for name, accuracy, count in zip(names, result.class_top1, counts, strict=True)
    if count
  ]
  mistakes = [
    [markdown(names[true]), markdown(names[guess]), str(count)]
    for true, guess, count in confusions(result)
  ]
  bins = [[f'{n:.0f}', f'{mean:.3f}', f'{share:.3f}'] for n, mean, share in result.bins if n]
  return [
    Text(f'{plural(result.count, "image")}; {shown}.'),
    plain_table(['top-1', 'top-5', 'loss (nats)', 'ECE, 15 bins', 'images/s'], [measures]),
    Figure(directory / 'confusion.png', 'Rows: true class; columns: predicted; right: calibration'),
    Heading('Accuracy of each class'),
    plain_table(['class', 'top-1', 'images'], classes),
    Heading('Most frequent mistakes'),
    plain_table(['true', 'predicted', 'images'], mistakes),
    Heading('Calibration'),
    plain_table(['images', 'mean confidence', 'accuracy'], bins),
    Text(
      f'{markdown_code(command_line())} on {describe_devices()}. images/s is reading, decoding and '
      'computing together, of full batches, without the first of each device, which compiles.'
    ),
  ]


def confusions(result: Validation, most: int = 20) -> list[tuple[int, int, int]]:
  """The most frequent mistakes: (true class, predicted class, images), most frequent first."""
  wrong = result.confusion.copy()
  np.fill_diagonal(wrong, 0)
  order = np.argsort(-wrong, axis=None, kind='stable')[:most]
  pairs = (np.unravel_index(int(place), wrong.shape) for place in order)
  return [(int(i), int(j), int(wrong[i, j])) for i, j in pairs if wrong[i, j]]


def _draw(directory: Path, result: Validation, names) -> None:
  figure = new_figure(13, 6)
  left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
  _draw_confusion(left, result, names)
  figure.colorbar(left.images[0], ax=left, label='share of the true class', shrink=0.8)
  _draw_calibration(right, result)
  save_figure(directory / 'confusion.png', figure)


def _draw_confusion(axes, result: Validation, names) -> None:
  totals = result.confusion.sum(axis=1, keepdims=True)
  # A class without images has no shares; its row stays grey, unlike one of zeros.
  shares = np.where(totals > 0, result.confusion / np.maximum(totals, 1), np.nan)
  axes.set_facecolor('0.85')
  axes.imshow(shares, vmin=0, vmax=1, cmap='Blues', interpolation='nearest')
  axes.set(title=f'top-1 {percent(result.top1, 2, "%")}', xlabel='predicted', ylabel='true')
  if len(names) > _NAMED:
    return
  names = [literal(name, 24) for name in names]
  axes.set_xticks(range(len(names)), names, rotation=45, ha='right', rotation_mode='anchor')
  axes.set_yticks(range(len(names)), names)
  if len(names) > 12:
    return
  for (row, column), count in np.ndenumerate(result.confusion):
    if count:
      colour = 'white' if shares[row, column] > 0.5 else 'black'
      axes.text(column, row, str(count), ha='center', va='center', color=colour, fontsize=8)


def _draw_calibration(axes, result: Validation) -> None:
  there = result.bins[:, 0] > 0
  count, confidence, accuracy = result.bins[there].T
  axes.plot([0, 1], [0, 1], color='0.6', linestyle='--', label='confidence = accuracy')
  axes.plot(confidence, accuracy, marker='o', label='this model')
  axes.set(
    title=f'calibration, ECE {result.ece:.2%}', xlabel='mean confidence of the bin',
    ylabel='accuracy', xlim=(0, 1.02), ylim=(0, 1.02),
  )  # fmt: skip
  axes.grid(alpha=0.3)
  axes.legend(loc='upper left')
  share = axes.inset_axes((0.62, 0.08, 0.34, 0.24))
  share.bar(confidence, count / count.sum(), width=0.05)
  share.set(title='share of images', xlim=(0, 1.02))
  share.title.set_fontsize(8)
  share.tick_params(labelsize=7)
