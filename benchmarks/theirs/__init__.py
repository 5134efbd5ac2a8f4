"""The work of the peers, in PyTorch, by task; needs nothing of this project but `benchmarks`."""

from __future__ import annotations

import gc
import os
from typing import Any

import torch

DEVICE = 'cpu'


def begin(device: str) -> None:
  """Chooses the device of all tasks."""
  global DEVICE
  if device == 'gpu' and not torch.cuda.is_available():
    raise RuntimeError('PyTorch sees no GPU here')
  DEVICE = 'cuda' if device == 'gpu' else 'cpu'
  torch.manual_seed(0)


def about() -> dict[str, Any]:
  """Versions, device and threads."""
  chip = torch.cuda.get_device_name() if DEVICE == 'cuda' else f'CPU, {os.cpu_count()} cores'
  versions = {'torch': torch.__version__}
  return {'versions': versions, 'device': chip, 'threads': torch.get_num_threads()}


def device_peak() -> int | None:
  """Most bytes that the device has held; None where memory is the process's own."""
  return torch.cuda.max_memory_allocated() if DEVICE == 'cuda' else None


def held() -> int:
  """Bytes of all tensors that are there, gradients too."""
  tensors = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
  tensors += [each.grad for each in tensors if each.is_leaf and each.grad is not None]
  storages = [each.untyped_storage() for each in tensors if each.device.type != 'meta']
  return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def forget() -> None:
  """Hands the device's memory back."""
  if DEVICE == 'cuda':
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def done() -> None:
  """Waits for the device."""
  if DEVICE == 'cuda':
    torch.cuda.synchronize()
