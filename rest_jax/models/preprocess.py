"""From a picture of any size and mode to a classifier's input: float32 NHWC in [0, 1]."""

from __future__ import annotations

import numpy as np
from PIL import Image

from rest_jax.errors import UserError
from rest_jax.profiles import to_srgb

_FILTERS = {'bicubic': Image.Resampling.BICUBIC, 'bilinear': Image.Resampling.BILINEAR}
_WIDE_GREY = ('I;16', 'I;16L', 'I;16B', 'I;16N', 'I')


def to_rgb(image: Image.Image | np.ndarray) -> Image.Image:
  """An RGB picture of a picture in any mode.

  Args:
    image: a Pillow image, or a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4). Transparency
      is dropped; 16 bits of grey become 8; 'I' is taken as 16 bits.

  Returns:
    A Pillow image in mode RGB.

  Raises:
    UserError: another kind of array, a float image, no pixels, or an unreadable file.
  """
  if not isinstance(image, Image.Image):
    image = _from_array(np.asarray(image))
  if not image.width or not image.height:
    raise UserError('the image has no pixels')
  profile = image.info.get('icc_profile')
  try:
    if image.mode in _WIDE_GREY:
      grey = np.asarray(image).astype(np.int64).clip(0, 65535) // 256
      image = Image.fromarray(grey.astype(np.uint8))
    elif image.mode == 'F':
      raise UserError("a picture in mode 'F' has no known range: scale it to 8 bits first")
    elif image.mode in ('P', 'PA', 'LA', 'La') or 'transparency' in image.info:
      image = image.convert('RGBA')
    image = image.convert('RGB') if image.mode not in ('L', 'CMYK') else image
    return to_srgb(image, profile)
  except (OSError, SyntaxError) as error:
    raise UserError(f'the picture cannot be read: {error}') from error


def _from_array(array: np.ndarray) -> Image.Image:
  channels = array.shape[2] if array.ndim == 3 else 1
  if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4):
    raise UserError(
      'an image is a Pillow image or a uint8 array (H, W) or (H, W, 1|3|4), not '
      f'{array.dtype} {array.shape}; floats in [0, 1] go to the classifier as they are'
    )
  return Image.fromarray(array[:, :, 0] if array.ndim == 3 and channels == 1 else array)


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
