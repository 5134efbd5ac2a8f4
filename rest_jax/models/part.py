"""A classifier that decides between some of its classes, in an order of their own."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from rest_jax.errors import UserError
from rest_jax.models.classifier import Classifier


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
