"""This process as it would be with fewer devices."""

import contextlib

import jax
import pytest


@contextlib.contextmanager
def devices(count):
  """The first of all devices, `count` of them, are those that evaluations see."""
  first = jax.devices()[:count]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, 'local_devices', lambda: first)
    patch.setattr(jax, 'local_device_count', lambda: count)
    yield
