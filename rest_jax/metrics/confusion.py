"""Segmentation's figures from one table: how often each class was taken for each."""

from __future__ import annotations

import dataclasses

import numpy as np

from rest_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class SegmentationFigures:
  """Shares in [0, 1]; NaN where nothing is to be judged.

  Attributes:
    miou: mean of the classes' IoU, of those that occur in labels or predictions.
    accuracy: share of the pixels that are right.
    mean_accuracy: mean over the classes that occur in labels of the share of theirs that is right.
    iou: (K,), of each class; NaN for one that occurs nowhere.
    judged: of how many classes `miou` is the mean.
  """

  miou: float
  accuracy: float
  mean_accuracy: float
  iou: np.ndarray
  judged: int = 0


class Confusion:
  """Counts pixels of a whole data set."""

  def __init__(self, num_classes: int, ignore: int = 255):
    """Starts at nothing.

    Args:
      num_classes: K.
      ignore: label of pixels that nobody judges.

    Raises:
      UserError: `ignore` is one of the classes.
    """
    if 0 <= ignore < num_classes:
      raise UserError(
        f'ignore {ignore} is one of the {num_classes} classes, none of whose pixels would be judged'
      )
    self.ignore = ignore
    self.counts = np.zeros((num_classes, num_classes), np.int64)  # rows are the labels

  def add(self, labels: np.ndarray, predictions: np.ndarray) -> None:
    """Counts the pixels of some pictures.

    Args:
      labels: whole numbers of any shape: 0..K - 1, or `ignore`.
      predictions: of the same shape, 0..K - 1.

    Raises:
      UserError: other shapes or values.
    """
    if np.ma.isMaskedArray(labels) or np.ma.isMaskedArray(predictions):
      raise UserError(f'arrays are masked; where nobody judges labels are {self.ignore}')
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.shape != predictions.shape:
      raise UserError(f'labels are {labels.shape}, predictions {predictions.shape}; give one size')
    for name, values in (('labels', labels), ('predictions', predictions)):
      if not np.issubdtype(values.dtype, np.integer):
        raise UserError(f'{name} are numbers of classes, not {values.dtype}; take the argmax')
    judged = labels != self.ignore
    own, found = labels[judged].astype(np.int64), predictions[judged].astype(np.int64)
    size = len(self.counts)
    for name, values in (('labels', own), ('predictions', found)):
      if values.size and not 0 <= values.min() <= values.max() < size:
        raise UserError(
          f'{name} reach from {values.min()} to {values.max()}, classes from 0 to {size - 1}'
        )
    self.counts += np.bincount(own * size + found, minlength=size * size).reshape(size, size)

  def merge(self, counts: np.ndarray) -> None:
    """Adds the table of another process; `UserError` for one of another size."""
    if np.shape(counts) != self.counts.shape:
      raise UserError(f'tables are {self.counts.shape}, got {np.shape(counts)}')
    self.counts += np.asarray(counts, np.int64)

  def figures(self) -> SegmentationFigures:
    """The figures of all that was counted."""
    right = np.diag(self.counts).astype(np.float64)
    labels, found = (self.counts.sum(axis).astype(np.float64) for axis in (1, 0))
    with np.errstate(invalid='ignore', divide='ignore'):
      iou, recall = right / (labels + found - right), right / labels
      accuracy = float(right.sum() / labels.sum())
    means = [
      float(np.mean(v[~np.isnan(v)])) if (~np.isnan(v)).any() else np.nan for v in (iou, recall)
    ]
    judged = int(np.count_nonzero(~np.isnan(iou)))
    return SegmentationFigures(means[0], accuracy, means[1], iou, judged)
