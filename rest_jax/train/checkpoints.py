"""Checkpoints of the training state: the last ones and the best, through Orbax.

Orbax writes a checkpoint under a temporary name and renames it when it is whole, so a kill leaves
no half checkpoint behind that counts as one. Beside the arrays stands a JSON item `meta` with the
state of the data iterator and the book-keeping of the loop.

When a write fails, the failure itself is raised to whoever asked for it, who says it in a line.
What the threads of Orbax and TensorStore have to add, a hundred tracebacks on a full disk, says
nothing more and would bury that line: `quiet_threads` keeps it from the terminal.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
import tensorstore as ts
from absl import logging as absl_logging
from jax.sharding import Mesh

from rest_jax.errors import UserError
from rest_jax.train.parallel import state_sharding
from rest_jax.train.state import TrainState
from rest_jax.train.workdir import writing

_KEPT = 2  # one more than needed, for the case that the newest cannot be read
_LOGGERS = ('absl', 'orbax', 'tensorstore')
# What TensorStore's threads find when they come back to a write that was given up.
_LATE = 'Event loop is closed'


class Checkpoints:
  """The checkpoints of one work directory, `checkpoints/last` and `checkpoints/best`."""

  def __init__(self, workdir: Path):
    """Opens the checkpoints below `workdir`, creating the directories."""
    absl_logging.set_verbosity(absl_logging.ERROR)
    logging.getLogger('orbax').setLevel(logging.ERROR)
    self._root = workdir / 'checkpoints'
    self._broken: set[int] = set()  # kept until training comes to the same step again
    with writing(workdir):
      self._last = _manager(self._root / 'last', _KEPT)
      self._best = _manager(self._root / 'best', 1)

  def save_last(self, state: TrainState, meta: dict[str, Any]) -> None:
    """Saves the state to go on from; a step that is saved already is not saved again."""
    step = meta['step']
    if step in self._broken:
      self._broken.remove(step)
      self._last.delete(step)
    if step not in self._last.all_steps():
      self._save(self._last, state, meta)

  def save_best(self, state: TrainState, meta: dict[str, Any]) -> None:
    """Replaces the best state."""
    # A run that was killed after its best and before its last checkpoint comes here twice.
    for step in self._best.all_steps():
      if step >= meta['step']:
        self._best.delete(step)
    self._save(self._best, state, meta)

  def restore_last(
    self, template: TrainState, mesh: Mesh
  ) -> tuple[TrainState, dict[str, Any]] | None:
    """Returns the newest state that can be read, None where nothing was saved.

    Args:
      template: shapes and dtypes of the state, as from `jax.eval_shape`.
      mesh: where the state is to be replicated.

    Raises:
      UserError: a checkpoint of another model, or none that can be read.
    """
    steps = sorted(self._last.all_steps(), reverse=True)
    for step in steps:
      found = self._restore(self._last, step, template, mesh)
      if found is not None:
        return found
      self._broken.add(step)
    if steps:
      raise UserError(
        f'no checkpoint in {self._root / "last"} can be read; remove {self._root.parent} '
        'to start again, or give another --output'
      )
    return None

  def restore_best(
    self, template: TrainState, mesh: Mesh
  ) -> tuple[TrainState, dict[str, Any]] | None:
    """Returns the best state, None where there is none that can be read."""
    step = self._best.latest_step()
    return None if step is None else self._restore(self._best, step, template, mesh)

  def best_meta(self) -> dict[str, Any] | None:
    """Returns the `meta` of the best state, None where there is none that can be read."""
    step = self._best.latest_step()
    if step is None:
      return None
    args = ocp.args.Composite(meta=ocp.args.JsonRestore())
    try:
      return self._best.restore(step, args=args)['meta']
    except Exception as error:
      return _skip(step, error)

  def close(self) -> None:
    """Ends Orbax's threads."""
    self._last.close()
    self._best.close()

  def _save(self, manager: ocp.CheckpointManager, state: TrainState, meta: dict[str, Any]):
    args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
    with writing(self._root.parent), quiet_threads():
      manager.save(meta['step'], args=args, force=True)

  def _restore(self, manager: ocp.CheckpointManager, step: int, template: Any, mesh: Mesh):
    try:
      _read_all(Path(str(manager.directory)) / str(step) / 'state')
      saved = manager.item_metadata(step)['state'].tree
    except Exception as error:
      return _skip(step, error)
    _check_same_model(saved, template, self._root / 'last' / str(step))
    target = jax.tree.map(
      lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
      template,
      state_sharding(template, mesh),
    )
    args = ocp.args.Composite(state=ocp.args.StandardRestore(target), meta=ocp.args.JsonRestore())
    try:
      found = manager.restore(step, args=args)
      return found['state'], found['meta']
    except Exception as error:
      return _skip(step, error)


