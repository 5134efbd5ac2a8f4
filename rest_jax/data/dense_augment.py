"""Augmentation for detection and segmentation: what the papers' recipes do to a picture."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from PIL import Image

from rest_jax.data.geometry import Example, crop, fit, flip, resize
from rest_jax.data.semantic_folder import IGNORE
from rest_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class DetectionAugment:
  """A relative crop, a size, a flip: the detection recipe of both ResT papers.

  Attributes:
    short: sizes of the shorter side that one is drawn from, in pixels.
    long: most of the longer side.
    jitter: range of a factor on that size; (1, 1) for none, (0.1, 2) is large-scale jitter.
    crop_share: range of the share of each side that is kept first; (1, 1) for none.
    flip: probability of a mirror image.
    least_visible: share of an object under which it is ignored, see `geometry.crop`.

  Raises:
    UserError: a value out of its range.
  """

  short: tuple[int, ...] = (640, 672, 704, 736, 768, 800)
  long: int = 1333
  jitter: tuple[float, float] = (1.0, 1.0)
  crop_share: tuple[float, float] = (0.9, 0.9)
  flip: float = 0.5
  least_visible: float = 0.0

  def __post_init__(self):
    if not self.short or min(self.short) < 1 or self.long < 1:
      raise UserError(f'short and long are pixels, 1 or more, got {self.short} and {self.long}')
    for name, most in (('jitter', None), ('crop_share', 1.0)):
      low, high = getattr(self, name)
      if not 0 < low <= high or (most is not None and high > most):
        upper = f' up to {most:g}' if most else ''
        raise UserError(f'{name} is a range above 0{upper}, got {(low, high)}')
    for name in ('flip', 'least_visible'):
      if not 0 <= getattr(self, name) <= 1:
        raise UserError(f'{name} is a share from 0 to 1, got {getattr(self, name)}')

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Draws one view of an example."""
    height, width = example['image'].shape[:2]
    if self.crop_share != (1.0, 1.0):
      share = rng.uniform(*self.crop_share, 2)
      kept = tuple(max(int(n * s + 0.5), 1) for n, s in zip((height, width), share, strict=True))
      example = crop(
        example, random_window((height, width), kept, rng), least_visible=self.least_visible
      )
    size = fit(example['image'].shape[:2], int(rng.choice(self.short)), self.long)
    factor = rng.uniform(*self.jitter)
    example = resize(example, (max(round(size[0] * factor), 1), max(round(size[1] * factor), 1)))
    return flip(example) if rng.random() < self.flip else example


@dataclasses.dataclass(frozen=True)
class SegmentationAugment:
  """A random size, a square, a flip, colours: mmsegmentation's recipe for ADE20K.

  Attributes:
    short: size of the shorter side before the random factor, in pixels; of several one is drawn.
    long: most of the longer side before it.
    ratio: range of the factor.
    square: side of the crop; a smaller picture stays as it is, and is padded in its batch.
    most_of_a_class: a crop of which one class fills more is drawn anew, ten times at most.
    flip: probability of a mirror image.
    photometric: whether colours change, see `distort`.

  Raises:
    UserError: a value out of its range.
  """

  short: int | tuple[int, ...] = 512
  long: int = 2048
  ratio: tuple[float, float] = (0.5, 2.0)
  square: int = 512
  most_of_a_class: float = 0.75
  flip: float = 0.5
  photometric: bool = True

  def __post_init__(self):
    sizes = (*self._shorts, self.long, self.square)
    if not self._shorts or min(sizes) < 1 or not 0 < self.ratio[0] <= self.ratio[1]:
      raise UserError('short, long and square are 1 px or more, ratio is a range above 0')
    if not 0 <= self.flip <= 1 or not 0 < self.most_of_a_class <= 1:
      raise UserError('flip and most_of_a_class are shares from 0 to 1')

  @property
  def _shorts(self) -> tuple[int, ...]:
    """The sizes of the shorter side to draw from."""
    return (self.short,) if isinstance(self.short, int) else tuple(self.short)

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Draws one view of an example."""
    factor = rng.uniform(*self.ratio)
    # One size takes no draw, so that its views are those from before there were several.
    short = int(rng.choice(self._shorts)) if len(self._shorts) > 1 else min(self._shorts)
    size = fit(example['image'].shape[:2], short * factor, self.long * factor)
    example = self._crop(resize(example, size), rng)
    if rng.random() < self.flip:
      example = flip(example)
    return example | {'image': distort(example['image'], rng)} if self.photometric else example

  def _crop(self, example: Example, rng: np.random.Generator) -> Example:
    """A square that no class fills, where ten draws find one."""
    size = example['image'].shape[:2]
    kept = tuple(min(side, self.square) for side in size)
    window = random_window(size, kept, rng)
    for _ in range(10):
      top, left, height, width = window
      labels = example['segmentation'][top : top + height, left : left + width]
      counts = np.bincount(labels[labels != IGNORE], minlength=1)
      if np.count_nonzero(counts) > 1 and counts.max() < self.most_of_a_class * counts.sum():
        break
      window = random_window(size, kept, rng)
    return crop(example, window)


def random_window(
  size: tuple[int, int], kept: tuple[int, ...], rng: np.random.Generator
) -> tuple[int, int, int, int]:
  """(top, left, height, width) of a window of `kept` anywhere in a picture of `size`."""
  top, left = (int(rng.integers(n - m + 1)) for n, m in zip(size, kept, strict=True))
  return top, left, kept[0], kept[1]


def distort(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Brightness, contrast, saturation and hue, each with probability 1/2 (Liu et al., SSD, 2016).

  Args:
    image: (H, W, 3) uint8 RGB.
    rng: decides.

  Returns:
    (H, W, 3) uint8: brightness by up to 32, contrast and saturation by 0.5 to 1.5, hue by up to a
    tenth of the circle; contrast before or after the colours.
  """
  values = image.astype(np.float32)
  if rng.integers(2):
    values = values + rng.uniform(-32, 32)
  contrast, early, alpha = rng.integers(2), rng.integers(2), rng.uniform(0.5, 1.5)
  if contrast and early:
    values = values * alpha
  values = _colours(values.clip(0, 255), rng)
  if contrast and not early:
    values = values * alpha
  return values.clip(0, 255).astype(np.uint8)


def _colours(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Saturation and hue of (H, W, 3) floats in 0..255."""
  saturate, turn = rng.integers(2), rng.integers(2)
  alpha, angle = rng.uniform(0.5, 1.5), rng.uniform(-0.1, 0.1)
  if not saturate and not turn:
    return values
  hsv: Any = np.asarray(Image.fromarray(values.astype(np.uint8)).convert('HSV')).astype(np.float32)
  if saturate:
    hsv[..., 1] = (hsv[..., 1] * alpha).clip(0, 255)
  if turn:
    hsv[..., 0] = (hsv[..., 0] + 256 * angle) % 256
  picture = Image.fromarray(hsv.astype(np.uint8), 'HSV').convert('RGB')
  return np.asarray(picture).astype(np.float32)
