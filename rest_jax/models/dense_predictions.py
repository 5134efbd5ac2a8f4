"""What detectors and segmenters say of pictures: lines, tables, pictures with what was found."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rest_jax.data.picture_files import identity, read_picture
from rest_jax.errors import UserError
from rest_jax.files import replacing
from rest_jax.models.dense_drawing import draw_objects, draw_segmentation
from rest_jax.models.dense_model import Detector, Objects
from rest_jax.paths import output_names
from rest_jax.text import csv_text, legible, plural

LEAST_SCORE = 0.3
_NAMED = 5  # objects or classes of a line
_BOXES = ('file', 'class', 'score', 'x1', 'y1', 'x2', 'y2')
_PIXELS = ('file', 'class', 'share')


@dataclasses.dataclass(frozen=True)
class Found:
  """What a detector or a segmenter says of one picture file.

  Attributes:
    file: the picture's path.
    names: of each object by falling score, or of the classes that occur by falling share.
    values: of each name the score, or the share of the picture's pixels, in [0, 1].
    boxes: (D, 4) corners in pixels of the picture; None of a segmenter.
  """

  file: str
  names: tuple[str, ...]
  values: tuple[float, ...]
  boxes: np.ndarray | None = None

  def __str__(self) -> str:
    form = '{} ({:.1f} %)'
    shown = [form.format(n, 100 * v) for n, v in zip(self.names, self.values, strict=True)]
    listed = ', '.join(shown[:_NAMED] + (['...'] if len(shown) > _NAMED else []))
    head = legible(self.file)
    if self.boxes is None:
      return f'{head}: {listed}'
    count = plural(len(shown), 'object')
    return f'{head}: {count}: {listed}' if shown else f'{head}: {count}'


def iterate(
  model: Any, files: Sequence[Path], *, output: Path | None = None, least_score: float = LEAST_SCORE
) -> Iterator[tuple[Found | None, UserError | None]]:
  """What a model says of picture files, one after another; a bad one gives its error instead.

  Args:
    model: a `Detector` or `Segmenter`.
    files: picture files.
    output: folder that a PNG a picture is written to, named after it; None draws nothing.
    least_score: of a detector: results under it are left out.

  Raises:
    WriteError: a picture cannot be written.
    UserError: a drawn picture would take the place of one that is read.
  """
  places = drawn_files(files, output)
  for file, place in zip(files, places, strict=True):
    try:
      picture = read_picture(file)
      found, drawn = _look(model, file, picture, least_score, place is not None)
    except UserError as error:
      named = str(file) in str(error)
      yield None, error if named else UserError(f'{file}: {error}')
      continue
    if place is not None and drawn is not None:
      with replacing(place) as temporary:
        drawn.save(temporary)
    yield found, None


def drawn_files(files: Sequence[Path], output: Path | None) -> Sequence[Path | None]:
  """Where each picture is drawn to, no two of them at one place.

  Raises:
    UserError: that is where a picture lies that is read.
  """
  if output is None:
    return [None] * len(files)
  places = [output / f'{name}.png' for name in output_names(files)]
  read = {identity(file) for file in files}
  for place in places:
    if place.exists() and identity(place) in read:
      raise UserError(f'--output {output} would write over the picture {place}: give another one')
  return places


def _look(
  model: Any, file: Path, picture: Image.Image, least_score: float, draw: bool
) -> tuple[Found, Image.Image | None]:
  """What is found on a picture, and the picture with it."""
  pixels = np.asarray(picture)
  if isinstance(model, Detector):
    objects = model.predict(pixels, least_score=least_score)
    drawn = draw_objects(pixels, objects, model.class_names, least_score=0.0) if draw else None
    return _objects(str(file), objects, model.class_names), drawn
  classes = model.predict(pixels)
  drawn = draw_segmentation(pixels, classes, model.class_names) if draw else None
  return _shares(str(file), classes, model.class_names), drawn


def _objects(file: str, found: Objects, class_names: Sequence[str]) -> Found:
  names = tuple(class_names[int(label)] for label in found.labels)
  return Found(file, names, tuple(map(float, found.scores)), found.boxes)


def _shares(file: str, classes: np.ndarray, class_names: Sequence[str]) -> Found:
  counts = np.bincount(classes.ravel(), minlength=len(class_names))
  present = [int(label) for label in np.argsort(-counts, kind='stable') if counts[label]]
  names = tuple(class_names[label] for label in present)
  return Found(file, names, tuple(float(counts[n] / classes.size) for n in present))


def to_csv(found: Iterable[Found], boxes: bool) -> str:
  """A table with a row an object, or a row a class of pixels that occurs.

  Args:
    found: of one model.
    boxes: whether it is a detector.

  Returns:
    The text of a CSV file: file, class, score, x1, y1, x2, y2 (corners in pixels of the picture),
    or file, class, share.
  """
  out = io.StringIO()
  table = csv.writer(out, lineterminator='\n')
  table.writerow(_BOXES if boxes else _PIXELS)
  for one in found:
    corners = one.boxes if one.boxes is not None else np.zeros((len(one.names), 0))
    for name, value, corner in zip(one.names, one.values, corners, strict=True):
      edges = (f'{edge:.2f}' for edge in corner)
      table.writerow([csv_text(one.file), csv_text(name), f'{value:.6g}', *edges])
  return out.getvalue()
