"""Where a run took place: versions, devices, command."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shlex
import sys
from collections.abc import Iterable
from typing import Any

import jax

_PACKAGES = (
    'rest-jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain',
    'tensorflow-datasets', 'numpy', 'ml-collections',
)  # fmt: skip


def versions_of(packages: Iterable[str]) -> dict[str, str | None]:
  """The versions of packages by their names, None of what is not installed."""
  found: dict[str, str | None] = dict.fromkeys(packages)
  for package in found:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[package] = importlib.metadata.version(package)
  return found


def command_line() -> str:
  """Returns the command that started this process, as a user would type it."""
  name = os.path.basename(sys.argv[0])
  begun = ['python', '-m', 'rest_jax'] if name == '__main__.py' else ['python', name]
  # The entry point of the package, rest-jax, is a program by itself.
  return shlex.join([*(begun if name.endswith('.py') else [name]), *sys.argv[1:]])


def describe_devices() -> str:
  """Returns the devices in words, for example '4 x NVIDIA H200' or 'CPU (2 cores, x86_64)'."""
  devices = jax.devices()
  kind = devices[0].device_kind
  if devices[0].platform == 'cpu':
    count = f'{len(devices)} devices, ' if len(devices) > 1 else ''
    return f'CPU ({count}{os.cpu_count()} cores, {platform.machine()})'
  return f'{len(devices)} x {kind}'


def devices_used(most: int = sys.maxsize) -> str:
  """Returns the devices of this process that `most` pieces of work can be shared over.

  Args:
    most: pieces that one device takes at a time; enough for all by default.

  Returns:
    For example '4 x NVIDIA H200'.
  """
  devices = jax.local_devices()
  return f'{min(len(devices), most)} x {devices[0].device_kind}'


def environment() -> dict[str, Any]:
  """Returns what `environment.json` holds; all values are JSON."""
  return {
    'command': command_line(),
    'python': platform.python_version(),
    'system': platform.platform(),
    'packages': versions_of(_PACKAGES),
    'devices': describe_devices(),
    'backend': jax.default_backend(),
    'device_count': jax.device_count(),
    'process_count': jax.process_count(),
    'cpu_count': os.cpu_count(),
    'xla_flags': os.environ.get('XLA_FLAGS', ''),
  }
