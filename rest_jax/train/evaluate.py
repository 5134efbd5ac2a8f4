"""Exact evaluation: every example of a split once, padding masked, sums kept on the device."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rest_jax.errors import UserError
from rest_jax.train import totals as totals_lib
from rest_jax.train.metrics import IN_FLIGHT
from rest_jax.train.parallel import to_global

_INNER = ('seen', 'bad', 'bad_at')  # of the totals: what is not a mean


def zero_totals(robust: bool = False, denoising: bool = False) -> dict[str, np.ndarray]:
  """The totals that `classifying.make_eval_step` begins with; arguments as `evaluate`."""
  if denoising:
    return totals_lib.zeros(['count'], ['loss', 'psnr', 'noisy_psnr'])
  return totals_lib.zeros(['count', 'top1', 'top5', *(['robust_top1'] if robust else [])], ['loss'])


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

  Raises:
    NotFiniteError: outputs of the model are no numbers; there is no accuracy of such a model.
    UserError: there is no example.
  """
  totals = _replicated_totals(mesh, robust, denoising)
  under_way: collections.deque[Any] = collections.deque()
  for batch in batches:
    totals = eval_step(variables, to_global(batch, mesh), totals)
    under_way.append(totals)
    if len(under_way) > IN_FLIGHT:
      jax.block_until_ready(under_way.popleft())
  sums = jax.device_get(totals)
  count = int(sums['count'])
  if not count:
    raise UserError(
      'there is no image to judge the model by: the test split is empty or unreadable'
    )
  totals_lib.check_finite(sums, f'{"images" if denoising else "logits"} of the model')
  measured = {name: totals_lib.value_of(sums[name]) for name in sums if name not in _INNER}
  return {
    name: count if name == 'count' else float(value) / count for name, value in measured.items()
  }


def _replicated_totals(mesh: Mesh, robust: bool, denoising: bool) -> Any:
  # Built with the sharding that the step returns, so that its first call compiles for good.
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  return {
    name: jax.make_array_from_process_local_data(sharding, zero)
    for name, zero in zero_totals(robust, denoising).items()
  }
