"""Weights of PyTorch in and out, exactly and without PyTorch: its files, its state dicts.

`load_state_dict` reads the files that PyTorch users keep weights in, `from_pytorch` makes a model's
variables of them, `to_pytorch` goes back. Names and layouts are in `pytorch_names`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import linen as nn

from rest_jax.errors import UserError
from rest_jax.models import model_dir, pth
from rest_jax.models.compression import is_compressor
from rest_jax.models.pytorch_names import Target, table_for, target
from rest_jax.ops.platform import jit
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


class HeadAdvice(NamedTuple):
  """What to do about a checkpoint's head, in the words of whoever asked for it.

  Attributes:
    other: where it has another number of classes than the model.
    missing: where the checkpoint has none.
  """

  other: str
  missing: str


_HEAD = 'params/head/'
_ADVICE = HeadAdvice(
  'drop_head=True leaves it out and starts a new one',
  'num_classes=0 makes a model without one, drop_head=True starts a new one',
)
# For commands that judge a model, which takes its classes from the file.
JUDGING_ADVICE = HeadAdvice(
  'give --model another checkpoint',
  'a model without one decides nothing; give --model a checkpoint that has one',
)
_log = logging.getLogger(__name__)


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


def from_pytorch(
  state_dict: Mapping[str, Any],
  model: nn.Module,
  *,
  drop_head: bool = False,
  key: jax.Array | None = None,
  head_advice: HeadAdvice = _ADVICE,
) -> dict[str, Any]:
  """Turns a PyTorch state dict into a model's variables.

  Args:
    state_dict: {PyTorch name: array} under the names of the authors' checkpoints (ResT, ResTv2) or
      torchvision's (ResNet), also behind the prefixes and inside of the dictionaries that
      `load_state_dict` understands; num_batches_tracked may be absent, it becomes 0.
    model: a model of the registry. Layers of band compression, which no checkpoint has, start new.
    drop_head: leave the file's classifier out and initialise the model's own; a notice is logged.
    key: for that initialisation; `jax.random.key(0)` by default.
    head_advice: ends an error about the head.

  Returns:
    {'params': ..., 'batch_stats': ...}, float32, batch counts int32.

  Raises:
    UserError: names are missing, unexpected or misshapen, all are listed; or arrays that are used
      hold NaN, infinity or numbers beyond float32, or weights are no floats.
  """
  tensors = unwrap(state_dict, 'what was given') if state_dict else {}
  state_dict = plain_names({name: to_numpy(tensor) for name, tensor in tensors.items()})
  expected = model_dir.abstract_tensors(model)
  new = [path for path in expected if is_compressor(path)]
  if drop_head:
    new += [path for path in expected if path.startswith(_HEAD)]
    state_dict = _without_head(state_dict, model)
  wanted = {path: spec for path, spec in expected.items() if path not in new}
  targets = _targets(wanted, model)
  _check(state_dict, wanted, targets, model, head_advice)
  known = {targets[path].torch_name: spec for path, spec in wanted.items()}
  model_dir.check_floats(state_dict, known, 'the state dict')
  arrays = {path: _convert(state_dict, targets[path], spec) for path, spec in wanted.items()}
  named = {targets[path].torch_name: array for path, array in arrays.items()}
  model_dir.check_finite(named, 'the state dict')
  leaves = jax.device_put(arrays)  # jnp.asarray compiles a program for every shape
  if new:
    leaves |= _fresh(model, new, jax.random.key(0) if key is None else key)
  return model_dir.unflatten({path: leaves[path] for path in expected})


def to_pytorch(variables: Mapping[str, Any], model: nn.Module) -> dict[str, np.ndarray]:
  """The inverse of `from_pytorch`.

  Args:
    variables: the model's variables.
    model: the model they belong to.

  Returns:
    {PyTorch name: contiguous array}; batch counts are int64 scalars.

  Raises:
    UserError: the variables are not the model's, or it has layers of band compression.
  """
  expected = model_dir.abstract_tensors(model)
  if any(map(is_compressor, expected)):
    raise UserError('band compression has no PyTorch counterpart; convert a model without it')
  return state_dict_of(variables, model, expected, _targets(expected, model))


def state_dict_of(
  variables: Mapping[str, Any],
  model: nn.Module,
  expected: Mapping[str, jax.ShapeDtypeStruct],
  targets: Mapping[str, Target | None],
) -> dict[str, np.ndarray]:
  """Variables under PyTorch's names.

  Args:
    variables: the model's variables.
    model: the model they belong to.
    expected: its tensors by path.
    targets: what each is called there; None where it is only ours.

  Returns:
    {PyTorch name: contiguous array}.

  Raises:
    UserError: the variables are not the model's.
  """
  flat = model_dir.flatten(variables)
  wrong = model_dir.misfits(model_dir.shapes(expected), model_dir.shapes(flat))
  if wrong:
    raise UserError(f'the variables do not fit {type(model).__name__}: {wrong}')
  return {
    to.torch_name: np.require(to.transform.to_torch(np.asarray(flat[path])), requirements='C')
    for path, to in targets.items()
    if to is not None
  }


def _targets(paths: Mapping[str, Any], model: nn.Module) -> dict[str, Target]:
  """The PyTorch name and change of layout of every tensor of a model."""
  table, position = table_for(model), getattr(model, 'position', '')
  return {path: target(path, table, position) for path in paths}


def _head_prefix(model: nn.Module) -> str:
  """'head.' or 'fc.': what the classifier's tensors begin with in PyTorch."""
  return target(f'{_HEAD}bias', table_for(model)).torch_name.removesuffix('bias')


