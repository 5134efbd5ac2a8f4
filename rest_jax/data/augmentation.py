"""Augmentation on the host, one image at a time, in the order of timm's and the authors' recipe.

Random resized crop, mirroring, RandAugment or colour jitter; and the one view for testing. Images
are (H, W, 3) uint8 RGB. Semantics are torchvision's (RandomResizedCrop, ColorJitter, Resize +
CenterCrop on Pillow images) and timm's (RandAugment), the numbers drawn are NumPy's.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Literal

import numpy as np
from PIL import Image

from rest_jax.data import image_ops, rand_augment
from rest_jax.data.images import EncodedImage
from rest_jax.errors import UserError

Interpolation = Literal['bilinear', 'bicubic']
Resize = Literal['squash', 'resize_crop']
INTERPOLATIONS = {'bilinear': Image.Resampling.BILINEAR, 'bicubic': Image.Resampling.BICUBIC}
Box = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
  """What happens to a training image.

  Attributes:
    crop_scale: share of the image's area that a random crop keeps, (low, high) in (0, 1]; None
      for the whole image, squashed to size.
    crop_ratio: (low, high) of a crop's width over its height.
    padding: black pixels on every side, from which a crop of the picture's own size is cut at
      random (the augmentation of He et al. for CIFAR); 0 is off. Not together with crop_scale.
    flip: mirrors half of the images left to right.
    color_jitter: strengths of brightness, contrast and saturation: each is multiplied by a
      factor from [max(0, 1 - s), 1 + s], in random order; 0 turns one off.
    interpolation: 'bilinear' or 'bicubic', of the crop (with antialiasing) and of what RandAugment
      moves.
    rand_augment: policy in timm's notation, see `rand_augment.parse`; '' is off. Comes before
      colour jitter; timm leaves colour jitter out where there is a policy.
    fill: colour of what RandAugment moves in from outside, levels from 0 to 255.
    scaled_decoding: decodes a large JPEG at 1/2, 1/4 or 1/8 where the crop keeps the size of the
      result; quicker, and not quite the same pixels, see `images.EncodedImage.region`.
  """

  crop_scale: tuple[float, float] | None = (0.08, 1.0)
  crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
  padding: int = 0
  flip: bool = True
  color_jitter: tuple[float, float, float] = (0.0, 0.0, 0.0)
  interpolation: Interpolation = 'bicubic'
  rand_augment: str = ''
  fill: image_ops.Colour = (124, 116, 104)
  scaled_decoding: bool = False

  def __post_init__(self):
    if self.rand_augment:
      _policy(self.rand_augment)
    if len(self.fill) != 3 or not 0 <= min(self.fill) <= max(self.fill) <= 255:
      raise UserError(f'fill takes three levels from 0 to 255, got {self.fill}')
    if self.crop_scale is not None:
      low, high = self.crop_scale
      if not 0 < low <= high <= 1:
        raise UserError(f'crop_scale must be 0 < low <= high <= 1, got {self.crop_scale}')
    if self.padding < 0 or (self.padding and self.crop_scale is not None):
      raise UserError(
        f'padding is a number of pixels from 0 and stands without crop_scale, got {self.padding} '
        f'with crop_scale {self.crop_scale}'
      )
    if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
      raise UserError(f'crop_ratio must be 0 < low <= high, got {self.crop_ratio}')
    if len(self.color_jitter) != 3 or min(self.color_jitter) < 0:
      raise UserError(f'color_jitter takes three strengths of 0 or more, got {self.color_jitter}')
    _resampling(self.interpolation)


@functools.lru_cache(maxsize=16)
def _policy(policy: str) -> rand_augment.RandAugment:
  return rand_augment.parse(policy)


def _resampling(interpolation: str) -> Image.Resampling:
  if interpolation not in INTERPOLATIONS:
    raise UserError(f'interpolation must be bilinear or bicubic, got {interpolation!r}')
  return INTERPOLATIONS[interpolation]


def random_crop_box(
  rng: np.random.Generator,
  height: int,
  width: int,
  scale: tuple[float, float],
  ratio: tuple[float, float],
) -> Box:
  """Draws a crop as torchvision's RandomResizedCrop does.

  Args:
    rng: source of chance.
    height: of the image, in pixels.
    width: of the image.
    scale: (low, high) share of the area.
    ratio: (low, high) of width over height, drawn evenly in its logarithm.

  Returns:
    (left, top, right, bottom) inside the image; after ten draws that do not fit, the largest
    centred box with an allowed ratio.
  """
  low, high = math.log(ratio[0]), math.log(ratio[1])
  for _ in range(10):
    area = height * width * (scale[0] + (scale[1] - scale[0]) * rng.random())
    aspect = math.exp(low + (high - low) * rng.random())
    w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if 0 < w <= width and 0 < h <= height:
      left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
      return left, top, left + w, top + h
  w, h = width, height
  if width / height < ratio[0]:
    h = min(height, max(1, round(width / ratio[0])))
  elif width / height > ratio[1]:
    w = min(width, max(1, round(height * ratio[1])))
  left, top = (width - w) // 2, (height - h) // 2
  return left, top, left + w, top + h


def augment(
  image: np.ndarray | EncodedImage, size: int, config: AugmentConfig, rng: np.random.Generator
) -> np.ndarray:
  """A random view of a training image.

  Args:
    image: (H, W, 3) uint8, or an image that is not decoded yet.
    size: side of the result in pixels.
    config: what to do.
    rng: decides; the same state gives the same view.

  Returns:
    (size, size, 3) uint8.

  Raises:
    ImageError: the image turns out to be damaged.
  """
  encoded = isinstance(image, EncodedImage)
  height, width = image.size if encoded else image.shape[:2]
  if config.crop_scale is not None:
    box = random_crop_box(rng, height, width, config.crop_scale, config.crop_ratio)
  else:
    box = (0, 0, width, height)
  if not encoded:
    picture = Image.fromarray(image)
  elif config.scaled_decoding:
    picture, box = image.region(box, size)
  else:
    picture = image.upper(box, size)
  if picture.size != (size, size) or box != (0, 0, size, size):
    picture = picture.resize((size, size), _resampling(config.interpolation), box=box)
  if config.padding:
    picture = _shifted(picture, config.padding, rng)
  if config.flip and rng.random() < 0.5:
    picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
  if config.rand_augment:
    steps = _policy(config.rand_augment).draw(rng, config.interpolation)
    picture = rand_augment.apply(picture, steps, config.fill)
  if any(config.color_jitter):
    picture = _jitter(picture, config.color_jitter, rng)
  return np.asarray(picture)


def _shifted(picture: Image.Image, padding: int, rng: np.random.Generator) -> Image.Image:
  """A crop of the picture's size out of it with black pixels around it; Pillow fills with 0."""
  left, top = (int(rng.integers(-padding, padding + 1)) for _ in range(2))
  return picture.crop((left, top, left + picture.width, top + picture.height))


