"""Exact evaluation: every example of a split once, padding masked, sums kept on the device."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rest_jax.train.metrics import IN_FLIGHT
from rest_jax.train.parallel import to_global


def _zero_totals() -> dict[str, np.ndarray]:
  kinds = {'count': np.int32, 'top1': np.int32, 'top5': np.int32, 'loss': np.float32}
  return {name: np.zeros((), kind) for name, kind in kinds.items()}


def evaluate(
  eval_step: Callable[..., Any],
  variables: Any,
  batches: Iterable[dict[str, np.ndarray]],
  mesh: Mesh,
) -> dict[str, float]:
  """Measures a classifier on all examples of a split.

  Args:
    eval_step: from `parallel.map_eval_step`.
    variables: {'params', 'batch_stats'}.
    batches: from `data.eval_batches`; each with 'image', 'label' and 'mask'.
    mesh: from `parallel.make_mesh`.

  Returns:
    top1 and top5 as fractions, loss in nats (mean over the examples) and count.
  """
  totals = _replicated_totals(mesh)
  under_way: collections.deque[Any] = collections.deque()
  for batch in batches:
    totals = eval_step(variables, to_global(batch, mesh), totals)
    under_way.append(totals)
    if len(under_way) > IN_FLIGHT:
      jax.block_until_ready(under_way.popleft())
  sums = jax.device_get(totals)
  count = max(int(sums['count']), 1)
  means = {name: float(sums[name]) / count for name in ('top1', 'top5', 'loss')}
  return {**means, 'count': int(sums['count'])}


def _replicated_totals(mesh: Mesh) -> Any:
  # Built with the sharding that the step returns, so that its first call compiles for good.
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  return {
    name: jax.make_array_from_process_local_data(sharding, zero)
    for name, zero in _zero_totals().items()
  }
