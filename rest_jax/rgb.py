"""The one way from a picture of any kind to 8-bit RGB, upright as a person sees it.

Training, evaluation, explain.py, defend.py and `Classifier.preprocess` all go through here, so that
a picture is the same picture everywhere. What has more than 8 bits is scaled by its range; where a
file does not say what that is, it is refused instead of guessed.
"""

from __future__ import annotations

import re
import struct
from typing import Any

import numpy as np
from PIL import Image

from rest_jax.errors import UserError
from rest_jax.profiles import to_srgb

Box = tuple[float, float, float, float]
# What undoes each EXIF orientation (EXIF 2.32, tag 0x0112); 1 and whatever is no orientation: none.
_TURNS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
_INVERSE = {6: 8, 8: 6}  # the others are their own
_ORIENTATION = 0x0112
_METADATA = ('exif', 'xmp', 'XML:com.adobe.xmp')  # what an orientation is read from
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
_WIDE_GREY = ('I;16', 'I;16L', 'I;16B', 'I;16N', 'I')
_SCALED_FORMATS = ('PPM', 'JPEG2000')  # Pillow scales them by the range that their header gives
_BITS_PER_SAMPLE, _MAX_SAMPLE = 258, 281  # TIFF 6.0, sections 8 and 19
_MOST_UNCLEAR_BITS = 14
_ADVICE = 'save it as 8-bit PNG or JPEG, scaled to 0..255'


def orientation(image: Image.Image) -> int:
  """How an opened picture has to be turned: its EXIF orientation, 1 to 8.

  TIFF counts as 1, because Pillow turns it while it decodes. Damaged metadata is 1.

  Args:
    image: as `PIL.Image.open` gives it; nothing is decoded.
  """
  if image.format == 'TIFF':
    return 1
  found = _exif_orientation(image.info.get('exif'))
  if found is None:
    xmp = image.info.get('xmp') or image.info.get('XML:com.adobe.xmp') or b''
    match = _XMP.search(xmp.encode(errors='replace') if isinstance(xmp, str) else xmp)
    found = int(match[1]) if match else 1
  return found if found in _TURNS else 1


