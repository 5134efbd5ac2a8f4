"""From pictures to class names: what `Classifier.predict` and `python -m rest_jax predict` do."""

from __future__ import annotations

import csv
import dataclasses
import functools
import glob
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from rest_jax.errors import UserError
from rest_jax.models.model_config import ModelConfig
from rest_jax.ops.logits import probabilities
from rest_jax.ops.platform import jit
from rest_jax.paths import local
from rest_jax.rgb import to_rgb as to_rgb
from rest_jax.rgb import upright
from rest_jax.text import csv_text, legible

BATCH_SIZE = 32
_TOP = 5
_LITTLE = 0.35  # of a picture; the central square of one of 16:9 is 43 %
_FILTERS = {'bicubic': Image.Resampling.BICUBIC, 'bilinear': Image.Resampling.BILINEAR}


@dataclasses.dataclass(frozen=True)
class Prediction:
  """What a classifier says of one picture.

  Attributes:
    file: the picture's path; '' of a picture that was no file.
    class_names: the most probable classes, the first one first.
    probabilities: of these classes, floats in [0, 1]; of a model of one logit its sigmoid.
    classes: their numbers.
    seen: share of the picture that the classifier sees, its central square; in (0, 1].
  """

  file: str
  class_names: tuple[str, ...]
  probabilities: tuple[float, ...]
  classes: tuple[int, ...]
  seen: float = 1.0

  def __str__(self) -> str:
    named = zip(self.class_names, self.probabilities, strict=True)
    listed = ', '.join(f'{name} ({100 * p:.1f} %)' for name, p in named)
    listed += part_seen(self.seen)
    return f'{legible(self.file)}: {listed}' if self.file else listed


def part_seen(share: float) -> str:
  """Words that follow a decision about a picture of which little was seen; '' where enough was."""
  return f', from the central {100 * share:.2g} % of the picture' if share < _LITTLE else ''


def predict(
  classifier: Any, pictures: Any, *, top: int = _TOP, batch_size: int = BATCH_SIZE
) -> list[Prediction]:
  """The most probable classes of pictures.

  Args:
    classifier: a `Classifier`.
    pictures: a file, a folder (its picture files), a glob pattern; a Pillow image, or a uint8 array
      (H, W) or (H, W, 1|3|4); or a list of these. Each is read as a person sees it, resized and
      cropped as the classifier was evaluated.
    top: classes a picture, from 1; all where there are fewer.
    batch_size: pictures that are computed together, from 1.

  Returns:
    One a picture, in order.

  Raises:
    UserError: no picture, one that cannot be read, no classes, or numbers below 1.
  """
  found = list(iterate(classifier, expand(pictures), top=top, batch_size=batch_size))
  for _, error in found:
    if error is not None:
      raise error
  return [prediction for prediction, _ in found if prediction is not None]


def iterate(
  classifier: Any, pictures: Sequence[Any], *, top: int = _TOP, batch_size: int = BATCH_SIZE
) -> Iterator[tuple[Prediction | None, UserError | None]]:
  """Predictions one after another; a picture that cannot be read gives its error instead.

  Args and errors as `predict`, `pictures` being what `expand` gives.
  """
  check(classifier, top, batch_size)
  size = min(batch_size, len(pictures))
  for start in range(0, len(pictures), batch_size):
    batch = [_read(classifier, picture) for picture in pictures[start : start + batch_size]]
    pixels = [seen.pixels for seen, _ in batch if seen is not None]
    rows = _top_classes(classifier, pixels, top, size) if pixels else iter(())
    for picture, (seen, error) in zip(pictures[start : start + batch_size], batch, strict=True):
      if seen is None:
        yield None, error
        continue
      classes, values = next(rows)
      yield _prediction(classifier, picture, seen.share, classes, values), None


def check(classifier: Any, top: int, batch_size: int) -> None:
  """Refuses what `predict` cannot work with.

  Raises:
    UserError: a classifier without classes, or numbers below 1.
  """
  for name, value in (('top', top), ('batch_size', batch_size)):
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
      raise UserError(f'{name} is a whole number from 1, not {value!r}')
  if not classifier.num_classes:
    raise UserError('the model has no classes, so there is nothing to predict')


