"""The model directory: config.json, model.safetensors, labels.txt and README.md, written as one.

Tensors are named by their Linen path with the collection, 'params/stem/conv1/kernel', and nothing
is ever unpickled. `rest_jax.models.classifier` puts the parts together.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from importlib import resources
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

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CONFIG, WEIGHTS, LABELS, CARD = 'config.json', 'model.safetensors', 'labels.txt', 'README.md'
DTYPES = ('float32', 'bfloat16')
RESIZE_POLICIES = ('squash', 'resize_crop')
INTERPOLATIONS = ('bicubic', 'bilinear')


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """What config.json says: which model, and how an image becomes its input. Hashable.

  Attributes:
    model: a name of the registry.
    num_classes: 0 for a model without head.
    overrides: (name, value) pairs that `create_model` gets, sequences as tuples.
    mean: a value a channel, in units of [0, 1].
    std: likewise, above 0.
    input_size: pixels a side that `preprocess` makes.
    resize: 'squash' to input_size, or 'resize_crop': shorter side to input_size / crop_pct, then
      the centre.
    crop_pct: in (0, 1].
    interpolation: 'bicubic' or 'bilinear'.

  Raises:
    UserError: a value is not one of those.
  """

  model: str
  num_classes: int
  overrides: tuple[tuple[str, Any], ...] = ()
  mean: tuple[float, ...] = IMAGENET_MEAN
  std: tuple[float, ...] = IMAGENET_STD
  input_size: int = 224
  resize: str = 'resize_crop'
  crop_pct: float = 0.875
  interpolation: str = 'bicubic'

  def __post_init__(self):
    whole = (self.num_classes, self.input_size)
    if any(isinstance(n, bool) or not isinstance(n, int) for n in whole):
      raise UserError(f'num_classes and input_size are whole numbers, not {whole}')
    if self.num_classes < 0 or self.input_size < 1:
      raise UserError(f'num_classes is at least 0 and input_size at least 1, not {whole}')
    numbers = (*self.mean, *self.std, self.crop_pct)
    if any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers):
      raise UserError(f'mean, std and crop_pct are numbers, not {numbers}')
    if not self.mean or len(self.mean) != len(self.std) or min(self.std) <= 0:
      raise UserError(f'mean {self.mean} and std {self.std}: a pair a channel, each std above 0')
    if not 0 < self.crop_pct <= 1:
      raise UserError(f'crop_pct is in (0, 1], not {self.crop_pct}')
    if self.resize not in RESIZE_POLICIES or self.interpolation not in INTERPOLATIONS:
      raise UserError(
        f'resize is one of {RESIZE_POLICIES} and interpolation one of {INTERPOLATIONS}, '
        f'not {self.resize!r} and {self.interpolation!r}'
      )

  def to_json(self) -> str:
    """The text of config.json."""
    fields = dataclasses.asdict(self) | {'overrides': dict(self.overrides)}
    return json.dumps(fields, indent=2) + '\n'

  @classmethod
  def from_json(cls, text: str) -> ModelConfig:
    """Reads `to_json`'s text.

    Raises:
      UserError: not JSON, an unknown or missing key, or a value out of its range.
    """
    try:
      fields = json.loads(text)
    except json.JSONDecodeError as error:
      raise UserError(f'not JSON ({error})') from error
    if not isinstance(fields, dict) or not isinstance(fields.get('overrides', {}), dict):
      raise UserError('not an object with an object of overrides')
    fields['overrides'] = freeze_overrides(fields.get('overrides', {}))
    try:
      return cls(**{name: freeze(value) for name, value in fields.items()})
    except TypeError as error:
      raise UserError(str(error).replace('ModelConfig.__init__() ', '')) from error


def freeze(value: Any) -> Any:
  """Lists, at any depth, as tuples: hashable, and the same before and after JSON."""
  return tuple(freeze(v) for v in value) if isinstance(value, list | tuple) else value


def freeze_overrides(overrides: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
  """Overrides as sorted pairs, hashable."""
  return tuple((name, freeze(overrides[name])) for name in sorted(overrides))


def flatten(variables: Mapping[str, Any]) -> dict[str, Any]:
  """A variables tree as {'params/stem/conv1/kernel': leaf}."""
  return traverse_util.flatten_dict(nn.FrozenDict(variables).unfreeze(), sep='/')


def unflatten(tensors: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `flatten`."""
  return traverse_util.unflatten_dict(dict(tensors), sep='/')


