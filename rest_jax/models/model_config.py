"""What config.json of a model directory says."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.core import FrozenDict

from rest_jax.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
RESIZE_POLICIES = ('squash', 'resize_crop')
INTERPOLATIONS = ('bicubic', 'bilinear')
_LITE = dict(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)

# Patterns over names of the registry, the first that fits; what is left out is ModelConfig's: 224
# px, shorter side to 256, central crop, bicubic, ImageNet's mean and deviation (ResT's own code).
_VIEWS: tuple[tuple[str, dict[str, Any]], ...] = (
  # ResTv2's code takes the whole shorter side.
  ('restv2', dict(crop_pct=1.0)),
  # 32 px as they are; those of 6n + 2 layers are the paper's for CIFAR alone.
  (r'resnet(\d+_cifar|20|32|44|56|110)$', dict(input_size=32, resize='squash')),
  # torchvision's reference evaluation.
  ('resnet|vgg', dict(interpolation='bilinear')),
  # EfficientNet-Lite's code: a margin of 32 px, grey levels minus 127 over 128.
  ('efficientnet_lite0', dict(crop_pct=224 / 256, **_LITE)),
  ('efficientnet_lite1', dict(input_size=240, crop_pct=240 / 272, **_LITE)),
  ('efficientnet_lite2', dict(input_size=260, crop_pct=260 / 292, **_LITE)),
)


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
    if not isinstance(self.model, str):
      raise UserError(f'model is a name, not {self.model!r}')
    whole = (self.num_classes, self.input_size)
    if not all(_is_number(n, int) for n in whole):
      raise UserError(f'num_classes and input_size are whole numbers, not {whole}')
    if self.num_classes < 0 or self.input_size < 1:
      raise UserError(f'num_classes is at least 0 and input_size at least 1, not {whole}')
    check_statistics(self.mean, self.std)
    if not _is_number(self.crop_pct) or not 0 < self.crop_pct <= 1:
      raise UserError(f'crop_pct is a number in (0, 1], not {self.crop_pct!r}')
    if self.resize not in RESIZE_POLICIES or self.interpolation not in INTERPOLATIONS:
      raise UserError(
        f'resize is one of {RESIZE_POLICIES} and interpolation one of {INTERPOLATIONS}, '
        f'not {self.resize!r} and {self.interpolation!r}'
      )

  def to_json(self) -> str:
    """The text of config.json."""
    fields = dataclasses.asdict(self) | {'overrides': dict(self.overrides)}
    return json.dumps(fields, indent=2, default=dict) + '\n'

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
    if 'kind' in fields:
      raise UserError(
        f'it describes a {fields["kind"]}, and a classifier is needed here: rest-jax predict and '
        'train --mode evaluate take it; Detector or Segmenter of rest_jax open it, and make of it '
        'what is explained and attacked (their method question)'
      )
    fields['overrides'] = freeze_overrides(fields.get('overrides', {}))
    try:
      return cls(**{name: freeze(value) for name, value in fields.items()})
    except TypeError as error:
      raise UserError(str(error).replace('ModelConfig.__init__() ', '')) from error


def check_statistics(mean: Any, std: Any) -> None:
  """Refuses what is no normalisation of images in [0, 1].

  Args:
    mean: a value a channel.
    std: likewise.

  Raises:
    UserError: no tuples of numbers, of different length, or of another range: those of pixels of 0
      to 255 make every picture the same dark one.
  """
  for values in (mean, std):
    if not isinstance(values, tuple) or not all(_is_number(n) for n in values):
      raise UserError(f'mean and std are lists of numbers, not {values!r}')
  if not mean or len(mean) != len(std) or min(std) <= 0:
    raise UserError(f'mean {mean} and std {std}: a pair a channel, each std above 0')
  if min(mean) < 0 or max(*mean, *std) > 1:
    raise UserError(
      f'mean {mean} and std {std}: of images in [0, 1], so none is beyond 1; those of 0 to 255 are '
      'divided by 255'
    )


def _is_number(value: Any, kind: Any = int | float) -> bool:
  return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)


def freeze(value: Any) -> Any:
  """Lists as tuples, mappings and dataclasses as `FrozenDict`: hashable, the same after JSON.

  Numbers and arrays of NumPy and JAX become Python's, which JSON has.
  """
  if isinstance(value, np.generic | np.ndarray | jax.Array):
    value = np.asarray(value).tolist()
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    value = dataclasses.asdict(value)
  if isinstance(value, Mapping):
    return FrozenDict({name: freeze(value[name]) for name in sorted(value)})
  return tuple(freeze(v) for v in value) if isinstance(value, list | tuple) else value


def freeze_overrides(overrides: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
  """Overrides as sorted pairs, hashable."""
  return tuple((name, freeze(overrides[name])) for name in sorted(overrides))


def published_view(model: str) -> dict[str, Any]:
  """Attributes of `ModelConfig` for a published checkpoint of a model.

  Args:
    model: a name of the registry.

  Returns:
    Those that differ from the defaults.
  """
  return next((view for pattern, view in _VIEWS if re.match(pattern, model)), {})