_JITTERS = (image_ops.brightness, image_ops.contrast, image_ops.color)


def _jitter(
  picture: Image.Image, strengths: tuple[float, float, float], rng: np.random.Generator
) -> Image.Image:
  """Brightness, contrast and saturation in random order, each a blend as in Pillow."""
  for kind in rng.permutation(3):
    strength = strengths[kind]
    if not strength:
      continue
    low = max(0.0, 1 - strength)
    factor = low + (1 + strength - low) * rng.random()
    picture = _JITTERS[kind](picture, factor)
  return picture


def eval_view(
  image: np.ndarray,
  size: int,
  resize: Resize = 'squash',
  crop_pct: float = 0.875,
  interpolation: Interpolation = 'bicubic',
) -> np.ndarray:
  """The one view of an image that is judged.

  Args:
    image: (H, W, 3) uint8.
    size: side of the result in pixels.
    resize: 'squash' takes the whole image to size x size; 'resize_crop' takes its shorter side to
      floor(size / crop_pct) and cuts the centre.
    crop_pct: share of the resized side that the centre keeps, in (0, 1].
    interpolation: 'bilinear' or 'bicubic'.

  Returns:
    (size, size, 3) uint8; a 'squash' of an image that has the size already is the image itself.

  Raises:
    UserError: an unknown policy or interpolation, or crop_pct outside (0, 1].
  """
  check_eval_options(resize, crop_pct, interpolation)
  height, width = image.shape[:2]
  target = (size, size)
  if resize == 'resize_crop':
    shorter = math.floor(size / crop_pct)
    if width <= height:
      target = (shorter, int(shorter * height / width))
    else:
      target = (int(shorter * width / height), shorter)
  picture = Image.fromarray(image)
  if picture.size != target:
    picture = picture.resize(target, _resampling(interpolation))
  left, top = round((target[0] - size) / 2), round((target[1] - size) / 2)
  return np.asarray(picture.crop((left, top, left + size, top + size)))


def check_eval_options(resize: str, crop_pct: float, interpolation: str) -> None:
  """Refuses options that `eval_view` does not know.

  Args:
    resize: as in `eval_view`.
    crop_pct: as in `eval_view`.
    interpolation: as in `eval_view`.

  Raises:
    UserError: one of them is not allowed.
  """
  if resize not in ('squash', 'resize_crop'):
    raise UserError(f'resize must be squash or resize_crop, got {resize!r}')
  if not 0 < crop_pct <= 1:
    raise UserError(f'crop_pct must be in (0, 1], got {crop_pct}')
  _resampling(interpolation)
