"""A seeded, class-balanced sample of a source, that grows without changing what it had.

The images are taken in rounds: first the first image of each class, then the second of each, and so
on. What is first is decided by one seeded order of the whole source, so a sample of N images is the
beginning of every larger one, and its classes differ by one image at most where they have enough.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from rest_jax.data.source import ImageSource, label_of


def sample_order(source: ImageSource, num_classes: int, count: int, seed: int = 0) -> list[int]:
  """Which images are taken, in the order in which a sample grows.

  Reads labels only, and of a source that has to read records for them as few as it can.

  Args:
    source: the images.
    num_classes: K; labels are below it.
    count: how many are wanted, at most all.
    seed: of the order.

  Returns:
    Indices into the source: the first `count` of the one order of all.
  """
  rounds: list[list[int]] = []  # indices of the images that are their class's first, second, ...
  seen: collections.Counter[int] = collections.Counter()
  full = 0  # rounds that no later image can belong to
  for index in np.random.default_rng(seed).permutation(len(source)).tolist():
    label = label_of(source, index)
    if seen[label] == len(rounds):
      rounds.append([])
    rounds[seen[label]].append(index)
    seen[label] += 1
    while full < len(rounds) and len(rounds[full]) == num_classes:
      full += 1
    # Whatever comes later goes behind the images of the full rounds and of the one after them.
    if full * num_classes + (len(rounds[full]) if full < len(rounds) else 0) >= count:
      break
  return [index for some in rounds for index in some][:count]


@dataclasses.dataclass(frozen=True)
class Sample:
  """Some images of a source, as a source.

  Attributes:
    source: all of them.
    indices: those that are taken, in the order of the sample.
    detail: such as '10 of each class, seed 0'; '' where all are taken.
  """

  source: ImageSource
  indices: Sequence[int]
  detail: str = ''

  def __len__(self) -> int:
    return len(self.indices)

  @property
  def amount(self) -> str:
    """Such as '100 of 2000 images'."""
    of = f'{len(self)} of ' if self.detail else ''
    return of + images(len(self.source))

  def __str__(self) -> str:
    """Such as '100 of 2000 images, 10 of each class, seed 0'."""
    return ', '.join(filter(None, (self.amount, self.detail)))

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self.source[self.indices[index]]

  def open(self, index: int) -> dict[str, Any]:
    """As the source's, where it has one."""
    return getattr(self.source, 'open', self.source.__getitem__)(self.indices[index])

  def label(self, index: int) -> int:
    """The label alone."""
    return label_of(self.source, self.indices[index])


def take_sample(
  source: ImageSource, num_classes: int, limit: int | None = None, seed: int = 0
) -> Sample:
  """A balanced sample, or all images where there are no more than that.

  Args:
    source: the images.
    num_classes: K.
    limit: how many; None for all, as the source has them.
    seed: of the sample.

  Returns:
    The sample; where a limit takes everything it has the order of a sample too, so that a larger
    limit goes on where a smaller one ended.
  """
  if limit is None:
    return Sample(source, range(len(source)))
  count = min(limit, len(source))
  indices = sample_order(source, num_classes, count, seed)
  if count == len(source):
    return Sample(source, indices)
  counts = collections.Counter(label_of(source, index) for index in indices)
  low, high = min(counts.values()), max(counts.values())
  each = f'{low}' if low == high else f'{low} to {high}'
  each = each if len(counts) == num_classes else f'at most {high}'
  return Sample(source, indices, f'{each} of each class, seed {seed}')


def images(count: int) -> str:
  """Such as '1 image' or '20 images'."""
  return f'{count} image' + ('' if count == 1 else 's')
