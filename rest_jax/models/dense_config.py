"""What config.json of a model directory says of a detector or a segmenter."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

from rest_jax.errors import UserError
from rest_jax.models.model_config import (
  IMAGENET_MEAN,
  IMAGENET_STD,
  check_statistics,
  freeze,
  freeze_overrides,
)

KINDS = ('detector', 'segmenter')


@dataclasses.dataclass(frozen=True)
class DenseConfig:
  """Which model, and how a picture becomes its input. Hashable.

  Attributes:
    kind: 'detector' or 'segmenter'.
    model: a name of `list_detectors()` or `list_segmenters()`.
    num_classes: K.
    backbone: (name, value) pairs that differ from the published backbone.
    overrides: (name, value) pairs of the head.
    mean: a value a channel, in units of [0, 1].
    std: likewise, above 0.
    short: shorter side at which a picture is looked at, in pixels; 0 leaves its size.
    long: most of its longer side; 0 for any.
    canvases: (H, W) of those that a picture is laid on, the smallest that holds it.
    scales: of a segmenter: factors of the size at which it is judged, probabilities averaged;
      `predict` looks once, at 1.
    mirrored: whether it is judged with the mirror images too.

  Raises:
    UserError: a value is not one of those.
  """

  kind: str
  model: str
  num_classes: int
  backbone: tuple[tuple[str, Any], ...] = ()
  overrides: tuple[tuple[str, Any], ...] = ()
  mean: tuple[float, ...] = IMAGENET_MEAN
  std: tuple[float, ...] = IMAGENET_STD
  short: int = 800
  long: int = 1333
  canvases: tuple[tuple[int, int], ...] = ((800, 1344), (1344, 800), (1344, 1344))
  scales: tuple[float, ...] = (1.0,)
  mirrored: bool = False

  def __post_init__(self):
    if self.kind not in KINDS or not isinstance(self.model, str):
      raise UserError(f'kind is one of {KINDS} and model a name, not {self.kind!r}, {self.model!r}')
    if not _whole(self.num_classes, 1) or not _whole(self.short, 0) or not _whole(self.long, 0):
      raise UserError(
        'num_classes is a whole number from 1, short and long are from 0, not '
        f'{self.num_classes!r}, {self.short!r}, {self.long!r}'
      )
    check_canvases(self.canvases)
    check_scales(self.scales)
    if not isinstance(self.mirrored, bool):
      raise UserError(f'mirrored is true or false, not {self.mirrored!r}')
    check_statistics(self.mean, self.std)

  def to_json(self) -> str:
    """The text of config.json."""
    fields = dataclasses.asdict(self)
    fields |= {name: dict(getattr(self, name)) for name in ('backbone', 'overrides')}
    return json.dumps(fields, indent=2, default=dict) + '\n'

  @classmethod
  def from_json(cls, text: str) -> DenseConfig:
    """Reads `to_json`'s text.

    Raises:
      UserError: not JSON, an unknown or missing key, or a value out of its range.
    """
    try:
      fields = json.loads(text)
    except json.JSONDecodeError as error:
      raise UserError(f'not JSON ({error})') from error
    if not isinstance(fields, dict) or 'kind' not in fields:
      raise UserError('it does not describe a detector or a segmenter (it has no "kind")')
    pairs = {name: fields.pop(name, {}) for name in ('backbone', 'overrides')}
    if not all(isinstance(value, dict) for value in pairs.values()):
      raise UserError('backbone and overrides are objects')
    frozen = {name: freeze_overrides(value) for name, value in pairs.items()}
    try:
      return cls(**frozen, **{name: freeze(value) for name, value in fields.items()})
    except TypeError as error:
      raise UserError(str(error).replace('DenseConfig.__init__() ', '')) from error


def check_canvases(canvases: Any) -> None:
  """Refuses what are no canvases.

  Raises:
    UserError: not one or more pairs of whole numbers of pixels.
  """
  pairs = canvases if isinstance(canvases, tuple) and canvases else (None,)
  for pair in pairs:
    if not isinstance(pair, tuple) or len(pair) != 2 or not all(_whole(side, 1) for side in pair):
      raise UserError(
        f'canvases are one or more (height, width) in pixels, ((800, 1344),), not {canvases!r}'
      )


def check_scales(scales: Any) -> None:
  """Refuses what are no factors of a size.

  Raises:
    UserError: not one or more numbers above 0.
  """
  found = scales if isinstance(scales, tuple) else ()
  if not found or not all(_finite(scale) and scale > 0 for scale in found):
    raise UserError(f'scales are one or more factors above 0, such as (1.0,), not {scales!r}')


def _whole(value: Any, least: int) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _finite(value: Any) -> bool:
  return isinstance(value, int | float) and math.isfinite(value)
