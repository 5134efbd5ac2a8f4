"""Pictures with objects: what every reader of detection data gives.

A source gives random access, `len(source)` and `source[i]`, and can be pickled for a worker
process. An example is a dictionary:
  image      (H, W, 3) uint8 RGB
  boxes      (N, 4) float corners in pixels, x2 and y2 exclusive, as the annotator drew them: up to
             a pixel beyond the image
  labels     (N,) int32, 0..K - 1
  ignore     (N,) bool: crowds, difficult or hardly visible objects, which are neither to be learnt
             nor to count as a mistake
  areas      (N,) float64 in square pixels: of the mask where there is one, else of the box
  masks      (N, H, W) bool; absent where the data have boxes only
  image_id   a number or a name
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from rest_jax.errors import UserError
from rest_jax.text import plural

# How far a box may reach over the border before it is an error: annotators' tools round.
SLACK = 1.0
LEAST_SIDE = 1.0  # px; boxes that are no larger are judged, and not learnt
# What an example has one of for each object.
PARTS = ('boxes', 'labels', 'ignore', 'areas', 'masks')


class ObjectSource(Protocol):
  """Random access to pictures with objects."""

  @property
  def class_names(self) -> tuple[str, ...]:
    """The name of each label."""
    ...

  def __len__(self) -> int: ...

  def __getitem__(self, index: int, /) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class ObjectSources:
  """A data set for detection.

  Attributes:
    name: as it was asked for.
    train: pictures to learn from.
    test: pictures to be judged by.
    class_names: the name of each label.
  """

  name: str
  train: ObjectSource
  test: ObjectSource
  class_names: tuple[str, ...]


def check_box(box: Sequence[float], size: tuple[int, int], where: str) -> np.ndarray:
  """A box as it was drawn, looked at.

  Args:
    box: (x1, y1, x2, y2) in pixels.
    size: (H, W) of the image.
    where: which box, for the message.

  Returns:
    (4,) float64.

  Raises:
    UserError: corners that are no numbers, an end before its start, or a box that reaches over the
      border by more than a pixel.
  """
  corners = np.asarray(box, np.float64)
  if corners.shape != (4,) or not np.isfinite(corners).all():
    raise UserError(f'{where}: the box {_words(box)} is not four numbers; mend or remove it')
  if (corners[2:] < corners[:2]).any():
    raise UserError(f'{where}: the box {_words(corners)} has a negative size; mend or remove it')
  limit = np.array([size[1], size[0]] * 2, np.float64)
  if (corners < -SLACK).any() or (corners > limit + SLACK).any():
    raise UserError(
      f'{where}: the box {_words(corners)} lies outside of the image of {size[1]}x{size[0]} px; '
      'mend or remove it'
    )
  return corners


def learnt(boxes: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
  """Which boxes can be learnt from: those with sides of more than a pixel inside of the image.

  Args:
    boxes: (N, 4) corners in pixels.
    size: (H, W) of the image.

  Returns:
    (N,) bool.
  """
  inside = clipped(boxes, size)
  return np.all(inside[:, 2:] - inside[:, :2] > LEAST_SIDE, axis=1)


def to_learn(example: dict[str, Any]) -> dict[str, Any]:
  """What is learnt of an example: boxes cut off at the border, without specks that are judged.

  Args:
    example: as in this module's docstring, or one without boxes, which comes back as it is.
  """
  if 'boxes' not in example:
    return example
  size = example['image'].shape[:2]
  kept = learnt(example['boxes'], size) | example['ignore']
  parts = {name: example[name][kept] for name in PARTS if name in example}
  return example | parts | {'boxes': clipped(parts['boxes'], size)}


def clipped(boxes: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
  """Boxes (..., 4) cut off at the border of an image of (H, W)."""
  return np.clip(boxes, 0, np.array([size[1], size[0]] * 2, boxes.dtype))


def check_names(names: Sequence[str], where: str) -> None:
  """Refuses class names that no table could hold.

  Args:
    names: one a class.
    where: what they come from, for the message.

  Raises:
    UserError: none, one that is not a line of text, or two that are the same.
  """
  if not names:
    raise UserError(f'{where} names no class')
  for name in names:
    if len(name.splitlines()) != 1:
      raise UserError(f'{where}: the class name {name!r} is not one line of text; mend it')
  twice = [name for name in names if names.count(name) > 1]
  if twice:
    raise UserError(f'{where}: two classes are called {twice[0]!r}; rename one')


def specks_note(count: int) -> str:
  """What is said of the boxes that are judged and not learnt; '' where there are none."""
  what = plural(count, 'object')
  return f'{what} of {LEAST_SIDE:g} px or less a side only judged' if count else ''


def absent_note(what: str, names: Sequence[str]) -> str:
  """What is said of classes without a single pixel or object; '' where there are none."""
  more = f' and {plural(len(names) - 3, "more class", "more classes")}' if len(names) > 3 else ''
  return f'no {what} of {", ".join(names[:3])}{more}' if names else ''


def _words(box: Any) -> str:
  """A box as it is written in a message."""
  if not isinstance(box, np.ndarray):
    return str(box)
  return '(' + ', '.join(f'{value:g}' for value in box) + ')'
