"""Batches for detection and segmentation as pure functions of their number.

As `rest_jax.data.batches`, with canvases: pictures keep their proportions, so a batch takes the
smallest canvas that holds its pictures, and an epoch is put together so that pictures of one canvas
come together. Each canvas compiles once.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rest_jax.data.batches import ENDLESS, ERROR, example_rng
from rest_jax.data.canvas import collate, smallest_canvas
from rest_jax.data.dense_sources import DenseSource
from rest_jax.data.geometry import Example, fit, resize
from rest_jax.data.objects import to_learn
from rest_jax.errors import UserError

Canvas = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class View:
  """How a picture is looked at without chance.

  Attributes:
    short: its shorter side in pixels; 0 leaves its size.
    long: most of its longer side; 0 for any.
    canvases: (H, W) each, in pixels.
  """

  short: int
  long: int
  canvases: tuple[Canvas, ...]

  def size(self, size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) at which a picture is looked at; smaller where no canvas would hold it."""
    wanted = fit(size, self.short, self.long or None) if self.short else size
    return into_canvas(wanted, self.canvases)

  def __call__(self, example: Example) -> Example:
    """The example at its size."""
    size = self.size(example['image'].shape[:2])
    return example if size == example['image'].shape[:2] else resize(example, size)


def into_canvas(size: tuple[int, int], canvases: Sequence[Canvas]) -> tuple[int, int]:
  """A size, or the largest of its proportions that one of the canvases holds."""
  if any(c[0] >= size[0] and c[1] >= size[1] for c in canvases):
    return size
  scale = max(min(c[0] / size[0], c[1] / size[1]) for c in canvases)
  return max(int(size[0] * scale), 1), max(int(size[1] * scale), 1)


