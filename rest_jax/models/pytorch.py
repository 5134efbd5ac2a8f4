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
from rest_jax.paths import local

_TORCH_SUFFIXES = ('.pth', '.pt', '.bin', '.tar')
_MOST_WRAPPINGS = 8
_PLAIN = ('model', 'state_dict', 'model_state_dict', 'net', 'module')
_EMA = ('model_ema', 'state_dict_ema', 'ema')
# What wrappers put before all names, in any order and number.
_PREFIXES = ('module.', 'model.', 'backbone.', 'net.')
# What compilers and sharders put anywhere into a name, and what profilers count beside the weights.
_WRAPPERS = ('_orig_mod', '_fsdp_wrapped_module', '_checkpoint_wrapped_module')
_COUNTERS = ('total_ops', 'total_params')


def load_state_dict(path: str | os.PathLike[str], *, ema: bool = False) -> dict[str, np.ndarray]:
  """Reads a PyTorch checkpoint or a safetensors file.

  Args:
    path: `.safetensors`, or `.pth`, `.pt`, `.bin`, `.tar` as PyTorch saves them (`models.pth` reads
      them; nothing of a file is executed). The state dict may stand alone or under 'model',
      'model_ema', 'state_dict' or 'state_dict_ema', one in another; `plain_names` says which
      prefixes of its names are understood.
    ema: take the averaged weights of a checkpoint that has both.

  Returns:
    {name: array}; floats of less than 32 bits as float32.

  Raises:
    UserError: no such file, not a checkpoint, cut off, or one that needs more than tensors.
  """
  path = local(path, 'the checkpoint')
  if not path.is_file():
    raise UserError(f'there is no checkpoint {path}')
  if path.suffix == '.safetensors':
    tensors: Mapping[str, Any] = _read_safetensors(path)
    if ema:
      raise UserError(f'{path} holds one set of weights: ask for it without ema')
  elif path.suffix in _TORCH_SUFFIXES:
    tensors = unwrap(_read_pth(path), path, ema)
  else:
    known = ', '.join(('.safetensors', *_TORCH_SUFFIXES))
    raise UserError(f'{path}: a checkpoint ends in one of {known}')
  return plain_names({name: to_numpy(tensor) for name, tensor in tensors.items()})


def plain_names(tensors: Mapping[str, Any]) -> dict[str, Any]:
  """Names without what wrappers put before them: those of the model by itself.

  'module.' (data parallel), 'model.', 'net.' and 'backbone.' are left out where all names begin so,
  again and again; '_orig_mod.' (torch.compile) and the like wherever they stand; and so are the
  counters of profilers, 'total_ops' and 'total_params', whole.

  Args:
    tensors: {name: array}.

  Returns:
    The same arrays.

  Raises:
    UserError: two names become one.
  """
  named: dict[str, Any] = {}
  for name, tensor in tensors.items():
    if name.rpartition('.')[2] in _COUNTERS:
      continue
    name = '.'.join(part for part in name.split('.') if part not in _WRAPPERS)
    if name in named:
      raise UserError(f'the state dict holds {name} twice, by itself and inside of a wrapper')
    named[name] = tensor
  while named:
    common = next((p for p in _PREFIXES if all(name.startswith(p) for name in named)), None)
    if common is None:
      break
    named = {name.removeprefix(common): tensor for name, tensor in named.items()}
  return named


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
  try:
    return safetensors.numpy.load_file(path)
  except (OSError, safetensors.SafetensorError) as error:
    raise UserError(f'{path} is no complete safetensors file: {error}') from error


def _read_pth(path: Path) -> Any:
  return pth.read(path)


def unwrap(content: Any, path: Path | str, ema: bool = False) -> Mapping[str, Any]:
  """Finds the state dict in what a training script saved.

  Args:
    content: what was read.
    path: what an error calls it.
    ema: take averaged weights.

  Returns:
    {name: tensor}.

  Raises:
    UserError: there is none.
  """
  for _ in range(_MOST_WRAPPINGS):  # a file can hold itself
    if not isinstance(content, Mapping):
      break
    if not ema and content and all(map(_is_entry, content.items())):
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


def _is_entry(item: tuple[Any, Any]) -> bool:
  """Whether (name, value) is a named tensor."""
  name, value = item
  return isinstance(name, str) and hasattr(value, 'shape') and hasattr(value, 'dtype')


def to_numpy(tensor: Any) -> np.ndarray:
  """An array of a PyTorch tensor or of an array; floats of less than 32 bits become float32."""
  if not hasattr(tensor, 'detach'):
    array = np.asarray(tensor)
  else:
    array = (tensor.detach().float() if tensor.is_floating_point() else tensor).numpy()
  narrow = array.dtype.itemsize < 4 and array.dtype.kind not in 'iub'
  return array.astype(np.float32) if narrow else array
