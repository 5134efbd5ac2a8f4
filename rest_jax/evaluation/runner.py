"""The one way of evaluating: every image of every case once, on all devices, and on disk at once.

A case is whatever gives rows, one an image: a method of explanation, an attack on a model, a
denoiser at a strength, the model itself.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rest_jax import programs
from rest_jax.evaluation.batches import Batch, Images
from rest_jax.evaluation.records import Records

Work = Callable[[Any, Batch, Any], Mapping[str, Any]]
Tick = Callable[[str, int], object]
_AHEAD = 2  # batches a device, under way or waiting for it


def run(
  cases: Sequence[Any] | Callable[[Images], Sequence[Any]],
  pieces: Iterable[Images],
  records: Records,
  work: Work,
  *,
  size: int,
  devices: Sequence[Any] | None = None,
  packed: bool = True,
  settle: Callable[[Any, Images], object] | None = None,
  progress: Tick | None = None,
) -> None:
  """Gives every image of every case its record, as far as it has none.

  A piece after the other, in each a case after the other. What is done is on disk, whatever ends
  the process: an error, Ctrl-C or a kill; the same call then goes on with what is left.

  Args:
    cases: labels, or anything with a `label` of its own each; or what gives those of a piece.
    pieces: of the source; the next is taken when there is room for it.
    records: where the rows go.
    work: `work(case, batch, device)` gives columns, (count,) or (size,) values each.
    size: images of a batch.
    devices: batches are shared out over them, and `work` has the device as its default; None for
      all of this process. `(None,)` where what is evaluated lays a batch out over the devices.
    packed: batches are made of what is left; otherwise a piece is one batch, always of the same
      images, for work that depends on which ones they are.
    settle: `settle(case, piece)`, called before a case when all before it has been recorded: adds
      records of images that need no work.
    progress: `progress(label, images)`, called with how many more images of a case are through.
  """
  with _Workers(jax.local_devices() if devices is None else devices) as workers:
    for piece in pieces:
      for case in cases(piece) if callable(cases) else cases:
        todo = _missing(records, case, piece)
        if settle is not None:
          workers.finish()
          settle(case, piece)
        left = _missing(records, case, piece)
        if progress is not None and len(left) < len(todo):
          progress(label_of(case), len(todo) - len(left))
        if left:
          workers.make_room()
        for batch in _batches(piece, left, size, packed):
          workers.submit(_Step(case, batch, records, work, progress))
    workers.finish()


def label_of(case: Any) -> str:
  """What a case is filed under."""
  return case if isinstance(case, str) else case.label


def count_left(cases: Iterable[Any], pieces: Iterable[Images], records: Records) -> int:
  """How many images of cases have no record, each counted in each case."""
  pieces = list(pieces)
  return sum(len(_missing(records, case, piece)) for case in cases for piece in pieces)


def _missing(records: Records, case: Any, piece: Images) -> list[int]:
  """Rows of a piece without a record."""
  there = records.rows(label_of(case))
  return [row for row, index in enumerate(piece.indices.tolist()) if index not in there]


def _batches(piece: Images, left: list[int], size: int, packed: bool) -> Iterator[Batch]:
  if not packed and left:
    yield piece.batch(np.arange(len(piece)), size)
    return
  for first in range(0, len(left), size):
    yield piece.batch(np.asarray(left[first : first + size]), size)


class _Step:
  """A case on a batch: the work, and its record."""

  def __init__(self, case: Any, batch: Batch, records: Records, work: Work, progress: Tick | None):
    self._case, self._batch, self._records = case, batch, records
    self._work, self._progress = work, progress

  def __call__(self, device: Any, lock: threading.Lock) -> None:
    """Works on a device, or wherever the work puts itself."""
    label, batch = label_of(self._case), self._batch
    with contextlib.nullcontext() if device is None else jax.default_device(device):
      columns = self._work(self._case, batch, device)
    there = self._records.rows(label)
    fresh = [row for row, i in enumerate(batch.indices.tolist()) if i not in there]
    kept = {name: _rows(values, fresh) for name, values in columns.items()}
    self._records.add(label, batch.indices[fresh], kept)
    if self._progress is not None:
      with lock:
        self._progress(label, len(fresh))


def _rows(values: Any, rows: list[int]) -> list[Any]:
  """Some values of a column, on the host."""
  values = np.asarray(values).tolist() if hasattr(values, 'dtype') else values
  return [values[row] for row in rows]


class _Workers:
  """Takes steps: on one device at once, on several in a thread each, whichever is free."""

  def __init__(self, devices: Sequence[Any]):
    self._devices, self._lock = list(devices), threading.Lock()
    self._free: queue.LifoQueue[Any] = queue.LifoQueue()  # the one that has compiled comes first
    for device in reversed(self._devices):
      self._free.put(device)
    self._pending: set[concurrent.futures.Future] = set()
    self._pool = concurrent.futures.ThreadPoolExecutor(len(self._devices))

  def __enter__(self) -> _Workers:
    return self

  def __exit__(self, *_: Any) -> None:
    # What is under way is recorded yet, what waits is not begun.
    self._pool.shutdown(wait=True, cancel_futures=True)

  def submit(self, step: _Step) -> None:
    """Does a step, or has it done; waits while there are enough of them.

    Raises:
      Exception: of an earlier step, or of this one.
    """
    if len(self._devices) == 1:
      step(self._devices[0], self._lock)
      return
    while len(self._pending) >= _AHEAD * len(self._devices):
      self._collect(concurrent.futures.FIRST_COMPLETED)
    self._pending.add(self._pool.submit(self._do, step))

  def finish(self) -> None:
    """Waits for all steps; errors as `submit`."""
    while self._pending:
      self._collect(concurrent.futures.FIRST_COMPLETED)

  def make_room(self) -> None:
    """Drops compiled programs where the process may run out of room for more of them."""
    if programs.crowded():
      self.finish()
      programs.release_programs()

  def _do(self, step: _Step) -> None:
    device = self._free.get()
    try:
      step(device, self._lock)
    finally:
      self._free.put(device)

  def _collect(self, until: str) -> None:
    done, self._pending = concurrent.futures.wait(self._pending, return_when=until)
    for future in done:
      future.result()


class Replicas:
  """A model on each device, put there when it is first asked for."""

  def __init__(self, model: Any):
    """Takes a pytree of arrays."""
    self._model, self._lock = model, threading.Lock()
    self._placed: dict[Any, Any] = {}

  def __call__(self, device: Any) -> Any:
    """The model on a device; where it is, for None."""
    if device is None:
      return self._model
    with self._lock:
      if device not in self._placed:
        self._placed[device] = jax.device_put(self._model, device)
      return self._placed[device]
