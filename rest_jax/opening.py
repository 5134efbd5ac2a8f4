"""The model and the images that a script was asked for by name. For explain.py and defend.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rest_jax.data.sources import DataSources, ImageSource, load
from rest_jax.errors import UserError
from rest_jax.models import imagenet
from rest_jax.models.classifier import Classifier

_CHECKPOINTS = ('.pth', '.pt', '.bin', '.safetensors')


def open_classifier(name: str, architecture: str | None = None) -> Classifier:
  """Loads the model of `--model`.

  Args:
    name: model directory, zoo name, or a PyTorch checkpoint.
    architecture: model name of a checkpoint; by default what its file is called.

  Returns:
    The classifier.

  Raises:
    UserError: there is none, it is damaged, or it has no classes.
  """
  if Path(name).suffix in _CHECKPOINTS and not Path(name).is_dir():
    classifier = _from_checkpoint(Path(name), architecture)
  else:
    classifier = Classifier.load(name)
  if not classifier.num_classes:
    raise UserError(f'the model {name} has no classes, so it decides nothing')
  return classifier


def _from_checkpoint(path: Path, architecture: str | None) -> Classifier:
  if not path.is_file():
    raise UserError(f'no checkpoint {path}: check --model')
  try:
    return Classifier.from_pytorch(path, model=architecture)
  except UserError as error:
    if architecture is None and 'Say model' in str(error):
      text = str(error).replace('Say model (--model)', 'Say --architecture')
      raise UserError(text) from error
    raise


def open_sources(
  data: str, data_dir: str | None, classifier: Classifier, model: str, extras: Sequence[str] = ()
) -> DataSources:
  """Opens the data set of `--data`, whose classes must be the model's.

  Args:
    data: TFDS name or folder.
    data_dir: where TFDS data sets are; None for the usual place.
    classifier: the model.
    model: what the user called it.
    extras: further features of an example, such as 'mask'.

  Returns:
    Its splits.

  Raises:
    UserError: there is no such data set, or it has other classes.
  """
  sources = load(data, data_dir, extras=tuple(extras))
  if imagenet.in_words(sources.class_names) != imagenet.in_words(classifier.class_names):
    raise UserError(
      f'{data} has classes {_some(sources.class_names)}, the model {model} '
      f'{_some(classifier.class_names)}: choose a model of this data set'
    )
  return sources


def _some(names: tuple[str, ...]) -> str:
  shown = ', '.join(names[:3])
  return f'{shown} and {len(names) - 3} more' if len(names) > 3 else shown


def read_examples(
  source: ImageSource, classifier: Classifier, first: int, count: int
) -> tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]:
  """Reads examples of a split as the classifier sees them.

  Args:
    source: the split.
    classifier: says how pictures are resized and cropped.
    first: index of the first one.
    count: how many, from 1.

  Returns:
    Images float32 (count, H, W, 3) in [0, 1], labels int64 (count,), and the examples.
  """
  examples = [source[first + row] for row in range(count)]
  images = np.concatenate([classifier.preprocess(example['image']) for example in examples])
  return images, np.array([example['label'] for example in examples], np.int64), examples
