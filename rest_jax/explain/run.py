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
from tqdm import tqdm

from rest_jax import explain
from rest_jax.errors import UserError
from rest_jax.explain import choices
from rest_jax.explain.command import Command
from rest_jax.explain.findings import Finding, PictureResult, paper_step, write_result
from rest_jax.explain.metrics import Curves, insertion_deletion
from rest_jax.explain.pictures import (
  Placement,
  find_pictures,
  output_names,
  placement,
  read_picture,
)
from rest_jax.explain.strip import draw_strip
from rest_jax.models.classifier import Classifier

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
  classifier = choices.open_classifier(command.model, command.architecture)
  methods, left_out = choices.usable_methods(command.method, classifier)
  if left_out:
    print(left_out, file=sys.stderr)
  nothing = np.zeros((1, len(classifier.class_names)), np.float32)
  targets = choices.choose_targets(command.target, classifier.class_names, nothing).shape[1]
  check_layer(classifier, methods, command.layer)
  files = find_pictures(command.image)
  pictures = min(command.batch_size, len(files))
  setup = Setup(command, classifier, methods, pictures, targets)
  failed: list[str] = []
  with tqdm(total=len(files), unit='picture', disable=len(files) < 2 or not _terminal()) as bar:
    for batch in _batches(files, setup, failed, bar):
      _explain_batch(batch, setup)
      bar.update(len(batch))
  if failed and len(files) > 1:
    print(f'{len(failed)} of {len(files)} pictures failed', file=sys.stderr)
  return 2 if failed else 0


def check_layer(classifier: Classifier, methods: Sequence[str], layer: str | None) -> None:
  """Looks for the layer before any work is done.

  Raises:
    UserError: no such layer (the near ones are given), or no method that looks at one.
  """
  if any(explain.METHODS[method].needs_layer for method in methods):
    size = classifier.input_size
    explain.tap(classifier, layer).feature_shape(np.zeros((1, size, size, 3), np.float32))
  elif layer is not None:
    raise UserError(f'--layer {layer}: {", ".join(methods)} looks at no layer; leave it out')


def _terminal() -> bool:
  return sys.stderr.isatty()


def _batches(
  files: Sequence[Path], setup: Setup, failed: list[str], bar: tqdm
) -> Iterator[list[Item]]:
  """Reads pictures until there are enough for a batch, or enough pixels."""
  batch: list[Item] = []
  for file, name in zip(files, output_names(files), strict=True):
    try:
      batch.append(_read(file, setup.command.output / name, setup.classifier))
    except UserError as error:
      failed.append(str(error))
      bar.write(f'error: {" ".join(str(error).split())}', file=sys.stderr)
      bar.update(1)
    held = sum(item.picture.width * item.picture.height for item in batch)
    if len(batch) >= setup.command.batch_size or held > _HELD_PIXELS:
      yield batch
      batch = []
  if batch:
    yield batch


def _read(file: Path, folder: Path, classifier: Classifier) -> Item:
  picture, config = read_picture(file), classifier.config
  try:
    pixels = classifier.preprocess(picture)[0]
  except UserError as error:
    raise UserError(f'{file}: {error}') from error
  place = placement(
    picture.size,
    input_size=config.input_size,
    resize=config.resize,
    crop_pct=config.crop_pct,
  )
  return Item(file, folder, picture, place, pixels)


def _explain_batch(batch: list[Item], setup: Setup) -> None:
  command, classifier = setup.command, setup.classifier
  # The last picture is repeated, so that every batch has one shape and compiles once.
  pixels = np.stack([item.pixels for item in batch])
  pixels = np.concatenate([pixels, np.repeat(pixels[-1:], setup.pictures - len(batch), axis=0)])
  logits = np.asarray(_logits(classifier, pixels))
  targets = choices.choose_targets(command.target, classifier.class_names, logits)
  of_row = np.repeat(np.arange(setup.pictures), setup.targets)
  found = {m: _apply(m, pixels[of_row], targets.reshape(-1), setup) for m in setup.methods}
  for number, item in enumerate(batch):
    result = PictureResult(
      item.file, item.folder, item.picture, item.place, item.pixels, logits[number]
    )
    rows = np.flatnonzero(of_row == number)
    findings = [_finding(method, found[method], int(r)) for r in rows for method in setup.methods]
    if command.sanity:
      options = {method: choices.method_options(method, command) for method in setup.methods}
      draw_strip(result, findings[0].target, options, classifier, command.seed)
    print(write_result(result, findings, command, classifier))


_logits = jax.jit(lambda classifier, images: classifier(images))


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
    step = paper_step(images.shape[1:3])
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
    queries=int(explanation.queries),
    curves=None if curves is None else jax.tree.map(lambda values: values[row], curves),
  )
