"""Reads the files that PyTorch users keep weights in; PyTorch itself only for its own format."""

from __future__ import annotations

import argparse
import importlib
import os
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from rest_jax.errors import UserError
from rest_jax.paths import local

_TORCH_SUFFIXES = ('.pth', '.pt', '.bin', '.tar')
_PLAIN, _EMA = ('model', 'state_dict'), ('model_ema', 'state_dict_ema')


def load_state_dict(path: str | os.PathLike[str], *, ema: bool = False) -> dict[str, np.ndarray]:
  """Reads a PyTorch checkpoint or a safetensors file.

  Args:
    path: `.safetensors`, or `.pth`, `.pt`, `.bin`, `.tar`, which need PyTorch to be installed and
      are read with `weights_only=True`. The state dict may stand alone or under 'model',
      'model_ema', 'state_dict' or 'state_dict_ema', and its names may begin with 'module.'.
    ema: take the averaged weights of a checkpoint that has both.

  Returns:
    {name: array}; half precision as float32.

  Raises:
    UserError: no such file, not a checkpoint, cut off, or PyTorch is missing.
  """
  path = local(path, 'the checkpoint')
  if not path.is_file():
    raise UserError(f'there is no checkpoint {path}')
  if path.suffix == '.safetensors':
    tensors: Mapping[str, Any] = _read_safetensors(path)
    if ema:
      raise UserError(f'{path} holds one set of weights: ask for it without ema')
  elif path.suffix in _TORCH_SUFFIXES:
    tensors = _unwrap(_read_torch(path), path, ema)
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


def _read_torch(path: Path) -> Any:
  try:
    torch: Any = importlib.import_module('torch')
  except ImportError as error:
    raise UserError(
      f"{path} needs PyTorch to be read: pip install 'rest-jax[torch]', "
      'or convert the file to .safetensors'
    ) from error
  try:
    # Training scripts keep their flags beside the weights; a Namespace holds plain values only.
    with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
      # What it warns of (another pickle protocol) it then reads or refuses, which is enough.
      warnings.simplefilter('ignore')
      return torch.load(path, map_location='cpu', weights_only=True)
  except pickle.UnpicklingError as error:
    reason = 'it is damaged, no PyTorch checkpoint, or holds Python objects beside its tensors'
    raise UserError(f'{path} was not read: {reason}') from error
  except (OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError) as error:
    raise UserError(f'{path} is no complete PyTorch checkpoint: {error}') from error


def _unwrap(content: Any, path: Path, ema: bool) -> Mapping[str, Any]:
  """Finds the state dict in what a training script saved."""
  while isinstance(content, Mapping):
    if not ema and content and all(_is_tensor(value) for value in content.values()):
      return content
    wanted = _EMA if ema else _PLAIN + _EMA
    present = [key for key in wanted if isinstance(content.get(key), Mapping)]
    if not present:
      break
    content, ema = content[present[0]], False
  if ema:
    raise UserError(f'{path} has no averaged weights ({" or ".join(_EMA)})')
  found = f'keys {list(content)[:10]}' if isinstance(content, Mapping) else type(content).__name__
  raise UserError(f'{path} holds no state dict: found {found}')


def _is_tensor(value: Any) -> bool:
  return hasattr(value, 'shape') and hasattr(value, 'dtype')


def _to_numpy(tensor: Any) -> np.ndarray:
  """An array of a PyTorch tensor or of an array; half precision becomes float32, exactly."""
  if not isinstance(tensor, np.ndarray):
    tensor = (tensor.detach().float() if tensor.is_floating_point() else tensor).numpy()
  half = tensor.dtype.itemsize == 2 and tensor.dtype.kind not in 'iub'
  return tensor.astype(np.float32) if half else tensor
