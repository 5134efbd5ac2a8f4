"""What a source of images is: random access to examples, their labels and a digest.

`len(source)` and `source[i] -> {'image': (H, W, 3) uint8 RGB, 'label': int}`; it can be pickled for
a worker process. Sources of image files have a method `open` beside it, which gives the image as an
`EncodedImage`, not decoded yet; `labels` or a method `label` where labels are cheaper than images;
and a `digest`, which changes with what they hold.
"""

from __future__ import annotations

from typing import Any, NoReturn, Protocol

from rest_jax.errors import UserError


class ImageSource(Protocol):
  """Random access to labelled images."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int, /) -> dict: ...


class Missing:
  """A split that is not there: whoever wants to read it is told why."""

  def __init__(self, why: str):
    """Takes the reason, one line."""
    self.why = why

  def __len__(self) -> NoReturn:
    raise UserError(self.why)

  def __getitem__(self, index: int) -> NoReturn:
    raise UserError(self.why)


def open_example(source: ImageSource, index: int) -> dict[str, Any]:
  """Reads an example without decoding it where the source can.

  Args:
    source: the images.
    index: of the example.

  Returns:
    {'image': `EncodedImage` or (H, W, 3) uint8, 'label': int}.

  Raises:
    ImageError: the image cannot be read.
  """
  return getattr(source, 'open', source.__getitem__)(index)


def label_of(source: ImageSource, index: int) -> int:
  """The label of an example, without its image where the source can.

  Args:
    source: the images.
    index: of the example.
  """
  labels = getattr(source, 'labels', None)
  if labels is not None:
    return int(labels[index])
  label = getattr(source, 'label', None)
  return int(label(index) if label is not None else open_example(source, index)['label'])


def digest_of(source: ImageSource) -> str:
  """Says whether a source is still the same one; '' of a source that does not."""
  return getattr(source, 'digest', '')
