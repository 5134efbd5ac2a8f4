"""RandAugment as timm has it: policies such as `rand-m9-mstd0.5-inc1`.

References:
  Cubuk et al., RandAugment, arXiv 1909.13719; the semantics (operations, what a magnitude means
  to each, noise on the magnitude) are those of timm 1.0, `timm/data/auto_augment.py`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from rest_jax.data import image_ops
from rest_jax.errors import UserError

MAX_LEVEL = 10.0  # the magnitude at which an operation has its full strength
_UNIFORM = 100.0  # a larger standard deviation stands for an even draw from [0, m]
_POLICY = re.compile(r'(mstd|mmax|inc|m|n|p)(\d+(?:\.\d+)?)')
_WHOLE = ('m', 'n', 'mmax', 'inc')
_GRAMMAR = 'rand[-mN][-nN][-pP][-mstdS][-mmaxN][-inc0|1][-tweights], for example rand-m9-mstd0.5'


def _signed(scale: float) -> Callable[[float, bool], float]:
  return lambda share, negative: -scale * share if negative else scale * share


def _enhance(share: float, negative: bool) -> float:
  return share * 1.8 + 0.1


def _enhance_more(share: float, negative: bool) -> float:
  return max(0.1, 1.0 + (-0.9 * share if negative else 0.9 * share))


@dataclasses.dataclass(frozen=True)
class Operation:
  """One operation and what a magnitude means to it.

  Attributes:
    apply: (picture, argument, ...) -> picture.
    argument: (magnitude / 10, whether the random sign is negative) -> argument; None for none.
    moves: whether it moves pixels, so that it takes a fill colour and an interpolation.
  """

  apply: Callable[..., Image.Image]
  argument: Callable[[float, bool], float] | None = None
  moves: bool = False


# timm's names; 'Increasing' marks those that get stronger, not weaker, with the magnitude.
OPERATIONS: dict[str, Operation] = {
  'AutoContrast': Operation(image_ops.auto_contrast),
  'Equalize': Operation(image_ops.equalize),
  'Invert': Operation(image_ops.invert),
  'Rotate': Operation(image_ops.rotate, _signed(30.0), moves=True),
  'Posterize': Operation(image_ops.posterize, lambda share, _: int(share * 4)),
  'PosterizeIncreasing': Operation(image_ops.posterize, lambda share, _: 4 - int(share * 4)),
  'Solarize': Operation(image_ops.solarize, lambda share, _: min(256, int(share * 256))),
  'SolarizeIncreasing': Operation(
    image_ops.solarize, lambda share, _: 256 - min(256, int(share * 256))
  ),
  'SolarizeAdd': Operation(image_ops.solarize_add, lambda share, _: min(128, int(share * 110))),
  'Color': Operation(image_ops.color, _enhance),
  'ColorIncreasing': Operation(image_ops.color, _enhance_more),
  'Contrast': Operation(image_ops.contrast, _enhance),
  'ContrastIncreasing': Operation(image_ops.contrast, _enhance_more),
  'Brightness': Operation(image_ops.brightness, _enhance),
  'BrightnessIncreasing': Operation(image_ops.brightness, _enhance_more),
  'Sharpness': Operation(image_ops.sharpness, _enhance),
  'SharpnessIncreasing': Operation(image_ops.sharpness, _enhance_more),
  'ShearX': Operation(image_ops.shear_x, _signed(0.3), moves=True),
  'ShearY': Operation(image_ops.shear_y, _signed(0.3), moves=True),
  'TranslateXRel': Operation(image_ops.translate_x, _signed(0.45), moves=True),
  'TranslateYRel': Operation(image_ops.translate_y, _signed(0.45), moves=True),
}
_PLAIN = ('AutoContrast', 'Equalize', 'Invert', 'Rotate')
_GRADED = ('Posterize', 'Solarize', 'Color', 'Contrast', 'Brightness', 'Sharpness')
_MOVING = ('ShearX', 'ShearY', 'TranslateXRel', 'TranslateYRel')
SET = (*_PLAIN, *_GRADED, 'SolarizeAdd', *_MOVING)
INCREASING_SET = (*_PLAIN, *(f'{name}Increasing' for name in _GRADED), 'SolarizeAdd', *_MOVING)
# timm's experimental weights, `-tweights`; for the increasing set, drawn without replacement.
_FEW = ('SolarizeAdd', 'Equalize', 'Invert')
_FEW_GRADED = ('Solarize', 'Contrast', 'Brightness', 'Posterize')
WEIGHTS = {
  'Rotate': 3.0, 'ShearX': 2.0, 'ShearY': 2.0, 'TranslateXRel': 1.0, 'TranslateYRel': 1.0,
  'ColorIncreasing': 0.25, 'SharpnessIncreasing': 0.25, 'AutoContrast': 0.25,
  **dict.fromkeys(_FEW, 0.05), **{f'{name}Increasing': 0.05 for name in _FEW_GRADED},
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Step:
  """One drawn operation: its name in `OPERATIONS`, its argument, where it moves pixels how."""

  name: str
  argument: float | None
  bicubic: bool


@dataclasses.dataclass(frozen=True)
class RandAugment:
  """A policy; `draw` decides, `apply` does.

  Attributes:
    names: the operations to choose from.
    weights: their probabilities, which sum to 1, drawn without replacement; None for even
      chances with replacement.
    magnitude: m, mean strength of every operation, from 0 to 10.
    layers: n, operations drawn for an image.
    prob: p, chance that a drawn operation is applied.
    noise: mstd, standard deviation of the magnitude; inf draws it evenly from [0, m].
    limit: mmax, largest magnitude after the noise.
  """

  names: tuple[str, ...]
  weights: tuple[float, ...] | None = None
  magnitude: float = MAX_LEVEL
  layers: int = 2
  prob: float = 0.5
  noise: float = 0.0
  limit: float = MAX_LEVEL

  def draw(self, rng: np.random.Generator, interpolation: str = 'bicubic') -> list[Step]:
    """Draws what happens to one image.

    Args:
      rng: source of chance.
      interpolation: 'bilinear', 'bicubic', or 'random' for one of them each time.

    Returns:
      The steps in order, at most `layers`.
    """
    if self.weights is None:
      chosen = rng.integers(len(self.names), size=self.layers)
    else:
      chosen = rng.choice(len(self.names), self.layers, replace=False, p=self.weights)
    # All numbers at once: one call costs as much as a few hundred numbers.
    chances = rng.random((self.layers, 3)).tolist()
    if self.noise == float('inf'):
      magnitudes = rng.uniform(0, self.magnitude, self.layers).tolist()
    else:
      magnitudes = rng.normal(self.magnitude, self.noise, self.layers).tolist()
    steps = []
    for number, magnitude, (apply, sign, kind) in zip(
      chosen.tolist(), magnitudes, chances, strict=True
    ):
      if apply < self.prob:
        bicubic = kind < 0.5 if interpolation == 'random' else interpolation == 'bicubic'
        steps.append(self._step(self.names[number], magnitude, sign < 0.5, bicubic))
    return steps

  def _step(self, name: str, magnitude: float, negative: bool, bicubic: bool) -> Step:
    share = max(0.0, min(magnitude, self.limit)) / MAX_LEVEL
    argument = OPERATIONS[name].argument
    return Step(name, None if argument is None else argument(share, negative), bicubic)


def apply(picture: Image.Image, steps: list[Step], fill: image_ops.Colour) -> Image.Image:
  """Applies drawn steps.

  Args:
    picture: RGB.
    steps: from `RandAugment.draw`.
    fill: colour of what moves in from outside, three levels from 0 to 255.

  Returns:
    RGB picture of the same size.
  """
  for step in steps:
    operation = OPERATIONS[step.name]
    arguments: list[Any] = [] if step.argument is None else [step.argument]
    if operation.moves:
      kinds = Image.Resampling
      arguments += [fill, kinds.BICUBIC if step.bicubic else kinds.BILINEAR]
    picture = operation.apply(picture, *arguments)
  return picture


def parse(policy: str) -> RandAugment:
  """Reads a policy in timm's notation.

  Args:
    policy: 'rand' and sections joined by '-': mN magnitude (10), nN operations an image (2), pP
      chance of each (0.5), mstdS noise on the magnitude (0; over 100 means even in [0, m]),
      mmaxN largest magnitude (10), inc1 the set that gets stronger with the magnitude, tweights
      timm's weighted set.

  Returns:
    The policy.

  Raises:
    UserError: not such a policy. timm passes over what it cannot read; here it is refused.
  """
  head, *sections = policy.split('-')
  if head != 'rand':
    raise UserError(f'RandAugment policy {policy!r} does not start with rand: {_GRAMMAR}')
  values: dict[str, float] = {}
  weighted = False
  for section in sections:
    match = _POLICY.fullmatch(section)
    if section == 'tweights':
      weighted = True
    elif not match or match[1] in values or (match[1] in _WHOLE and '.' in match[2]):
      raise UserError(f'RandAugment policy {policy!r}: cannot read {section!r}; it is {_GRAMMAR}')
    else:
      values[match[1]] = float(match[2])
  return _build(policy, values, weighted)


def _build(policy: str, values: dict[str, float], weighted: bool) -> RandAugment:
  names = tuple(WEIGHTS) if weighted else INCREASING_SET if values.get('inc') else SET
  total = sum(WEIGHTS.values())
  noise = values.get('mstd', 0.0)
  augment = RandAugment(
    names=names,
    weights=tuple(weight / total for weight in WEIGHTS.values()) if weighted else None,
    magnitude=values.get('m', MAX_LEVEL),
    layers=int(values.get('n', 2)),
    prob=values.get('p', 0.5),
    noise=float('inf') if noise > _UNIFORM else noise,
    limit=values.get('mmax') or MAX_LEVEL,
  )
  if augment.prob > 1 or not 1 <= augment.layers <= len(names) or values.get('inc', 0) > 1:
    raise UserError(
      f'RandAugment policy {policy!r}: p must be at most 1, n from 1 to {len(names)}, inc 0 or 1'
    )
  return augment
