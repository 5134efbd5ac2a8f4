"""The one place where steps are mapped over devices: jit(shard_map) on a 1-D mesh 'batch'.

The state is replicated and donated, the batch is split along its first axis. With several
processes each holds its own rows of the global batch.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rest_jax.errors import UserError
from rest_jax.ops.platform import jit
from rest_jax.train.state import FreeTrainState, TrainState

AXIS = 'batch'
_REPLICATED, _SPLIT = PartitionSpec(), PartitionSpec(AXIS)


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
  """Returns the 1-D mesh over the given devices, over all devices of all processes otherwise."""
  return Mesh(np.asarray(jax.devices() if devices is None else devices), (AXIS,))


def state_spec(template: TrainState) -> Any:
  """How a state lies on the mesh: replicated, but for the perturbation of free training."""
  if not isinstance(template, FreeTrainState):
    return _REPLICATED
  fields: Any = {f.name: _REPLICATED for f in dataclasses.fields(template)}
  return FreeTrainState(**{**fields, 'perturbation': _SPLIT})


def state_sharding(template: TrainState, mesh: Mesh) -> Any:
  """The sharding of every array of a state, a tree like `template`."""

  def spread(spec, part):
    return jax.tree.map(lambda _: NamedSharding(mesh, spec), part)

  return jax.tree.map(spread, state_spec(template), template)


def map_train_step(
  step: Callable[..., Any], mesh: Mesh, spec: Any = _REPLICATED
) -> Callable[..., Any]:
  """Maps and compiles (state, batch) -> (state, metrics); the given state is used up.

  Args:
    step: of one device.
    mesh: the devices.
    spec: from `state_spec`.
  """
  # check_vma is off: the step is written in pmap's form, with its own pmean of the gradients.
  mapped = jax.shard_map(
    step,
    mesh=mesh,
    in_specs=(spec, _SPLIT),
    out_specs=(spec, _REPLICATED),
    check_vma=False,
  )
  return jit(mapped, donate_argnums=0)


def map_eval_step(step: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
  """Maps and compiles (variables, batch, totals) -> totals."""
  mapped = jax.shard_map(
    step,
    mesh=mesh,
    in_specs=(_REPLICATED, _SPLIT, _REPLICATED),
    out_specs=_REPLICATED,
    check_vma=False,
  )
  return jit(mapped)


def replicate(create: Callable[..., Any], mesh: Mesh, sharding: Any = None) -> Callable[..., Any]:
  """Compiles `create`, which runs once, so that its results lie on every device of the mesh.

  Args:
    create: makes a state.
    mesh: the devices.
    sharding: of every array, from `state_sharding`; replicated by default.
  """
  # Optimising hundreds of random initialisers takes the CPU's compiler longer than running them.
  quick = {'xla_backend_optimization_level': 0} if mesh.devices.flat[0].platform == 'cpu' else None
  where = NamedSharding(mesh, _REPLICATED) if sharding is None else sharding
  return jax.jit(create, out_shardings=where, compiler_options=quick)


def to_global(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Builds global arrays, split over the mesh, from this process's rows of the batch.

  Args:
    batch: arrays whose first axis is global batch / number of processes.
    mesh: from `make_mesh`.

  Returns:
    Arrays whose first axis is the global batch.
  """
  sharding = NamedSharding(mesh, _SPLIT)
  return {
    name: jax.make_array_from_process_local_data(sharding, np.asarray(rows))
    for name, rows in batch.items()
  }


@contextlib.contextmanager
def memory_advice() -> Iterator[None]:
  """Turns running out of device memory into advice.

  Raises:
    UserError: instead of XLA's error.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    raise UserError(
      'the device has not enough memory for this batch; lower --batch_size, raise '
      'train.accumulate, set model.dtype=bfloat16, or add remat=True to model.overrides'
    ) from error


def check_batch(batch_size: int, accumulate: int, mesh: Mesh, name: str = 'batch_size') -> None:
  """Refuses a global batch that does not divide over devices and micro-batches.

  Raises:
    UserError: names the numbers and the nearest batch that divides.
  """
  pieces = mesh.size * accumulate
  if batch_size % pieces:
    nearest = max(round(batch_size / pieces), 1) * pieces
    raise UserError(
      f'{name} {batch_size} does not divide over {mesh.size} device(s) times '
      f'{accumulate} micro-batch(es); use a multiple of {pieces}, for example {nearest}'
    )
