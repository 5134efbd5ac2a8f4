"""The work of this project, by task; run in a process of its own (`benchmarks/worker.py`)."""

from __future__ import annotations

import os
from typing import Any

import jax


def begin(device: str) -> None:
  """The device is chosen by JAX_PLATFORMS, which the process was started with."""
  found = jax.default_backend()
  if device == 'gpu' and found == 'cpu':
    raise RuntimeError('JAX sees no GPU here')


def about() -> dict[str, Any]:
  """Versions, device and threads."""
  import jaxlib.version

  versions = {'jax': jax.__version__, 'jaxlib': jaxlib.version.__version__}
  return {
    'versions': versions,
    'device': jax.devices()[0].device_kind,
    'threads': len(os.sched_getaffinity(0)),
  }


def device_peak() -> int | None:
  """Most bytes that the device has held; None where memory is the process's own."""
  if jax.default_backend() == 'cpu':
    return None
  return (jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use')


def held() -> int:
  """Bytes of all arrays that are there."""
  return sum(array.nbytes for array in jax.live_arrays())


def forget() -> None:
  """Drops compiled programs."""
  jax.clear_caches()