def _read_all(directory: Path) -> None:
  """Reads every array file once; raises where one is damaged.

  Orbax reads them all at the same time and, when one fails, leaves the others to complain with
  tracebacks from their threads.
  """
  base = {'driver': 'file', 'path': f'{directory}/'}
  store = ts.KvStore.open({'driver': 'ocdbt', 'base': base}).result()
  for key in store.list().result():
    store.read(key).result()


def _manager(directory: Path, keep: int) -> ocp.CheckpointManager:
  options = ocp.CheckpointManagerOptions(
    max_to_keep=keep,
    # The state is donated to the next step, so nothing may still be reading it.
    enable_async_checkpointing=False,
    cleanup_tmp_directories=True,
  )
  handlers = {'state': ocp.StandardCheckpointHandler(), 'meta': ocp.JsonCheckpointHandler()}
  return ocp.CheckpointManager(directory, item_handlers=handlers, options=options)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  names = (('/'.join(str(getattr(k, 'key', k)) for k in path), leaf) for path, leaf in leaves)
  return {name: tuple(leaf.shape) for name, leaf in names}


def _check_same_model(saved: dict[str, Any], template: TrainState, where: Path) -> None:
  """Compares names and shapes of the saved parameters with those of the model."""
  own = _shapes({'params': template.params, 'batch_stats': template.batch_stats})
  groups = {key: saved.get(key) or {} for key in ('params', 'batch_stats')}
  other = _shapes(groups)
  wrong = [name for name in sorted(own.keys() | other.keys()) if own.get(name) != other.get(name)]
  if wrong:
    shown = '; '.join(
      f'{name}: {_shown(other.get(name))} there, {_shown(own.get(name))} here' for name in wrong[:3]
    )
    raise UserError(
      f'the checkpoint {where} is of another model, {len(wrong)} arrays differ: {shown}; '
      'give another --output, or remove the directory'
    )


def _shown(shape: tuple[int, ...] | None) -> str:
  return 'missing' if shape is None else str(shape)


def _skip(step: int, error: Exception) -> None:
  reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
  print(f'The checkpoint of step {step} cannot be read ({reason}); it is skipped.')


@contextlib.contextmanager
def quiet_threads() -> Iterator[None]:
  """While it lasts, the writers' loggers are silent; after a failure, late threads stay so.

  Raises:
    Exception: what the body raised.
  """
  silence, forgotten = _Nothing(), _Forgotten()
  before = sys.excepthook, threading.excepthook, sys.unraisablehook
  for name in _LOGGERS:
    logging.getLogger(name).addFilter(silence)
  logging.getLogger('asyncio').addFilter(forgotten)
  _silence_late_threads()
  try:
    yield
    # Not after a failure: late threads come until the process ends.
    sys.excepthook, threading.excepthook, sys.unraisablehook = before
    logging.getLogger('asyncio').removeFilter(forgotten)
  finally:
    for name in _LOGGERS:
      logging.getLogger(name).removeFilter(silence)


class _Nothing(logging.Filter):
  """Lets no record through."""

  def filter(self, record: logging.LogRecord) -> bool:
    return False


class _Forgotten(logging.Filter):
  """Lets through all but errors of writes that nobody waited for, because another had failed."""

  def filter(self, record: logging.LogRecord) -> bool:
    return 'never retrieved' not in record.getMessage()


def _silence_late_threads() -> None:
  """Drops the tracebacks of late threads, which are about nothing that could be done."""
  main, threads, ignored = sys.excepthook, threading.excepthook, sys.unraisablehook

  def quiet(kind: Any, error: Any, trace: Any) -> None:
    if not _is_late(error):
      main(kind, error, trace)

  def quiet_threads(found: Any) -> None:
    if not _is_late(found.exc_value):
      threads(found)

  def quiet_ignored(found: Any) -> None:
    if not _is_late(found.exc_value):
      ignored(found)

  sys.excepthook, threading.excepthook, sys.unraisablehook = quiet, quiet_threads, quiet_ignored


def _is_late(error: object) -> bool:
  return isinstance(error, RuntimeError) and _LATE in str(error)
