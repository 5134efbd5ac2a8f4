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


def _zero_totals(robust: bool, denoising: bool) -> dict[str, np.ndarray]:
  kinds = {'count': np.int32, 'top1': np.int32, 'top5': np.int32, 'loss': np.float32}
  if denoising:
    kinds = {'count': np.int32, **dict.fromkeys(('loss', 'psnr', 'noisy_psnr'), np.float32)}
  if robust:
    kinds['robust_top1'] = np.int32
  return {name: np.zeros((), kind) for name, kind in kinds.items()}


def evaluate(
  eval_step: Callable[..., Any],
  variables: Any,
  batches: Iterable[dict[str, np.ndarray]],
  mesh: Mesh,
  robust: bool = False,
  denoising: bool = False,
) -> dict[str, float]:
  """Measures a model on all examples of a split.

  Args:
    eval_step: from `parallel.map_eval_step`.
    variables: {'params', 'batch_stats'}.
    batches: from `data.eval_batches`; each with 'image', 'label' and 'mask'.
    mesh: from `parallel.make_mesh`.
    robust: whether the step attacks (`config.adversarial.eval_steps`).
    denoising: whether the model takes noise out of images (`config.denoise.noise`).

  Returns:
    top1 and top5 as fractions, loss in nats (mean over the examples) and count; with `robust` also
    robust_top1, the fraction that is right before and after the attack. Of a denoising model:
    loss (mean squared error), psnr and noisy_psnr (dB, means over the images), and count.
  """
  totals = _replicated_totals(mesh, robust, denoising)
  under_way: collections.deque[Any] = collections.deque()
  for batch in batches:
    totals = eval_step(variables, to_global(batch, mesh), totals)
    under_way.append(totals)
    if len(under_way) > IN_FLIGHT:
      jax.block_until_ready(under_way.popleft())
  sums = jax.device_get(totals)
  count = max(int(sums['count']), 1)
  return {
    name: int(value) if name == 'count' else float(value) / count for name, value in sums.items()
  }


def _replicated_totals(mesh: Mesh, robust: bool, denoising: bool) -> Any:
  # Built with the sharding that the step returns, so that its first call compiles for good.
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  return {
    name: jax.make_array_from_process_local_data(sharding, zero)
    for name, zero in _zero_totals(robust, denoising).items()
  }
