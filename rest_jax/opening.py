"""The model and the images that a script was asked for by name: what judges a model begins here."""

from __future__ import annotations

import array
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rest_jax.data.class_match import by_names, match_classes
from rest_jax.data.folder import FolderSource
from rest_jax.data.sample import Sample, take_sample
from rest_jax.data.source import ImageSource
from rest_jax.data.sources import EMBEDDED, EMBEDDED_CLASSES, JudgedData, load, load_judged
from rest_jax.errors import UserError
from rest_jax.files import make_folder
from rest_jax.models import imagenet
from rest_jax.models.classifier import Classifier
from rest_jax.models.pytorch import JUDGING_ADVICE


def open_classifier(name: str, architecture: str | None = None, ema: bool = False) -> Classifier:
  """Loads the model of `--model`, which has to have classes; see `Classifier.load`.

  Raises:
    UserError: there is none, it is damaged, or it has no classes.
  """
  classifier = Classifier.load(name, architecture, ema=ema, head_advice=JUDGING_ADVICE)
  if not classifier.num_classes:
    raise UserError(f'the model {name} has no classes, so it decides nothing')
  return classifier


class Judged(NamedTuple):
  """A model, and the images that it is judged on.

  Attributes:
    classifier: its classes are those of the data, in their order.
    data: the split.
    sample: the images that are taken.
    line: what is judged, for the terminal and the report.
    where: the same in short, to follow 'N images of'.
  """

  classifier: Classifier
  data: JudgedData
  sample: Sample
  line: str
  where: str


def open_judged(
  data: str,
  data_dir: str | None,
  classifier: Classifier,
  model: str,
  *,
  split: str | None = None,
  extras: Sequence[str] = (),
  limit: int | None = None,
  seed: int = 0,
) -> Judged:
  """Opens the split of `--data` that a model is judged on, and matches their classes.

  Args:
    data: TFDS name, folder or list of labels.
    data_dir: where TFDS data sets are; None for the usual place.
    classifier: the model.
    model: what the user called it.
    split: as in `data.load_judged`.
    extras: further features of an example, such as 'mask'.
    limit: size of the balanced sample; None for all.
    seed: of the sample.

  Returns:
    What is judged; a model that knows more classes than the data decides between those of the data.

  Raises:
    UserError: there is no such data set or split, or its classes are not the model's.
  """
  check_data(data, classifier, model)
  judged = load_judged(data, data_dir, split, tuple(extras))
  if judged.numbered and (own := _by_names(judged.images, classifier, data, model)):
    names = classifier.class_names
    judged = dataclasses.replace(judged, images=own, class_names=names, numbered=False)
  classifier, note = matched(classifier, judged.class_names, data, model, judged.numbered)
  sample = take_sample(judged.images, len(judged.class_names), limit, seed)
  line = '; '.join(filter(None, (judged.line(sample, classifier.class_names), note)))
  where = ', '.join(filter(None, (f'{judged.name} ({judged.split})', sample.detail, note)))
  return Judged(classifier, judged, sample, line, where)


def check_data(data: str, classifier: Classifier, model: str, output: Path | None = None) -> None:
  """What can be wrong beside the data set that is prepared when it is opened, before that is done.

  Args:
    data: what `--data` says; nothing is known yet of another one than digit_scenes.
    classifier: the model.
    model: what the user called it.
    output: where results go; it is made, as what was prepared for nothing costs a minute.

  Raises:
    UserError: its classes are not the model's, or the place cannot be written.
  """
  if data == EMBEDDED:
    matched(classifier, EMBEDDED_CLASSES, data, model)
    if output is not None:
      make_folder(output)


def open_training(
  data: str, data_dir: str | None, classifier: Classifier, model: str
) -> tuple[Classifier, ImageSource]:
  """Opens the training split of `--data`; arguments and errors as `open_judged`.

  Returns:
    The classifier as in `Judged`, and the images.
  """
  check_data(data, classifier, model)
  sources = load(data, data_dir)
  if sources.numbered and (own := _by_names(sources.train, classifier, data, model)):
    return classifier, own
  part, _ = matched(classifier, sources.class_names, data, model, sources.numbered)
  return part, sources.train


def _by_names(
  source: ImageSource, classifier: Classifier, data: str, model: str
) -> FolderSource | None:
  """A list of numbers with the model's classes for labels; None as `class_match.by_names`."""
  if not isinstance(source, FolderSource):
    return None
  labels = by_names(source.labels, classifier.class_names, data=data, model=model)
  return None if labels is None else dataclasses.replace(source, labels=array.array('i', labels))


def matched(
  classifier: Classifier,
  class_names: tuple[str, ...],
  data: str,
  model: str,
  numbered: bool = False,
) -> tuple[Classifier, str]:
  """The classifier with the classes of a data set, by the rule of `data.class_match`.

  Args:
    classifier: the model.
    class_names: of the data set.
    data: what the user called it.
    model: what the user called the model.
    numbered: as in `match_classes`.

  Returns:
    The classifier, whose logits have the numbers of the data set's labels, and what to say of it.

  Raises:
    UserError: the classes do not belong together.
  """
  if not classifier.num_classes:
    raise UserError(f'the model {model} has no classes, so it decides nothing')
  found = match_classes(
    imagenet.in_words(class_names),
    imagenet.in_words(classifier.class_names),
    data=data,
    model=model,
    numbered=numbered,
  )
  if found.classes is None:
    return dataclasses.replace(classifier, class_names=found.class_names), ''
  note = f'judged on these of the {classifier.num_classes} classes that {model} knows'
  part = take_part(classifier, found.classes, found.class_names)
  return part, note if found.part else ''


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


@dataclasses.dataclass(frozen=True)
class PartClassifier(Classifier):
  """The logits of some classes of a classifier; all else is the classifier's.

  Attributes:
    classes: numbers of the classes in the whole classifier; `class_names` are theirs.
  """

  classes: tuple[int, ...] = ()

  def __call__(self, images: jax.Array | np.ndarray) -> jax.Array:
    """Logits float32 (B, len(classes)); arguments and errors as `Classifier.__call__`."""
    return super().__call__(images)[:, jnp.asarray(self.classes)]

  @property
  def num_classes(self) -> int:
    """How many classes it decides between."""
    return len(self.classes)

  def save(self, *args, **kwargs) -> None:
    """Raises `UserError`: it is for judging, and a model directory holds a whole classifier."""
    raise UserError('a part of a classifier is not saved: save the whole one')


def take_part(
  classifier: Classifier, classes: tuple[int, ...], class_names: tuple[str, ...]
) -> PartClassifier:
  """A classifier that decides between some classes only.

  Args:
    classifier: the whole one.
    classes: numbers of its classes, in the order of the new logits.
    class_names: one each.

  Returns:
    The part; its leaves are the classifier's weights.
  """
  fields = {field.name: getattr(classifier, field.name) for field in dataclasses.fields(Classifier)}
  return PartClassifier(**{**fields, 'class_names': class_names, 'classes': classes})


jax.tree_util.register_dataclass(
  PartClassifier,
  data_fields=['variables'],
  meta_fields=['module', 'config', 'class_names', 'classes'],
)
