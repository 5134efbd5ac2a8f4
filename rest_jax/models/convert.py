"""Official PyTorch weights in and out, exactly.

`python -m rest_jax.models.convert rest_small.pth --architecture rest_small --output DIRECTORY`
writes a model directory that `Classifier.load` and every script takes.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from rest_jax.command_line import Parser
from rest_jax.errors import UserError, run_script
from rest_jax.models import model_dir, registry
from rest_jax.models.classifier import Classifier
from rest_jax.models.compression import is_compressor
from rest_jax.models.pytorch_names import Target, table_for, target
from rest_jax.models.pytorch import load_state_dict, plain_names, to_numpy, unwrap
from rest_jax.paths import check_folder, local
from rest_jax.text import markdown_code, plural

__all__ = ['from_pytorch', 'load_state_dict', 'main', 'to_pytorch']


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
_COMMAND_ADVICE = HeadAdvice(
  'leave --num_classes out to take it, or give --drop_head to start a new one',
  '--num_classes 0 makes a model without one, --drop_head starts a new one',
)
# For commands that judge a model, which takes its classes from the file.
JUDGING_ADVICE = HeadAdvice(
  'give --model another checkpoint',
  'a model without one decides nothing; give --model a checkpoint that has one',
)
_log = logging.getLogger(__name__)


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
      hold NaN, infinity or numbers beyond float32.
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
  arrays = {path: _convert(state_dict, targets[path], spec) for path, spec in wanted.items()}
  named = {targets[path].torch_name: array for path, array in arrays.items()}
  model_dir.check_finite(named, 'the state dict')
  leaves = {path: jnp.asarray(array) for path, array in arrays.items()}
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
  expected, flat = model_dir.abstract_tensors(model), model_dir.flatten(variables)
  wrong = model_dir.misfits(model_dir.shapes(expected), model_dir.shapes(flat))
  if wrong:
    raise UserError(f'the variables do not fit {type(model).__name__}: {wrong}')
  if any(map(is_compressor, expected)):
    raise UserError('band compression has no PyTorch counterpart; convert a model without it')
  targets = _targets(expected, model)
  return {
    targets[path].torch_name: np.require(
      targets[path].transform.to_torch(np.asarray(flat[path])), requirements='C'
    )
    for path in expected
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
  found, expected = model_dir.shapes(state_dict), {}
  for path, spec in wanted.items():
    name, transform, optional = targets[path]
    if name in found or not optional:
      # A broadcast scalar has the tensor's shape and no memory.
      expected[name] = transform.to_torch(np.broadcast_to(np.int32(0), spec.shape)).shape
  wrong = model_dir.misfits(expected, found)
  if not wrong:
    return
  hint = _head_hint(found, expected, model, advice)
  raise UserError(f'the state dict does not fit {type(model).__name__}{hint}; {wrong}')


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

  @jax.jit
  def initialise(key):
    images = jnp.zeros((1, 64, 64, getattr(model, 'in_channels', 3)))
    flat = model_dir.flatten(model.init({'params': key}, images, train=False))
    return {path: flat[path] for path in paths}

  return initialise(key)


def _parser() -> argparse.ArgumentParser:
  parser = Parser(
    prog='python -m rest_jax.models.convert',
    description='Turns a PyTorch checkpoint into a model directory.',
  )
  parser.add_argument('checkpoint', help='.safetensors, or .pth/.pt/.bin')
  parser.add_argument(
    *('--architecture', '--model_name', '--model'),
    required=True,
    help='name of the model, such as rest_small',
  )
  parser.add_argument('--output', '--out', required=True, help='model directory to write')
  parser.add_argument('--num_classes', type=int, help="classes (default: the checkpoint's)")
  parser.add_argument(
    '--drop_head', action='store_true', help="leave the file's classifier out, start a new one"
  )
  parser.add_argument('--ema', action='store_true', help='take the averaged weights (model_ema)')
  parser.add_argument('--labels', help='text file with a class name a line')
  return parser


def main(argv: list[str] | None = None) -> None:
  """The command: reads a checkpoint, writes a model directory.

  Args:
    argv: the command line's words; `sys.argv` by default.

  Raises:
    UserError: a bad file, model or label list.
  """
  args = _parser().parse_args(argv)
  if args.num_classes is not None and args.num_classes < 0:
    raise UserError(f'--num_classes is 0 or more, not {args.num_classes}')
  registry.create_model(args.architecture)
  output = check_folder(local(args.output, '--output'))
  names = _labels(args.labels) if args.labels else None
  if args.drop_head and args.num_classes is None and names is None:
    raise UserError('--drop_head starts a new head: say for how many classes with --num_classes')
  if names is not None and args.num_classes not in (None, len(names)):
    raise UserError(f'{args.labels} has {len(names)} lines, --num_classes says {args.num_classes}')
  classifier = Classifier.from_pytorch(
    local(args.checkpoint, 'the checkpoint'),
    model=args.architecture,
    num_classes=args.num_classes,
    drop_head=args.drop_head,
    ema=args.ema,
    class_names=names,
    head_advice=_COMMAND_ADVICE,
  )
  classifier.save(output, card=_card(args))
  print(f'wrote {output}: {args.architecture}, {plural(classifier.num_classes, "class")}')


def _labels(path: str) -> tuple[str, ...]:
  try:
    return tuple(local(path, '--labels').read_text(encoding='utf-8').splitlines())
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f'the label file {path} cannot be read: {error}') from error


def _card(args: argparse.Namespace) -> str:
  head = 'The head is newly initialised.' if args.drop_head else "The head is the checkpoint's."
  name = markdown_code(Path(args.checkpoint).name)
  start = f'# {args.architecture}\n\nConverted from {name}, every tensor exactly.'
  return f'{start} {head} Not measured here.\n'


if __name__ == '__main__':
  run_script(main)
