"""The model directory: config.json, model.safetensors, labels.txt and README.md, written as one.

Tensors are named by their Linen path with the collection, 'params/stem/conv1/kernel', and nothing
is ever unpickled. `rest_jax.models.classifier` puts the parts together.

Of some models of the zoo the weights come with another Python package: a card here, the file there.
Such a directory has config.json, README.md and package.txt: the name of the package and how to get
it. The package is looked up by its metadata; nothing of it is imported or executed.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Mapping
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import linen as nn
from flax import traverse_util

from rest_jax.errors import UserError
from rest_jax.models.layers import shapes_only
from rest_jax.models.model_config import ModelConfig
from rest_jax.ops.platform import use_form
from rest_jax.paths import local
from rest_jax.text import plural

CONFIG, WEIGHTS, LABELS, CARD = 'config.json', 'model.safetensors', 'labels.txt', 'README.md'
CHECKPOINTS = ('.pth', '.pt', '.bin', '.tar', '.safetensors')
DTYPES = ('float32', 'bfloat16', 'float16')
_SHOWN = 5  # arrays that an error names
PACKAGE = 'package.txt'
_SMALL = 'cifar10 (ten kinds of animals and vehicles) and digit_scenes (handwritten digits)'


def flatten(variables: Mapping[str, Any]) -> dict[str, Any]:
  """A variables tree as {'params/stem/conv1/kernel': leaf}."""
  return traverse_util.flatten_dict(nn.FrozenDict(variables).unfreeze(), sep='/')


def unflatten(tensors: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `flatten`."""
  return traverse_util.unflatten_dict(dict(tensors), sep='/')


def abstract_tensors(module: nn.Module) -> dict[str, jax.ShapeDtypeStruct]:
  """Name, shape and dtype of every tensor of a module; nothing is computed.

  The same module again costs nothing.
  """
  try:
    hash(module)
  except TypeError:  # of one's own, with attributes that are no constants
    return _abstract(module)
  config: Any = jax.config
  return dict(_kept(module, bool(config.jax_enable_x64)))


def _abstract(module: nn.Module) -> dict[str, jax.ShapeDtypeStruct]:
  channels = getattr(module, 'in_channels', 3)
  images = jax.ShapeDtypeStruct((1, 64, 64, channels), jnp.float32)

  def init(x):
    return module.init({'params': jax.random.key(0)}, x, train=False)

  with shapes_only(), use_form('plain'):  # the form of the fewest operations
    return flatten(jax.eval_shape(init, images))


@functools.lru_cache(maxsize=32)
def _kept(module: nn.Module, wide: bool) -> dict[str, jax.ShapeDtypeStruct]:
  del wide  # the dtypes hang on it
  return _abstract(module)


