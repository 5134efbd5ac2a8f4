"""The images of an evaluation, each with its index in the source, and batches of one size."""

from __future__ import annotations

import dataclasses
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rest_jax.errors import UserError
from rest_jax.inputs import check_images


@dataclasses.dataclass(frozen=True)
class Chunk:
  """Images in host memory.

  Attributes:
    images: float32 (N, H, W, C) in [0, 1].
    labels: integers (N,).
    targets: integers (N,), or None.
    indices: int64 (N,), in the source.
    pixels: checksum of each image.
  """

  images: np.ndarray
  labels: np.ndarray
  targets: np.ndarray | None
  indices: np.ndarray
  pixels: list[str]


def chunks(images: Any, labels: Any, targets: Any, indices: Any) -> Iterator[Chunk]:
  """Gives the images of an evaluation, whatever form they came in.

  Args:
    images: floats (N, H, W, C) in [0, 1] with `labels`; or, without, an iterable of batches: pairs
      (images, labels), or dictionaries with 'image' (uint8 too), 'label' and, as they may be,
      'target', 'index' and 'mask' (False where a row is filler).
    labels: integers (N,), or None.
    targets: integers (N,), for arrays; None for none.
    indices: integers (N,), for arrays; None for 0, 1, ...

  Yields:
    One chunk an array or batch, none of them empty.

  Raises:
    UserError: something missing, of wrong length, or twice the same index.
  """
  seen: set[int] = set()
  for batch in _as_dictionaries(images, labels, targets, indices):
    chunk = _chunk(batch, len(seen))
    fresh = set(chunk.indices.tolist())
    if len(fresh) < len(chunk.indices) or fresh & seen:
      raise UserError('two images have the same index; an index says which image of the source')
    seen |= fresh
    if len(chunk.images):
      yield chunk


def _as_dictionaries(images: Any, labels: Any, targets: Any, indices: Any) -> Iterator[Any]:
  if labels is not None:
    yield {'image': images, 'label': labels, 'target': targets, 'index': indices}
    return
  if targets is not None or indices is not None:
    raise UserError("targets and indices of batches come with the batches, as 'target', 'index'")
  if hasattr(images, 'shape') or not isinstance(images, Iterable):
    raise UserError('images without labels; give labels, or an iterable of batches of both')
  for batch in images:
    if isinstance(batch, Mapping):
      yield batch
    elif isinstance(batch, tuple | list) and len(batch) == 2:
      yield {'image': batch[0], 'label': batch[1]}
    else:
      raise UserError(
        f"a batch is a pair (images, labels) or has 'image' and 'label', not {type(batch).__name__}"
      )


def _chunk(batch: Mapping[str, Any], first: int) -> Chunk:
  missing = [name for name in ('image', 'label') if batch.get(name) is None]
  if missing:
    raise UserError(f'a batch lacks {" and ".join(missing)}; it has {", ".join(batch)}')
  images, labels = np.asarray(batch['image']), np.asarray(batch['label'])
  count = len(images) if images.ndim else 0
  rows = np.arange(count)
  if batch.get('mask') is not None:
    rows = np.flatnonzero(np.asarray(batch['mask']))
  images = images[rows] if images.ndim else images
  given = batch.get('index')
  indices = first + np.arange(len(rows)) if given is None else _rows('indices', given, count, rows)
  targets = batch.get('target')
  targets = None if targets is None else _rows('targets', targets, count, rows)
  images = np.asarray(check_images(_in_unit_range(images)))
  pixels = [f'{zlib.crc32(image.tobytes()):08x}' for image in images]
  return Chunk(
    images, _rows('labels', labels, count, rows), targets, indices.astype(np.int64), pixels
  )


def _rows(name: str, values: Any, count: int, rows: np.ndarray) -> np.ndarray:
  values = np.asarray(values)
  if values.shape != (count,):
    raise UserError(f'{name} are ({count},), one an image, got shape {values.shape}')
  if not np.issubdtype(values.dtype, np.integer):
    raise UserError(f'{name} are integers, got {values.dtype}')
  return values[rows]


def _in_unit_range(images: np.ndarray) -> np.ndarray:
  """Bytes become [0, 1]; what else is wrong with images is for `check_images` to find."""
  return images.astype(np.float32) / np.float32(255) if images.dtype == np.uint8 else images


def batch_rows(count: int, size: int) -> Iterator[np.ndarray]:
  """Row numbers (size,) of batches of one size; the last row of all is repeated as filler."""
  for first in range(0, count, size):
    yield np.minimum(np.arange(first, first + size), count - 1)


def keys_of(key: jax.Array, indices: np.ndarray) -> jax.Array:
  """The keys of images of a source: `fold_in(key, index)` of each, (N,)."""
  return _keys(key, jnp.asarray(indices.astype(np.uint32)))


@jax.jit
def _keys(key: jax.Array, indices: jax.Array) -> jax.Array:
  return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)


# ---- Batches ------------------------------------------------------------------------------------


class Images:
  """A piece of a source that is evaluated together: indices, and arrays with a row an image."""

  def __init__(
    self,
    indices: Sequence[int] | np.ndarray,
    arrays: Mapping[str, Any] | None = None,
    *,
    read: Callable[[], Mapping[str, Any]] | None = None,
  ):
    """Takes the arrays, or what reads them when they are asked for.

    Args:
      indices: (N,) of the images in the source.
      arrays: by name, (N, ...) each; None under a name for what there is not.
      read: gives the arrays, once; for pieces of which nothing may be left to do.
    """
    self.indices = np.asarray(indices, np.int64)
    self._read, self._lock = read, threading.Lock()
    self._arrays = arrays

  def __len__(self) -> int:
    return len(self.indices)

  @property
  def arrays(self) -> Mapping[str, Any]:
    """The arrays by name, read now where they were not yet."""
    with self._lock:  # devices ask from threads of their own
      if self._arrays is None:
        assert self._read is not None
        self._arrays = self._read()
    return self._arrays

  def batch(self, rows: np.ndarray, size: int) -> Batch:
    """Some rows as a batch of a size."""
    return Batch(self, np.asarray(rows), size)


@dataclasses.dataclass(frozen=True)
class Batch:
  """Images of one shape of array, whatever their number: the last one is repeated as filler.

  Attributes:
    piece: where the images are from.
    rows: int (count,), which of its rows, from 1 to `size` of them.
    size: of the arrays.
  """

  piece: Images
  rows: np.ndarray
  size: int

  @property
  def count(self) -> int:
    """How many images it has beside the filler."""
    return len(self.rows)

  @property
  def indices(self) -> np.ndarray:
    """int64 (count,): the images in the source."""
    return self.piece.indices[self.rows]

  @property
  def filler(self) -> np.ndarray:
    """bool (size,)."""
    return np.arange(self.size) >= self.count

  def __getitem__(self, name: str) -> Any:
    """An array (size, ...) of the piece, filled up; None where it has none under that name."""
    array = self.piece.arrays[name]
    return None if array is None else array[self.padded]

  def keys(self, key: jax.Array) -> jax.Array:
    """A key an image, (size,): `fold_in(key, index)`, whatever the batch."""
    return keys_of(key, self.piece.indices[self.padded])

  @property
  def padded(self) -> np.ndarray:
    """int (size,): rows of the piece, the last one repeated."""
    return self.rows[np.minimum(np.arange(self.size), self.count - 1)]
