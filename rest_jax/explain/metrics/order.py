"""The one order of a map's pixels, by decreasing saliency, ties spread over the picture.

Pixels of equal saliency say nothing of which comes first. They go in an order that looks random
and is the same everywhere: not by place, which would favour the top of the picture, and not as a
sorting routine leaves them, which depends on the processor. A constant map therefore gets the
score of one random order. The order of tied pixels comes from integer arithmetic on their numbers
and depends on nothing else, neither on the batch nor on a library's generator.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rest_jax.errors import UserError
from rest_jax.explain.maps import ROUNDING


def ranks(maps: Any) -> Any:
  """Each pixel's place, 0 the most salient.

  Args:
    maps: real numbers (B, H, W), any scale.

  Returns:
    int32 (B, H, W): on the host, where XLA would sort slowly, but inside jit.

  Raises:
    UserError: a map that is not finite.
  """
  if isinstance(maps, Tracer):
    return _ranks(maps.astype(jnp.float32), jnp, jnp.argsort)
  maps = np.asarray(jax.device_get(maps), np.float64)
  check_finite_maps(maps)
  return _ranks(maps, np, functools.partial(np.argsort, kind='stable'))


def check_finite_maps(maps: np.ndarray) -> None:
  """Raises `UserError` unless all of (B, H, W) are finite numbers."""
  wrong = np.flatnonzero(~np.isfinite(maps).reshape(len(maps), -1).all(1))
  if len(wrong):
    raise UserError(f'map {wrong[0]} is not finite (nan or inf), so its pixels have no order')


def check_unit_maps(maps: Any) -> None:
  """Raises `UserError` unless all maps are in [0, 1]; nothing inside jit.

  For measures that multiply by them: another scale, or a sign, gives another figure.
  """
  if isinstance(maps, Tracer):
    return
  maps = np.asarray(maps)
  check_finite_maps(maps)
  low, high = float(maps.min()), float(maps.max())
  if low < -ROUNDING or high > 1 + ROUNDING:
    raise UserError(
      f'maps are in [0, 1], got values from {low:.6g} to {high:.6g}; explain.min_max brings them '
      'there, and of signed values .maps of the explanation shows the support'
    )


def _ranks(maps: Any, xp: Any, argsort: Any) -> Any:
  mixed = xp.asarray(mixed_pixels(maps.shape[1] * maps.shape[2]))
  flat = maps.reshape(len(maps), -1)
  # Stable (as JAX sorts anyway): what is equal stays as it was mixed. 0 - x makes one zero of two.
  order = mixed[argsort(0 - flat[:, mixed], axis=1)]
  return argsort(order, axis=1).astype(np.int32).reshape(maps.shape)


@functools.lru_cache(maxsize=32)
def mixed_pixels(count: int) -> np.ndarray:
  """A fixed permutation of 0 to count - 1 without a pattern: by the mixing of SplitMix64."""
  numbers = np.arange(1, count + 1, dtype=np.uint64)
  with np.errstate(over='ignore'):
    numbers *= np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
      numbers = (numbers ^ (numbers >> np.uint64(shift))) * np.uint64(factor)
  mixed = np.argsort(numbers, kind='stable')
  mixed.flags.writeable = False
  return mixed