def abstract_tensors(module: nn.Module) -> dict[str, jax.ShapeDtypeStruct]:
  """Name, shape and dtype of every tensor of a module; nothing is computed."""
  channels = getattr(module, 'in_channels', 3)
  images = jax.ShapeDtypeStruct((1, 64, 64, channels), jnp.float32)
  keys = {'params': jax.random.key(0)}
  return flatten(jax.eval_shape(lambda x: module.init(keys, x, train=False), images))


def misfits(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> str:
  """Lists missing, unexpected and misshapen names; empty when both agree.

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
  return '; '.join(f'{len(v)} {k}: {", ".join(v)}' for k, v in kinds.items() if v)


def zoo_names() -> list[str]:
  """The models that come with the package."""
  zoo = Path(str(resources.files('rest_jax'))) / 'zoo'
  return sorted(path.parent.name for path in zoo.glob(f'*/{CONFIG}'))


def resolve(name: str | os.PathLike[str]) -> Path:
  """The directory of a model: a path, or the name of a model of the zoo.

  Raises:
    UserError: neither.
  """
  path = Path(name)
  if (path / CONFIG).is_file():
    return path
  if str(name) in zoo_names():
    return Path(str(resources.files('rest_jax'))) / 'zoo' / str(name)
  if path.is_dir():
    raise UserError(f'{path} is not a model directory: it has no {CONFIG}')
  if path.is_file():
    raise UserError(f'{path} is a file: a model directory or a zoo name ({zoo_names()}) is needed')
  raise UserError(
    f'no model directory and no zoo model is called {name}; the zoo has {zoo_names()}'
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
    dtype: 'float32' or 'bfloat16', for tensors that are floats.
    overwrite: whether an existing model directory may be replaced.

  Raises:
    UserError: the place is taken by something else, or cannot be written.
  """
  if dtype not in DTYPES:
    raise UserError(f'a model directory stores {" or ".join(DTYPES)}, not {dtype}')
  place = Path(directory).resolve()
  _check_place(place, overwrite)
  partial = place.with_name(f'.{place.name}.partial-{os.getpid()}')
  try:
    partial.mkdir(parents=True, exist_ok=True)
    (partial / CONFIG).write_text(config.to_json(), encoding='utf-8')
    safetensors.numpy.save_file(_stored(variables, dtype), partial / WEIGHTS)
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
  return {
    name: np.require(
      a.astype(jnp.dtype(dtype)) if jnp.issubdtype(a.dtype, jnp.floating) else a,
      requirements='C',
    )
    for name, a in arrays.items()
  }


def _swap(new: Path, place: Path) -> None:
  """Puts `new` in the place of a directory that may exist; what only the old one had moves over."""
  if not place.exists():
    new.rename(place)
    return
  old = place.with_name(f'.{place.name}.old-{os.getpid()}')
  place.rename(old)
  try:
    new.rename(place)
  except OSError:
    old.rename(place)
    raise
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
    return ModelConfig.from_json(path.read_text(encoding='utf-8'))
  except (OSError, UnicodeDecodeError, UserError) as error:
    raise UserError(f'{path}: {error}') from error


def read_labels(directory: Path, num_classes: int) -> tuple[str, ...]:
  """Reads labels.txt, a class a line.

  Raises:
    UserError: it cannot be read or has not `num_classes` lines; the message names the file.
  """
  path = directory / LABELS
  try:
    names = tuple(path.read_text(encoding='utf-8').splitlines())
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f'{path}: {error}') from error
  if len(names) != num_classes:
    raise UserError(f'{path} has {len(names)} lines, the model {num_classes} classes')
  return names


def read_variables(directory: Path, module: nn.Module) -> dict[str, Any]:
  """Reads model.safetensors into the variables of a module, in the module's dtypes.

  Raises:
    UserError: the file cannot be read or does not fit the module; the message names the file.
  """
  path = directory / WEIGHTS
  try:
    tensors = safetensors.numpy.load_file(path)
  except (OSError, safetensors.SafetensorError) as error:
    raise UserError(f'{path}: {error}') from error
  expected = abstract_tensors(module)
  wrong = misfits(
    {n: s.shape for n, s in expected.items()}, {n: t.shape for n, t in tensors.items()}
  )
  if wrong:
    raise UserError(f'{path} does not fit its {CONFIG}: {wrong}')
  return unflatten({n: jnp.asarray(tensors[n].astype(s.dtype)) for n, s in expected.items()})