def _exif_orientation(exif: Any) -> int | None:
  """Read by hand: Pillow would parse all tags, and warn of damage in others than this one."""
  if not isinstance(exif, bytes):
    return None
  exif = exif.removeprefix(b'Exif\x00\x00')
  order = {b'II': '<', b'MM': '>'}.get(exif[:2])
  try:
    if order is None:
      return None
    (start,) = struct.unpack_from(f'{order}I', exif, 4)
    (count,) = struct.unpack_from(f'{order}H', exif, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
      tag, kind = struct.unpack_from(f'{order}HH', exif, entry)
      if tag == _ORIENTATION:
        return struct.unpack_from(f'{order}{"I" if kind == 4 else "H"}', exif, entry + 8)[0]
  except struct.error:
    pass
  return None


def turn(image: Image.Image, how: int) -> Image.Image:
  """The picture upright.

  Args:
    image: as it is stored.
    how: its orientation, 1 to 8.
  """
  return image if how == 1 else image.transpose(_TURNS[how])


def turn_box(box: Box, size: tuple[int, int], how: int) -> Box:
  """Where a rectangle of the stored picture lies in the upright one.

  Args:
    box: (left, top, right, bottom) in pixels, edges not centres.
    size: (width, height) of the stored picture.
    how: its orientation.
  """
  (left, top, right, bottom), (width, height) = box, size
  if how in (2, 3, 7, 8):
    left, right = width - right, width - left
  if how in (3, 4, 6, 7):
    top, bottom = height - bottom, height - top
  return (top, left, bottom, right) if how >= 5 else (left, top, right, bottom)


def turn_box_back(box: Box, size: tuple[int, int], how: int) -> Box:
  """Where a rectangle of the upright picture, of that `size`, lies in the stored one."""
  return turn_box(box, size, _INVERSE.get(how, how))


def to_rgb(image: Image.Image | np.ndarray) -> Image.Image:
  """An RGB picture of a picture in any mode, not turned.

  Transparency is dropped, a colour profile is converted to sRGB. Grey of 16 bits is scaled by its
  range: that of the format where it has
  one (PGM, JPEG 2000, the bits or the largest value that a TIFF states), else 0..65535 where more
  than 14 bits are used. Values that end below may be of 10, 12 or 14 bits, as cameras give them.

  Args:
    image: a Pillow image, or a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).

  Returns:
    A Pillow image in mode RGB, loaded.

  Raises:
    UserError: another kind of array, no pixels, a range that cannot be known (floats, 32 bits,
      fewer bits than are stored), or an unreadable file.
  """
  if not isinstance(image, Image.Image):
    image = _from_array(np.asarray(image))
  if not image.width or not image.height:
    raise UserError('the image has no pixels')
  try:
    return converted(image)
  except (OSError, SyntaxError) as error:
    raise UserError(f'the picture cannot be read: {error}') from error


def upright(image: Image.Image) -> Image.Image:
  """An opened picture as RGB, turned as its EXIF orientation says; errors as `converted`.

  What was turned says no longer that it has to be.
  """
  picture = converted(image)
  how = orientation(image)  # only now: some PNGs have their EXIF data after the pixels
  turned = turn(picture, how)
  if how != 1:
    turned.info = {k: v for k, v in turned.info.items() if k not in _METADATA}
  return turned


def converted(image: Image.Image) -> Image.Image:
  """As `to_rgb`, of an opened picture; what Pillow raises of damaged files passes."""
  wide = _stores_16_bits(image)  # known before decoding alone
  image.load()
  profile = image.info.get('icc_profile')
  if image.mode == 'RGB' and not wide:
    return to_srgb(image, profile)
  if image.mode in _WIDE_GREY:
    image = _from_wide_grey(image)
  elif image.mode == 'F':
    raise UserError(f"a picture in mode 'F' (floats) has no known range: {_ADVICE}")
  elif wide:
    _check_bits(int(np.asarray(image).max()) * 256)
  image = image.convert('LA') if image.mode == 'La' else image  # Pillow has no other way
  if image.mode in ('P', 'PA', 'LA', 'RGBa') or 'transparency' in image.info:
    image = image.convert('RGBA')  # the direct way warns, or does not exist
  image = image if image.mode in ('L', 'CMYK') else image.convert('RGB')
  return to_srgb(image, profile)


def _stores_16_bits(image: Image.Image) -> bool:
  """Whether colours of 16 bits are cut to their upper 8 while Pillow decodes."""
  if image.format not in ('PNG', 'TIFF') or image.mode in _WIDE_GREY:
    return False
  tiles = getattr(image, 'tile', None) or ()
  modes = (tile[3][0] if isinstance(tile[3], tuple) else tile[3] for tile in tiles)
  return any(isinstance(mode, str) and ';16' in mode for mode in modes)


def _from_wide_grey(image: Image.Image) -> Image.Image:
  values = np.asarray(image).astype(np.int64)
  largest = _stated_largest(image)
  if largest is None:
    low, high = int(values.min()), int(values.max())
    if (image.mode == 'I' and image.format == 'TIFF') or low < 0 or high > 65535:
      raise UserError(
        f'a picture of 32-bit integers, here {low} to {high}, has no known range: {_ADVICE}'
      )
    _check_bits(high)
    largest = 65535
  return Image.fromarray((values * 256 // (largest + 1)).clip(0, 255).astype(np.uint8))


def _stated_largest(image: Image.Image) -> int | None:
  """The value of white where the file says it; None where it does not."""
  if image.format in _SCALED_FORMATS:
    return 65535
  tags = getattr(image, 'tag_v2', None)
  if image.format != 'TIFF' or tags is None:
    return None
  stated, bits = _first(tags.get(_MAX_SAMPLE)), _first(tags.get(_BITS_PER_SAMPLE))
  if stated is not None and stated > 0:
    return stated
  return (1 << bits) - 1 if bits is not None and 8 < bits < 16 else None


def _first(value: Any) -> int | None:
  value = value[0] if isinstance(value, tuple) and value else value
  return int(value) if isinstance(value, int | float) else None


def _check_bits(high: int) -> None:
  """Values of 16 bits that use 14 or fewer may be of fewer bits; 0 is black in any range."""
  if 0 < high < 2**_MOST_UNCLEAR_BITS:
    raise UserError(
      f'a picture of 16 bits whose largest value is {high} of 65535 has no known range (10, 12 and '
      f'14 bits are stored so): {_ADVICE}'
    )


def _from_array(array: np.ndarray) -> Image.Image:
  channels = array.shape[2] if array.ndim == 3 else 1
  if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4):
    raise UserError(
      'an image is a Pillow image or a uint8 array (H, W) or (H, W, 1|3|4), not '
      f'{array.dtype} {array.shape}; floats in [0, 1] go to the classifier as they are'
    )
  return Image.fromarray(array[:, :, 0] if array.ndim == 3 and channels == 1 else array)
