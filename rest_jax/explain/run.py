"""What explain.py does with pictures: reads them, explains the model's decision, writes results."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from rest_jax import explain
from rest_jax.data.picture_files import find_pictures, transparency_note
from rest_jax.errors import UserError
from rest_jax.explain import choices
from rest_jax.explain.command import Command
from rest_jax.explain.findings import Finding, PictureResult, draw_strip, write_result
from rest_jax.explain.leftovers import without_leftovers
from rest_jax.explain.metrics import Curves, insertion_deletion, step_at
from rest_jax.explain.outputs import refuse_probabilities
from rest_jax.explain.queries import logits_once
from rest_jax.explain.saying import Progress
from rest_jax.files import make_folder
from rest_jax.models.classifier import Classifier
from rest_jax.models.predictions import Placement, View
from rest_jax.paths import output_names
from rest_jax.text import plural

_HELD_PIXELS = 64 * 2**20  # of pictures that wait for their maps; a batch ends beyond


class Item(NamedTuple):
  """A picture on its way: where it comes from, where its results go, what the model sees of it."""

  file: Path
  folder: Path
  picture: Image.Image
  place: Placement
  pixels: np.ndarray


class Setup(NamedTuple):
  """What stays the same for all pictures."""

  command: Command
  classifier: Classifier
  methods: tuple[str, ...]
  layer: str | None  # of the CAM methods
  pictures: int  # a batch
  targets: int  # a picture


def explain_pictures(command: Command) -> int:
  """Explains the pictures of a command line.

  A picture that cannot be read is reported on stderr and the others go on.

  Args:
    command: from `command.parse`.

  Returns:
    The exit status: 0, or 2 where a picture failed.

  Raises:
    UserError: no such model, method, layer, class or picture, or nowhere to write.
  """
  classifier = choices.open_classifier(command.model, command.architecture, command.ema)
  methods, left_out = choices.usable_methods(command.method, classifier)
  if left_out:
    print(left_out, file=sys.stderr)
  nothing = np.zeros((1, len(classifier.class_names)), np.float32)
  targets = choices.choose_targets(command.target, classifier.class_names, nothing).shape[1]
  layer = check_layer(classifier, methods, command.layer)
  choices.check_own_flags(classifier, methods, command)
  files = find_pictures(command.image)
  if note := transparency_note(files):
    print(note, file=sys.stderr)
  make_folder(command.output)
  pictures = min(command.batch_size, len(files))
  setup = Setup(command, classifier, methods, layer, pictures, targets)
  progress = Progress(len(files), len(methods))
  with progress.ticking():
    for batch in _batches(files, setup, progress):
      _explain_batch(batch, setup, progress)
  if progress.failed and len(files) > 1:
    print(f'{progress.failed} of {plural(len(files), "picture")} failed', file=sys.stderr)
  return 2 if progress.failed else 0


def check_layer(classifier: Classifier, methods: Sequence[str], layer: str | None) -> str | None:
  """Looks for the layer before any work is done.

  Returns:
    The layer that CAM methods look at, None where no method does.

  Raises:
    UserError: no such layer (the near ones are given), or no method that looks at one.
  """
  if any(explain.METHODS[method].needs_layer for method in methods):
    point, shape = explain.tap(classifier, layer), (1, *[classifier.input_size] * 2, 3)
    point.feature_shape(jax.ShapeDtypeStruct(shape, np.float32))
    return point.resolve(shape)
  if layer is not None:
    raise UserError(f'--layer {layer}: {", ".join(methods)} looks at no layer; leave it out')
  return None


def _batches(files: Sequence[Path], setup: Setup, progress: Progress) -> Iterator[list[Item]]:
  """Reads pictures until there are enough for a batch, or enough pixels."""
  batch: list[Item] = []
  for file, name in zip(files, output_names(files), strict=True):
    progress.doing('reading')
    before = progress.failed
    with progress.guarding(file):
      batch.append(_read(file, setup.command.output / name, setup.classifier))
    progress.made((progress.failed - before) * len(setup.methods))
    held = sum(item.picture.width * item.picture.height for item in batch)
    if len(batch) >= setup.command.batch_size or held > _HELD_PIXELS:
      yield batch
      batch = []
  if batch:
    yield batch


def _read(file: Path, folder: Path, classifier: Classifier) -> Item:
  return Item(file, folder, *View(classifier, file).look())


def _explain_batch(batch: list[Item], setup: Setup, progress: Progress) -> None:
  command, classifier = setup.command, setup.classifier
  count = len(batch)
  progress.doing('predicting')
  batch, pixels, logits = _decided(batch, setup, progress)
  if not batch:
    progress.made(count * len(setup.methods))
    return
  refuse_probabilities(logits)
  targets = choices.choose_targets(command.target, classifier.class_names, logits)
  of_row = np.repeat(np.arange(setup.pictures), setup.targets)
  found = {}
  for method in setup.methods:
    progress.doing(method)
    found[method] = _apply(method, pixels[of_row], targets.reshape(-1), setup)
    progress.made(count)
  progress.doing('writing')
  for number, item in enumerate(batch):
    result = PictureResult(*item, logits[number])
    rows = np.flatnonzero(of_row == number)
    findings = [_finding(method, found[method], int(r)) for r in rows for method in setup.methods]
    with progress.guarding(item.file):
      _check_maps(result, findings)
      with without_leftovers(result.folder):
        if command.sanity:
          _draw_strips(result, findings, setup)
        line = write_result(result, findings, command, classifier, setup.layer)
      progress.done(line)


def _draw_strips(result: PictureResult, findings: Sequence[Finding], setup: Setup) -> None:
  """One of each class that is explained."""
  command, targets = setup.command, dict.fromkeys(finding.target for finding in findings)
  options = {method: choices.method_options(method, command) for method in setup.methods}
  for number, target in enumerate(targets, 1):
    name = f'sanity_top{number}.png' if len(targets) > 1 else 'sanity.png'
    draw_strip(result, target, options, setup.classifier, command.seed, name)


def _decided(
  batch: list[Item], setup: Setup, progress: Progress
) -> tuple[list[Item], np.ndarray, np.ndarray]:
  """The pictures of which the model says anything, the padded batch of them, and its logits.

  The last picture is repeated, so that every batch has one shape and compiles once.
  """
  pixels = np.stack([item.pixels for item in batch])
  logits = np.asarray(logits_once(setup.classifier, _padded(pixels, setup.pictures)))[: len(batch)]
  finite = np.asarray(np.isfinite(logits))
  for item, row in zip(batch, finite, strict=True):
    with progress.guarding(item.file):
      if not row.all():
        raise UserError(
          f'{item.file}: {np.sum(~row)} of {plural(len(row), "logit")} that the model gives for it '
          'are not finite, so there is no decision to explain; its weights may have diverged'
        )
  good = np.asarray(finite.all(axis=1))
  if not good.any():
    return [], pixels, logits
  kept = [item for item, is_good in zip(batch, good, strict=True) if is_good]
  return kept, _padded(pixels[good], setup.pictures), _padded(logits[good], setup.pictures)


def _padded(rows: np.ndarray, count: int) -> np.ndarray:
  return np.concatenate([rows, np.repeat(rows[-1:], count - len(rows), axis=0)])


def _check_maps(result: PictureResult, findings: Sequence[Finding]) -> None:
  bad = dict.fromkeys(f.method for f in findings if not np.isfinite(f.saliency).all())
  if bad:
    raise UserError(
      f'{result.file}: {", ".join(bad)} gave maps with values that are not finite: gradients or '
      'features of the model overflow'
    )


class _Applied(NamedTuple):
  explanation: Any
  curves: Curves | None
  seconds: float


def _apply(method: str, images: np.ndarray, targets: np.ndarray, setup: Setup) -> _Applied:
  """Runs a method on a padded batch, and the curves where they are wanted."""
  command = setup.command
  options = choices.method_options(method, command)
  key = jax.random.key(command.seed)
  began = time.perf_counter()
  explanation = explain.explain(setup.classifier, images, method, targets, key=key, **options)
  explanation = jax.device_get(explanation)
  seconds = (time.perf_counter() - began) / len(images)
  curves = None
  if command.curves or command.animate or len(setup.methods) > 1:
    step = step_at(images.shape[1:3])
    curves = jax.device_get(
      insertion_deletion(setup.classifier, images, explanation.maps, targets, pixels_per_step=step)
    )
  return _Applied(explanation, curves, seconds)


def _finding(method: str, applied: _Applied, row: int) -> Finding:
  explanation, curves = applied.explanation, applied.curves
  return Finding(
    method=method,
    target=int(explanation.targets[row]),
    saliency=np.asarray(explanation.maps[row]),
    constant=bool(explanation.constant[row]),
    seconds=applied.seconds,
    queries=int(explanation.image_queries[row]),
    curves=None if curves is None else jax.tree.map(lambda values: values[row], curves),
  )
