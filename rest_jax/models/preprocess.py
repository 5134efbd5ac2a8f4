"""From a picture of any size and mode to a classifier's input: float32 NHWC in [0, 1]."""

from __future__ import annotations

import numpy as np
from PIL import Image

from rest_jax.errors import UserError
from rest_jax.rgb import to_rgb as to_rgb

_FILTERS = {'bicubic': Image.Resampling.BICUBIC, 'bilinear': Image.Resampling.BILINEAR}


def preprocess(
  image: Image.Image | np.ndarray,
  *,
  size: int,
  resize: str = 'resize_crop',
  crop_pct: float = 0.875,
  interpolation: str = 'bicubic',
) -> np.ndarray:
  """Resizes a picture as a model was evaluated.

  Args:
    image: as in `to_rgb`.
    size: pixels a side of the result.
    resize: 'squash': both sides to `size`; 'resize_crop': the shorter side to size / crop_pct,
      rounded down, then the central square (torchvision's Resize and CenterCrop).
    crop_pct: in (0, 1].
    interpolation: 'bicubic' or 'bilinear', with Pillow's antialiasing.

  Returns:
    float32 (1, size, size, 3) in [0, 1].

  Raises:
    UserError: as `to_rgb`, or a picture too elongated to be resized by its shorter side.
  """
  picture, kernel = to_rgb(image), _FILTERS[interpolation]
  if resize == 'squash':
    picture = picture.resize((size, size), kernel)
  else:
    picture = _resize_crop(picture, size, int(size / crop_pct), kernel)
  return np.asarray(picture, np.float32)[None] / np.float32(255)


def _resize_crop(picture: Image.Image, size: int, shorter: int, kernel) -> Image.Image:
  width, height = picture.size
  least = min(width, height)
  width, height = int(shorter * width / least), int(shorter * height / least)
  limit = Image.MAX_IMAGE_PIXELS or 2**27
  if width * height > limit:
    raise UserError(
      f'a picture of {picture.width}x{picture.height} px is too elongated to be resized to '
      f'{shorter} px on its shorter side: crop it first'
    )
  left, top = round((width - size) / 2), round((height - size) / 2)
  return picture.resize((width, height), kernel).crop((left, top, left + size, top + size))
