"""The model and the images that a script was asked for by name. For explain.py and defend.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rest_jax.data.sources import DataSources, ImageSource, load
from rest_jax.errors import UserError
from rest_jax.models.classifier import Classifier


def open_classifier(name: str, architecture: str | None = None, ema: bool = False) -> Classifier:
  """Loads the model of `--model`, which has to have classes; see `Classifier.load`.

  Raises:
    UserError: there is none, it is damaged, or it has no classes.
  """
  classifier = Classifier.load(name, architecture, ema=ema)
  if not classifier.num_classes:
    raise UserError(f'the model {name} has no classes, so it decides nothing')
  return classifier


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
  if sources.class_names != classifier.class_names:
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