def expand(pictures: Any) -> list[Any]:
  """The single pictures of what `predict` takes: paths as `Path`, images and arrays as they are.

  Raises:
    UserError: nothing, or what is no picture.
  """
  if isinstance(pictures, str | os.PathLike):
    return list(_files(pictures))
  if isinstance(pictures, Image.Image):
    return [pictures]
  if hasattr(pictures, '__array__'):  # of NumPy, JAX or PyTorch
    array = np.asarray(pictures)
    if array.ndim != 4 and array.dtype.kind not in 'OSU':
      return [array]
    pictures = list(array)  # names, or a stack; a single one has (H, W) or (H, W, C)
  if isinstance(pictures, Iterable) and not isinstance(pictures, Mapping):
    found = [one for picture in pictures for one in expand(picture)]
    if found:
      return found
    raise UserError('no pictures: the list is empty')
  raise UserError(
    'a picture is a file, a Pillow image or a uint8 array (H, W, 3), or a list of these, not '
    f'{type(pictures).__name__}'
  )


def _files(place: str | os.PathLike[str]) -> list[Path]:
  """The picture files that a word stands for."""
  # What the scripts take, too.
  from rest_jax.data.picture_files import find_pictures

  path = local(place, 'a picture')
  word = str(place) if glob.has_magic(str(place)) and not path.exists() else str(path)
  return find_pictures([word])


class _Glance(NamedTuple):
  """(H, W, 3) as a classifier takes it, and the share of the picture that it is."""

  pixels: np.ndarray
  share: float


def _read(classifier: Any, picture: Any) -> tuple[_Glance | None, UserError | None]:
  """What a classifier sees of a picture, which is not kept, or the error."""
  try:
    seen = View(classifier, picture).look()
  except UserError as error:
    return None, error
  return _Glance(seen.pixels, seen.share), None


class Placement(NamedTuple):
  """The rectangle of a picture that a model saw, in pixels, edges not centres; may be fractional.

  A picture of W x H pixels spans (0, 0, W, H).
  """

  left: float
  top: float
  right: float
  bottom: float


class Seen(NamedTuple):
  """A picture and what a classifier sees of it.

  Attributes:
    picture: all of it, upright, mode RGB.
    place: the rectangle of it that is seen.
    pixels: float32 (H, W, 3) in [0, 1], what the classifier takes.
  """

  picture: Image.Image
  place: Placement
  pixels: np.ndarray

  @property
  def share(self) -> float:
    """Of the picture that is seen, in (0, 1]."""
    left, top, right, bottom = self.place
    return (right - left) * (bottom - top) / (self.picture.width * self.picture.height)


@dataclasses.dataclass(frozen=True, eq=False)
class View:
  """A picture in front of a classifier: where it is, and not yet its pixels.

  Attributes:
    classifier: says how the picture is resized and cropped.
    source: its file, a Pillow image or an array.
  """

  classifier: Any
  source: Any

  @property
  def file(self) -> str:
    """The picture's path; '' of one that was no file."""
    return str(self.source) if isinstance(self.source, Path) else ''

  def look(self) -> Seen:
    """Reads the picture.

    Raises:
      UserError: it cannot be read, or is too elongated; with the name of its file.
    """
    try:
      picture = read(self.source)
      pixels = self.classifier.preprocess(picture)[0]
    except UserError as error:
      named = self.file and self.file not in str(error)
      raise UserError(f'{self.file}: {error}') if named else error from error
    return Seen(picture, placement_by(self.classifier.config, picture.size), pixels)


def read(picture: Any) -> Image.Image:
  """A file, a Pillow image or a uint8 array as RGB, upright as a person sees it.

  Raises:
    UserError: it cannot be read.
  """
  from rest_jax.data.picture_files import read_picture

  if isinstance(picture, Path):
    return read_picture(picture)
  if not isinstance(picture, Image.Image):
    return to_rgb(picture)
  if not picture.width or not picture.height:
    raise UserError('the image has no pixels')
  try:
    return upright(picture)
  except (OSError, SyntaxError) as error:
    raise UserError(f'the picture cannot be read: {error}') from error


def _top_classes(
  classifier: Any, pixels: list[np.ndarray], top: int, size: int
) -> Iterator[tuple[Any, Any]]:
  """(classes, probabilities) of each picture; a batch has `size` rows, so that it compiles once."""
  rows = np.stack(pixels + pixels[-1:] * (size - len(pixels)))
  values, classes = _best(classifier, rows, min(top, classifier.num_classes))
  values, classes = np.asarray(values), np.asarray(classes)
  if not np.isfinite(values[: len(pixels)]).all():
    raise UserError('the model gives no finite probabilities: its weights are damaged')
  return zip(classes[: len(pixels)], values, strict=False)


