"""Reads the files that PyTorch users keep weights in, without PyTorch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from rest_jax.errors import UserError
from rest_jax.models import pth

_TORCH_SUFFIXES = ('.pth', '.pt', '.bin', '.tar')
_MOST_WRAPPINGS = 8
_PLAIN, _EMA = ('model', 'state_dict'), ('model_ema', 'state_dict_ema')


def load_state_dict(path: str | os.PathLike[str], *, ema: bool = False) -> dict[str, np.ndarray]:
  """Reads a PyTorch checkpoint or a safetensors file.

  Args:
    path: `.safetensors`, or `.pth`, `.pt`, `.bin`, `.tar` as PyTorch saves them (`models.pth` reads
      them; nothing of a file is executed). The state dict may stand alone or under 'model',
      'model_ema', 'state_dict' or 'state_dict_ema', and its names may begin with 'module.'.
    ema: take the averaged weights of a checkpoint that has both.

  Returns:
    {name: array}; floats of less than 32 bits as float32.

  Raises:
    UserError: no such file, not a checkpoint, cut off, or one that needs more than tensors.
  """
  path = Path(path)
  if not path.is_file():
    raise UserError(f'there is no checkpoint {path}')
  if path.suffix == '.safetensors':
    tensors: Mapping[str, Any] = _read_safetensors(path)
    if ema:
      raise UserError(f'{path} holds one set of weights: ask for it without ema')
  elif path.suffix in _TORCH_SUFFIXES:
    tensors = _unwrap(_read_pth(path), path, ema)
  else:
    known = ', '.join(('.safetensors', *_TORCH_SUFFIXES))
    raise UserError(f'{path}: a checkpoint ends in one of {known}')
  tensors = {name: _to_numpy(tensor) for name, tensor in tensors.items()}
  if tensors and all(name.startswith('module.') for name in tensors):
    tensors = {name.removeprefix('module.'): tensor for name, tensor in tensors.items()}
  return tensors


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
  try:
    return safetensors.numpy.load_file(path)
  except (OSError, safetensors.SafetensorError) as error:
    raise UserError(f'{path} is no complete safetensors file: {error}') from error


def _read_pth(path: Path) -> Any:
  return pth.read(path)


def _unwrap(content: Any, path: Path, ema: bool) -> Mapping[str, Any]:
  """Finds the state dict in what a training script saved."""
  for _ in range(_MOST_WRAPPINGS):  # a file can hold itself
    if not isinstance(content, Mapping):
      break
    if not ema and content and all(map(_is_weight, content, content.values())):
      return content
    wanted = _EMA if ema else _PLAIN + _EMA
    present = [key for key in wanted if isinstance(content.get(key), Mapping)]
    if not present:
      break
    content, ema = content[present[0]], False
  if ema:
    raise UserError(f'{path} has no averaged weights ({" or ".join(_EMA)})')
  found = type(content).__name__
  if isinstance(content, Mapping):
    found = f'keys {[str(key)[:80] for key in list(content)[:10]]}'
  raise UserError(f'{path} holds no state dict: found {found}')


def _is_weight(name: Any, value: Any) -> bool:
  return isinstance(name, str) and hasattr(value, 'shape') and hasattr(value, 'dtype')


def _to_numpy(tensor: Any) -> np.ndarray:
  """An array of what stands for one; floats of less than 32 bits become float32, exactly."""
  array = np.asarray(tensor)
  narrow = array.dtype.itemsize < 4 and array.dtype.kind not in 'iub'
  return array.astype(np.float32) if narrow else array