def shapes(tensors: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
  """{name: shape} of arrays, or of what stands for them."""
  return {name: tuple(np.shape(tensor)) for name, tensor in tensors.items()}


def misfits(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> str:
  """Counts and lists missing, unexpected and misshapen names; empty when both agree.

  Args:
    expected: {name: shape} of the model.
    found: {name: shape} of the file.
  """
  missing = [n for n in expected if n not in found]
  unexpected = [n for n in found if n not in expected]
  misshapen = [
    f'{n} is {found[n]}, not {shape}'
    for n, shape in expected.items()
    if n in found and found[n] != shape
  ]
  kinds = {'missing': missing, 'unexpected': unexpected, 'misshapen': misshapen}
  present = {kind: names for kind, names in kinds.items() if names}
  # Counts first: the names of another model's file fill a screen.
  counts = ', '.join(f'{len(names)} {kind}' for kind, names in present.items())
  lists = [f'{kind}: {", ".join(names)}' for kind, names in present.items()]
  return '; '.join([counts, *lists]) if present else ''


def check_finite(tensors: Mapping[str, Any], where: str) -> None:
  """Refuses weights that are not numbers.

  Args:
    tensors: {name: array} on the host.
    where: what they are the weights of.

  Raises:
    UserError: names arrays with NaN or infinite values, and how many values those are.
  """
  broken = {}
  for name, tensor in tensors.items():
    array = np.asarray(tensor)
    if jnp.issubdtype(array.dtype, jnp.floating) and not np.isfinite(array).all():
      broken[name] = f'{name} ({int((~np.isfinite(array)).sum())} of {array.size} values)'
  if broken:
    shown, more = list(broken.values())[:_SHOWN], len(broken) - _SHOWN
    raise UserError(
      f'{where}: {len(broken)} of {len(tensors)} arrays hold NaN or infinity: {", ".join(shown)}'
      f'{f" and {more} more" if more > 0 else ""}; the training diverged, or the numbers were '
      'beyond the type they were stored in; take another checkpoint'
    )


def check_floats(
  tensors: Mapping[str, Any], expected: Mapping[str, jax.ShapeDtypeStruct], where: str
) -> None:
  """Refuses whole numbers, truths and complex numbers in the place of weights.

  Args:
    tensors: {name: array}.
    expected: what the model has under some of these names; what is not there is for others to say.
    where: what they are the weights of.

  Raises:
    UserError: names them; the whole numbers of a quantised model mean nothing without their scales.
  """
  wrong = [
    f'{name} ({np.asarray(tensors[name]).dtype})'
    for name, spec in expected.items()
    if name in tensors
    and jnp.issubdtype(spec.dtype, jnp.floating)
    and not jnp.issubdtype(np.asarray(tensors[name]).dtype, jnp.floating)
  ]
  if wrong:
    more = f' and {len(wrong) - _SHOWN} more' if len(wrong) > _SHOWN else ''
    raise UserError(
      f'{where}: weights are floats, unlike {", ".join(wrong[:_SHOWN])}{more}; take a checkpoint '
      'that is not quantised'
    )


def zoo_names() -> list[str]:
  """The models that come with the package."""
  zoo = Path(str(resources.files('rest_jax'))) / 'zoo'
  return sorted(path.parent.name for path in zoo.glob(f'*/{CONFIG}'))


def checkpoint(name: str | os.PathLike[str]) -> Path | None:
  """The file that a name stands for where it is one of PyTorch's kinds, else None.

  The weights of a model directory are no checkpoint: their directory is the model.

  Raises:
    UserError: it ends as a checkpoint does, and there is none.
  """
  path = local(name, 'the model')
  if path.is_dir() or (path.name == WEIGHTS and (path.parent / CONFIG).is_file()):
    return None
  if path.suffix.lower() not in CHECKPOINTS:
    return None
  if not path.is_file():
    raise UserError(f'there is no checkpoint {path}: check the path')
  return path


def resolve(name: str | os.PathLike[str]) -> Path:
  """The directory of a model.

  Args:
    name: a model directory (or its model.safetensors), the work directory of a training, or the
      name of a model of the zoo.

  Raises:
    UserError: none of these.
  """
  path = local(name, 'the model')
  path = path.parent if path.name == WEIGHTS and path.is_file() else path
  if (path / 'model' / WEIGHTS).is_file() and not (path / WEIGHTS).is_file():
    return path / 'model'
  if (path / 'checkpoints').is_dir() and not (path / WEIGHTS).is_file():
    raise UserError(
      f'{path} is the work directory of a training that has left no model yet: it writes model/ at '
      'its first evaluation'
    )
  if (path / CONFIG).is_file():
    return path
  if str(name) in zoo_names():
    return Path(str(resources.files('rest_jax'))) / 'zoo' / str(name)
  if path.is_dir():
    raise UserError(f'{path} is not a model directory: it has no {CONFIG}')
  if path.is_file():
    raise UserError(
      f'{path} is a file of another kind: a model directory, a checkpoint '
      f'({", ".join(CHECKPOINTS)}) or a zoo name ({", ".join(zoo_names())}) is needed'
    )
  raise UserError(
    f'no model directory and no zoo model is called {name}; the zoo has {", ".join(zoo_names())}'
  )


def write(
  directory: str | os.PathLike[str],
  config: ModelConfig,
  variables: Mapping[str, Any],
  class_names: tuple[str, ...],
  *,
  card: str,
  dtype: str = 'float32',
  overwrite: bool = True,
) -> None:
  """Writes a model directory beside its place and then renames it, so that it is never half there.

  Args:
    directory: an existing model directory is replaced, its other files are kept.
    config: what config.json gets.
    variables: the model's variables.
    class_names: a line of labels.txt each.
    card: the text of README.md.
    dtype: 'float32', 'bfloat16' or 'float16', for tensors that are floats.
    overwrite: whether an existing model directory may be replaced.

  Raises:
    UserError: the place is taken by something else, or cannot be written, or the weights are not
      finite, which no reader takes.
  """
  if dtype not in DTYPES:
    raise UserError(f'a model directory stores {", ".join(DTYPES)}, not {dtype}')
  stored = _stored(variables, dtype)
  check_finite(stored, f'weights for {directory} as {dtype}')
  place = local(directory, 'the model directory').resolve()
  partial = place.with_name(f'.{place.name}.partial')
  try:
    _settle(place)
    _check_place(place, overwrite)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (partial / CONFIG).write_text(config.to_json(), encoding='utf-8')
    # Not save_file: that makes a file which only its owner may read.
    (partial / WEIGHTS).write_bytes(safetensors.numpy.save(stored))
    (partial / LABELS).write_text(''.join(f'{n}\n' for n in class_names), encoding='utf-8')
    (partial / CARD).write_text(card, encoding='utf-8')
    _swap(partial, place)
  except (OSError, safetensors.SafetensorError) as error:
    raise UserError(f'cannot write the model directory {place}: {error}') from error
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _check_place(place: Path, overwrite: bool) -> None:
  """Refuses a place that holds anything but a model directory."""
  if not place.exists() or (place.is_dir() and not any(place.iterdir())):
    return
  if not (place / CONFIG).is_file():
    raise UserError(f'{place} exists and is not a model directory: choose another place')
  if not overwrite:
    raise UserError(f'{place} holds a model already: choose another place or allow overwriting')


def _stored(variables: Mapping[str, Any], dtype: str) -> dict[str, np.ndarray]:
  """The tensors as they go into the file: contiguous, floats in `dtype`."""
  arrays = {name: np.asarray(leaf) for name, leaf in flatten(variables).items()}
  with np.errstate(over='ignore'):
    return {
      name: np.require(
        a.astype(jnp.dtype(dtype)) if jnp.issubdtype(a.dtype, jnp.floating) else a,
        requirements='C',
      )
      for name, a in arrays.items()
    }


def _swap(new: Path, place: Path) -> None:
  """Puts `new` in the place of a directory that may exist."""
  if place.exists():
    place.rename(_old(place))
  try:
    new.rename(place)
  finally:
    _settle(place)


def _old(place: Path) -> Path:
  return place.with_name(f'.{place.name}.old')


def _settle(place: Path) -> None:
  """Ends a swap, of now or of a process that was killed: what only the old one had moves over."""
  old = _old(place)
  if not old.exists():
    return
  if not place.exists():
    old.rename(place)
    return
  for extra in old.iterdir():
    if not (place / extra.name).exists():
      extra.rename(place / extra.name)
  shutil.rmtree(old)


def read_config(directory: Path) -> ModelConfig:
  """Reads config.json.

  Raises:
    UserError: it cannot be read or is wrong; the message names the file.
  """
  path = directory / CONFIG
  try:
    return ModelConfig.from_json(path.read_text(encoding='utf-8-sig'))
  except (OSError, UnicodeDecodeError, UserError) as error:
    raise UserError(f'{path}: {error}') from error


def is_packaged(directory: Path) -> bool:
  """Whether a model directory leaves its weights to a package."""
  return (directory / PACKAGE).is_file()


def packaged_checkpoint(directory: Path) -> Path:
  """The weights of such a model, a `.pth` inside the installed package.

  Raises:
    UserError: the package is not installed, or has no weights.
  """
  package, hint = (directory / PACKAGE).read_text(encoding='utf-8').splitlines()[:2]
  try:
    files = metadata.distribution(package).files or []
  except metadata.PackageNotFoundError as error:
    raise UserError(
      f'{directory.name} has its weights in the package {package}, which is not installed: '
      f'{hint}; without it there are {_SMALL}'
    ) from error
  found = [Path(str(file.locate())) for file in files if file.suffix == '.pth']
  if not found or not found[0].is_file():
    raise UserError(f'the package {package} has no weights: install it again, {hint}')
  return found[0]


def read_labels(directory: Path, num_classes: int) -> tuple[str, ...]:
  """Reads labels.txt, a class a line.

  Raises:
    UserError: it cannot be read or has not `num_classes` lines; the message names the file.
  """
  path = directory / LABELS
  try:
    names = tuple(path.read_text(encoding='utf-8-sig').splitlines())
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f'{path}: {error}') from error
  if (blank := names.count('')) and len(names) == num_classes:
    raise UserError(f'{path}: {plural(blank, "line")} without a class name')
  if len(names) != num_classes:
    raise UserError(
      f'{path} has {plural(len(names), "line")}, the model {plural(num_classes, "class")}'
    )
  return names


def read_variables(directory: Path, expected: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
  """Reads model.safetensors.

  Args:
    directory: the model directory.
    expected: the module's `abstract_tensors`.

  Returns:
    The variables tree, in the expected dtypes.

  Raises:
    UserError: the file cannot be read, does not fit, or holds NaN, infinity or whole numbers for
      weights; the message names the file.
  """
  path = directory / WEIGHTS
  try:
    tensors = safetensors.numpy.load_file(path)
  except (OSError, safetensors.SafetensorError) as error:
    raise UserError(f'{path}: {error}') from error
  wrong = misfits(shapes(expected), shapes(tensors))
  if wrong:
    raise UserError(f'{path} does not fit its {CONFIG}: {wrong}')
  check_floats(tensors, expected, str(path))
  with np.errstate(over='ignore'):  # what is beyond float32 is told below
    cast = {n: tensors[n].astype(s.dtype) for n, s in expected.items()}
  check_finite(cast, str(path))
  return unflatten(jax.device_put(cast))  # jnp.asarray compiles a program for every shape