def _without_head(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
  prefix = _head_prefix(model)
  dropped = [name for name in state_dict if name.startswith(prefix)]
  classes = getattr(model, 'num_classes', 0)
  fresh = f'a new one for {classes} classes was initialised and has to be trained'
  _log.warning(
    'left out of the file: %s; %s',
    ', '.join(dropped) or 'nothing, it has no head',
    fresh if classes else 'the model has no head',
  )
  return {name: array for name, array in state_dict.items() if name not in dropped}


def _check(
  state_dict: Mapping[str, Any],
  wanted: Mapping[str, jax.ShapeDtypeStruct],
  targets: Mapping[str, Target],
  model: nn.Module,
  advice: HeadAdvice,
) -> None:
  """Raises one error that lists everything that does not fit, in PyTorch's names and layouts."""
  found, expected = model_dir.shapes(state_dict), torch_shapes(state_dict, wanted, targets)
  wrong = model_dir.misfits(expected, found)
  if not wrong:
    return
  hint = _head_hint(found, expected, model, advice)
  raise UserError(f'the state dict does not fit {type(model).__name__}{hint}; {wrong}')


def torch_shapes(
  there: Container[str],
  wanted: Mapping[str, jax.ShapeDtypeStruct],
  targets: Mapping[str, Target | None],
) -> dict[str, tuple[int, ...]]:
  """Shapes that a state dict has to have, in PyTorch's names and layouts.

  Args:
    there: names of the state dict; what older files lack is asked for where it is there.
    wanted: our tensors by path.
    targets: what each is called there; None where it is only ours.
  """
  shapes = {}
  for path, spec in wanted.items():
    to = targets[path]
    if to is not None and (to.torch_name in there or not to.optional):
      # A broadcast scalar has the tensor's shape and no memory.
      shapes[to.torch_name] = to.transform.to_torch(np.broadcast_to(np.int32(0), spec.shape)).shape
  return shapes


def _head_hint(
  found: Mapping[str, Any], expected: Mapping[str, Any], model: nn.Module, advice: HeadAdvice
) -> str:
  """What a misfit has to do with the head: another number of classes, or none at all."""
  prefix = _head_prefix(model)
  bias, head = f'{prefix}bias', [name for name in expected if name.startswith(prefix)]
  if bias in found and found[bias] != expected.get(bias):
    there = found[bias][0] if found[bias] else 'no'
    classes = getattr(model, 'num_classes', 0)
    return f"; the file's head has {there} classes, the model's {classes}: {advice.other}"
  if head and not any(name in found for name in head):
    return f'; the file has no head ({", ".join(head)}): {advice.missing}'
  return ''


def count_classes(state_dict: Mapping[str, Any], model: nn.Module) -> int | None:
  """Outputs of a state dict's head, None where it has none.

  Args:
    state_dict: from `load_state_dict`.
    model: a model of its family, with any number of classes.
  """
  bias = state_dict.get(f'{_head_prefix(model)}bias')
  return None if bias is None or np.ndim(bias) != 1 else int(np.shape(bias)[0])


def _convert(state_dict: Mapping[str, Any], to: Target, spec: jax.ShapeDtypeStruct) -> np.ndarray:
  """One tensor of ours; what older files lack is zero."""
  array = np.asarray(state_dict.get(to.torch_name, np.zeros(spec.shape, spec.dtype)))
  if array.size and spec.dtype == jnp.int32 and array.max() > np.iinfo(np.int32).max:
    raise UserError(f'{to.torch_name} is {array}, more than a 32-bit count holds')
  with np.errstate(over='ignore', invalid='ignore'):  # what is beyond float32 is told by name
    return np.require(to.transform.from_torch(array), spec.dtype, 'C')


def _fresh(model: nn.Module, paths: list[str], key: jax.Array) -> dict[str, jax.Array]:
  """Initial values of some tensors; the compiler leaves the rest of the model out."""

  @jit
  def initialise(key):
    images = jnp.zeros((1, 64, 64, getattr(model, 'in_channels', 3)))
    flat = model_dir.flatten(model.init({'params': key}, images, train=False))
    return {path: flat[path] for path in paths}

  return initialise(key)
