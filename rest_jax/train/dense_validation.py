"""`train.py --mode evaluate` of a detector or a segmenter: figures, and pictures to look at."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from rest_jax.data.dense_batches import DenseEvalBatches, View
from rest_jax.data.dense_sources import DenseSource
from rest_jax.errors import UserError
from rest_jax.evaluation.document import Block, Figure, Heading, Text, plain_table, to_markdown
from rest_jax.evaluation.environment import command_line, describe_devices, environment
from rest_jax.evaluation.progress import clock
from rest_jax.files import make_folder
from rest_jax.models.dense_drawing import beside, draw_objects, draw_segmentation
from rest_jax.models.dense_model import Objects, load_dense_model
from rest_jax.text import legible, markdown, markdown_code, percent, plural
from rest_jax.train import dense_evaluate, dense_opening
from rest_jax.train.measured import over
from rest_jax.train.parallel import check_batch, make_mesh, memory_advice
from rest_jax.train.processes import is_main
from rest_jax.train.workdir import write_json, write_text, writing

PICTURES = 8  # that are drawn
BATCH = 8  # pictures at a time unless told: they are large, and few fit into memory
# Flags that are about the images of classifiers.
_NOT_DENSE = ('architecture', 'ema', 'image_size', 'resize', 'crop_pct', 'interpolation')


def judge(options: dict[str, Any]) -> str:
  """Judges a model on a split and writes report.md, results.json and pictures/.

  Args:
    options: of the command line: model, data, data_dir, split, limit, seed, batch_size, scales,
      mirrored, output.

  Returns:
    One line for the terminal.

  Raises:
    UserError: flags that are for classifiers, other classes, damaged data, or nowhere to write.
  """
  given = [f'--{name}' for name in _NOT_DENSE if options[name]]
  if given:
    raise UserError(
      f'{" and ".join(given)}: for classifiers; sizes are those of {options["model"]}'
    )
  found, output = (
    dense_opening.looking(load_dense_model(options['model']), options),
    options['output'],
  )
  mesh = make_mesh()
  # By default no more than training's evaluations take, rounded up to what the devices share.
  batch_size = options['batch_size'] or -(-BATCH // mesh.size) * mesh.size
  check_batch(batch_size, 1, mesh)
  own = dense_evaluate.local_mesh(mesh)
  source, where = dense_opening.pictures(found, options)
  if source.note and is_main():
    print(f'{where}: {legible(source.note)}', flush=True)
  make_folder(output)
  gallery = _Gallery(output / 'pictures', found.class_names) if is_main() else None
  began = time.monotonic()
  with memory_advice():
    result = _result(found, source, batch_size, own, gallery)
  result['seconds'] = time.monotonic() - began
  if is_main():
    _write(output, found, options['model'], where, result, gallery, source.note)
  return _line(options['model'], where, result, output)


def _result(found: Any, source: DenseSource, batch_size: int, mesh: Any, watch: Any) -> Any:
  """What the model reaches."""
  config = found.config
  step = dense_evaluate.make_step(found.module, config.kind, config.mean, config.std, mesh)
  view = View(config.short, config.long, config.canvases)
  batches = DenseEvalBatches(source, batch_size, view, mesh.size)
  variables = dense_evaluate.replicated(found.variables, mesh)
  if config.kind == 'segmenter':
    views: Any = {'scales': config.scales, 'mirrored': config.mirrored}
    return dense_evaluate.judge_segmenter(
      step, variables, batches, found.class_names, watch=watch, **views
    )
  masks = source.kind == 'masks'
  return dense_evaluate.judge_detector(
    step, variables, batches, found.class_names, masks, watch=watch
  )


class _Gallery:
  """Draws the first pictures: the truth, and beside it what was found."""

  def __init__(self, folder: Path, class_names: tuple[str, ...]):
    self.folder, self._names = folder, class_names
    self.files: list[Path] = []

  def __call__(self, example: dict[str, Any], found: Any) -> None:
    if len(self.files) == PICTURES:
      return
    picture = example['image']
    if isinstance(found, Objects):
      count = len(example['labels'])
      truth = Objects(
        example['boxes'], np.ones(count, np.float32), example['labels'], example.get('masks')
      )
      both = (draw_objects(picture, o, self._names, scored=o is found) for o in (truth, found))
    else:
      pair = (example['segmentation'], found)
      both = (draw_segmentation(picture, classes, self._names) for classes in pair)
    path = self.folder / f'{len(self.files) + 1}.png'
    with writing(self.folder.parent):
      self.folder.mkdir(exist_ok=True)
      beside(*both).save(path)
    self.files.append(path)


def _write(
  output: Path,
  found: Any,
  model: str,
  where: str,
  result: dict[str, Any],
  gallery: Any,
  note: str,
) -> None:
  """report.md and results.json, where null stands for a figure of what does not occur."""
  write_json(
    output / 'results.json',
    {
      'model': model,
      'data': where,
      'view': dense_opening.words(found.config),
      'config': json.loads(found.config.to_json()),
      **result,
      'environment': environment(),
    },
  )
  text = to_markdown(f'{model} on {where}', _blocks(found, result, gallery, note), output)
  write_text(output / 'report.md', text)


def _blocks(found: Any, result: dict[str, Any], gallery: Any, note: str) -> list[Block]:
  """The report: all figures, those of the classes, pictures."""
  by_class = result['classes'] if found.config.kind == 'detector' else {'IoU': result['classes']}
  rows = [
    [markdown(name), *(_percent(part[name]) for part in by_class.values())]
    for name in found.class_names
  ]
  head = ['class', *(f'{name} AP' if name != 'IoU' else name for name in by_class)]
  where = f'{clock(result["seconds"])} on {describe_devices()}'
  noted = f' ({markdown(note)})' if note else ''
  left = 'Left: what is true. Right: what was found (from a score of 0.3).'
  return [
    Text(
      f'{plural(result["count"], "picture")}{noted}; {_over(result)}; '
      f'{dense_opening.words(found.config)}; {where}. '
      f'Command: {markdown_code(command_line())}'
    ),
    plain_table(['figure', ''], [[n, _percent(v)] for n, v in _figures(result).items()]),
    Heading('Classes'),
    plain_table(head, rows),
    Heading('Pictures'),
    Text(left if found.config.kind == 'detector' else left.removesuffix(' (from a score of 0.3).')),
    *(Figure(path, f'picture {path.stem}') for path in gallery.files),
  ]


def _figures(result: dict[str, Any]) -> dict[str, float]:
  return {n: v for n, v in result.items() if n not in ('classes', 'judged', 'count', 'seconds')}


def _over(result: dict[str, Any]) -> str:
  """'AP over 3 of 4 classes'; sizes and `mean_accuracy` are means over those with such objects."""
  return ('AP' if 'AP' in result else 'mIoU') + over(result)


def _percent(value: float) -> str:
  return percent(value, 1, ' %')


def _line(model: str, where: str, result: dict[str, Any], output: Path) -> str:
  shown = ', '.join(f'{name} {_percent(value)}' for name, value in _figures(result).items())
  pictures = plural(result['count'], 'picture')
  return f'{model} on {pictures} of {where}: {shown}; {_over(result)}; report in {output}'