@functools.partial(jit, static_argnums=2)
def _best(classifier: Any, images: jax.Array, top: int) -> tuple[jax.Array, jax.Array]:
  """The largest probabilities (B, top) and their classes.

  By their logits: beside a sure class many others have the same probability, 0.
  """
  logits = jnp.asarray(classifier(images))
  _, classes = jax.lax.top_k(logits, top)
  return jnp.take_along_axis(probabilities(logits), classes, axis=-1), classes


def _prediction(
  classifier: Any, picture: Any, share: float, classes: Any, values: Any
) -> Prediction:
  file = str(picture) if isinstance(picture, Path) else ''
  names = tuple(classifier.class_names[index] for index in classes)
  return Prediction(file, names, tuple(map(float, values)), tuple(map(int, classes)), share)


def to_csv(predictions: Iterable[Prediction]) -> str:
  """A table with a row a picture: file, then name, number and probability of every class.

  Args:
    predictions: of one call, so that all have as many classes.

  Returns:
    The text of a CSV file, with a header.
  """
  predictions, out = list(predictions), io.StringIO()
  count = max((len(p.classes) for p in predictions), default=0)
  table = csv.writer(out, lineterminator='\n')
  columns = (
    f'{kind}{i}' for i in range(1, count + 1) for kind in ('class', 'number', 'probability')
  )
  table.writerow(['file', *columns])
  for p in predictions:
    names = map(csv_text, p.class_names)
    cells = zip(names, p.classes, (f'{v:.6g}' for v in p.probabilities), strict=True)
    table.writerow([csv_text(p.file), *(cell for group in cells for cell in group)])
  return out.getvalue()


def preprocess(
  image: Image.Image | np.ndarray,
  *,
  size: int,
  resize: str = 'resize_crop',
  crop_pct: float = 0.875,
  interpolation: str = 'bicubic',
) -> np.ndarray:
  """Resizes a picture as a model was evaluated.

  Args:
    image: as in `read`, but for files.
    size: pixels a side of the result.
    resize: 'squash': both sides to `size`; 'resize_crop': the shorter side to size / crop_pct,
      rounded down, then the central square (torchvision's Resize and CenterCrop).
    crop_pct: in (0, 1].
    interpolation: 'bicubic' or 'bilinear', with Pillow's antialiasing.

  Returns:
    float32 (1, size, size, 3) in [0, 1].

  Raises:
    UserError: as `read`, or a picture too elongated to be resized by its shorter side.
  """
  picture, kernel = read(image), _FILTERS[interpolation]
  if resize == 'squash':
    picture = picture.resize((size, size), kernel)
  else:
    picture = _resize_crop(picture, size, int(size / crop_pct), kernel)
  return np.asarray(picture, np.float32)[None] / np.float32(255)


def placement(
  size: tuple[int, int], *, input_size: int, resize: str, crop_pct: float = 0.875
) -> Placement:
  """Where in a picture the model's input lies: the inverse of `preprocess`.

  Args:
    size: (width, height) of the picture.
    input_size: pixels a side of the model's input.
    resize: 'squash' or 'resize_crop'.
    crop_pct: as the classifier's.

  Returns:
    The rectangle; the whole picture for 'squash'.
  """
  width, height = size
  if resize == 'squash':
    return Placement(0.0, 0.0, float(width), float(height))
  shorter, least = int(input_size / crop_pct), min(width, height)
  scaled = int(shorter * width / least), int(shorter * height / least)
  left, top = (round((side - input_size) / 2) for side in scaled)
  across, down = width / scaled[0], height / scaled[1]
  return Placement(
    left * across, top * down, (left + input_size) * across, (top + input_size) * down
  )


def placement_by(config: ModelConfig, size: tuple[int, int]) -> Placement:
  """`placement` in a picture of (width, height) as a classifier's config prepares it."""
  shown = {'input_size': config.input_size, 'resize': config.resize, 'crop_pct': config.crop_pct}
  return placement(size, **shown)


def _resize_crop(picture: Image.Image, size: int, shorter: int, kernel) -> Image.Image:
  width, height = picture.size
  least = min(width, height)
  width, height = int(shorter * width / least), int(shorter * height / least)
  limit = Image.MAX_IMAGE_PIXELS or 2**27
  if width * height > limit:
    raise UserError(
      f'a picture of {picture.width}x{picture.height} px is too elongated to be resized to '
      f'{shorter} px on its shorter side: crop it first'
    )
  left, top = round((width - size) / 2), round((height - size) / 2)
  return picture.resize((width, height), kernel).crop((left, top, left + size, top + size))