@dataclasses.dataclass(frozen=True)
class DenseTrainBatches:
  """Batch number -> this process's rows of it, as a random-access source for Grain.

  Attributes:
    source: the pictures.
    batch_size: of all processes together.
    augment: (example, generator) -> example.
    canvases: (H, W) each; a picture that is larger than all of them is made smaller.
    max_objects: room for objects of a picture.
    mask_size: side of a mask in the frame of its box.
    seed: of order and augmentation.
    process_index: this process.
    process_count: processes.
    start: number of the first batch.
    repeats: 1; there are no repeated views here.
  """

  source: DenseSource
  batch_size: int
  augment: Callable[[Example, np.random.Generator], Example]
  canvases: tuple[Canvas, ...]
  max_objects: int = 100
  mask_size: int = 112
  seed: int = 0
  process_index: int = 0
  process_count: int = 1
  start: int = 0
  repeats: int = 1

  def __len__(self) -> int:
    return ENDLESS

  def __getitem__(self, number: int) -> dict[str, Any]:
    try:
      return self._batch(self.start + number)
    except UserError as error:
      # Carried as data: from a worker an exception would come back as another one.
      return {ERROR: str(error)}

  def _batch(self, number: int) -> dict[str, Any]:
    epoch, place = divmod(number, self.batches_an_epoch)
    canvas, members = self._epoch(epoch)[place]
    rows = self.batch_size // self.process_count
    own = members[self.process_index * rows : (self.process_index + 1) * rows]
    views = [self._view(int(i), epoch, copy, canvas) for i, copy in own]
    return arrays(collate(views, canvas, max_objects=self.max_objects, mask_size=self.mask_size))

  def _view(self, index: int, epoch: int, copy: int, canvas: Canvas) -> Example:
    """One view of a picture, no larger than the canvas."""
    rng = example_rng(self.seed, epoch, index, copy)
    example = self.augment(to_learn(self.source[index]), rng)
    size = into_canvas(example['image'].shape[:2], [canvas])
    return example if size == example['image'].shape[:2] else resize(example, size)

  @property
  def batches_an_epoch(self) -> int:
    """Batches that show every picture once; the last one of each canvas is filled up."""
    return sum(-(-len(members) // self.batch_size) for members in self._groups.values())

  @functools.cached_property
  def _groups(self) -> dict[Canvas, np.ndarray]:
    """Numbers of the pictures by the canvas that suits their shape best."""
    if len(self.canvases) == 1:
      return {self.canvases[0]: np.arange(len(self.source))}
    chosen = [self._best(self.source.size(i)) for i in range(len(self.source))]
    return {
      canvas: np.array([i for i, c in enumerate(chosen) if c == canvas], int)
      for canvas in self.canvases
      if canvas in chosen
    }

  def _best(self, size: tuple[int, int]) -> Canvas:
    """The canvas on which a picture of this size is largest; of equal ones the smallest."""
    return max(self.canvases, key=lambda c: (min(c[0] / size[0], c[1] / size[1]), -c[0] * c[1]))

  def _epoch(self, epoch: int) -> list[tuple[Canvas, np.ndarray]]:
    """Batches of an epoch: canvases with (B, 2) numbers of pictures and of their repetitions."""
    return _schedule(self.seed, epoch, self.batch_size, _Groups(self._groups))


class _Groups:
  """A dictionary that can be a key of a cache, as itself."""

  def __init__(self, groups: dict[Canvas, np.ndarray]):
    self.groups = groups

  def __hash__(self) -> int:
    return id(self.groups)

  def __eq__(self, other: object) -> bool:
    return isinstance(other, _Groups) and self.groups is other.groups


@functools.lru_cache(maxsize=4)
def _schedule(
  seed: int, epoch: int, batch_size: int, keyed: _Groups
) -> list[tuple[Canvas, np.ndarray]]:
  """The batches of an epoch, those of all canvases mixed; see `DenseTrainBatches._epoch`."""
  rng = np.random.default_rng([seed, epoch])
  batches: list[tuple[Canvas, np.ndarray]] = []
  for canvas, members in keyed.groups.items():
    order = rng.permutation(members)
    room = -(-len(order) // batch_size) * batch_size
    places = np.arange(room)
    pairs = np.stack([order[places % len(order)], places // len(order)], axis=1)
    batches += [(canvas, part) for part in pairs.reshape(-1, batch_size, 2)]
  return [batches[i] for i in rng.permutation(len(batches))]


@dataclasses.dataclass(frozen=True)
class DenseEvalBatches:
  """Every picture once, on the smallest canvas that holds it; a list of batches.

  Attributes:
    source: the pictures.
    batch_size: most pictures of a batch; the last one of a canvas is filled up.
    view: how they are looked at.
    multiple: of rows, for devices to share; a canvas of few pictures has no more than they need.
  """

  source: DenseSource
  batch_size: int
  view: View
  multiple: int = 1

  def __len__(self) -> int:
    return len(self._plan)

  def __getitem__(self, number: int) -> dict[str, Any]:
    """One batch.

    Returns:
      'image' (B, H, W, 3) uint8, 'size' (B, 2) int32, 'mask' (B,) bool, False for filler; and
      'examples', a list of the originals, without filler.
    """
    canvas, members, rows = self._plan[number]
    try:
      originals = [self.source[i] for i in members]
      pictures = [self.view({'image': e['image']}) for e in originals]
    except UserError as error:
      return {ERROR: str(error)}
    filler = rows - len(pictures)
    batch = arrays(collate(pictures + pictures[:1] * filler, canvas))
    mask = np.arange(rows) < len(pictures)
    return {**batch, 'mask': mask, 'examples': originals}

  @functools.cached_property
  def _plan(self) -> list[tuple[Canvas, list[int], int]]:
    """Canvases with the pictures on them, and rows, of which a canvas has one number."""
    groups: dict[Canvas, list[int]] = {}
    for i in range(len(self.source)):
      canvas = smallest_canvas(self.view.size(self.source.size(i)), self.view.canvases)
      groups.setdefault(canvas, []).append(i)
    size = self.batch_size
    rows = {
      c: -(-min(len(own), size) // self.multiple) * self.multiple for c, own in groups.items()
    }
    return [
      (canvas, members[first : first + size], rows[canvas])
      for canvas, members in sorted(groups.items())
      for first in range(0, len(members), size)
    ]


def arrays(batch: dict[str, Any]) -> dict[str, Any]:
  """A batch of `collate` under the names of training: one picture is an 'image'."""
  names = {'images': 'image', 'sizes': 'size'}
  return {names.get(n, n): value for n, value in batch.items() if n != 'image_ids'}
