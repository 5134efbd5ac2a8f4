"""Image files and bytes to RGB, through Pillow."""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageFile, JpegImagePlugin

from rest_jax import rgb
from rest_jax.errors import UserError
from rest_jax.profiles import to_srgb

Region = tuple[float, float, float, float]
_SCALES = (8, 4, 2)  # by which libjpeg can decode smaller
_MOST_ROWS = 0.93  # share of an image's rows; leaving out fewer saves nothing


class ImageError(UserError):
  """An image that cannot be read; the message names it."""


class EncodedImage:
  """An image file in memory, decoded when pixels are asked for, and only once.

  Every kind becomes 8-bit RGB and is turned upright, see `rest_jax.rgb`; sizes, boxes and pictures
  are those of the upright image.

  Attributes:
    size: (height, width), known without decoding.
    reused: whether more than one crop will be asked for, so that what is decoded should serve all.
  """

  def __init__(self, content: bytes, where: str):
    """Reads the header.

    Args:
      content: the bytes of the file.
      where: what it is, for the error message.

    Raises:
      ImageError: the bytes are no image.
    """
    self._content, self._where = content, where
    self._decoded: dict[int, Image.Image] = {}
    with self._reading():
      image = Image.open(io.BytesIO(content))
      self._fresh: Image.Image | None = image
      if _orientation_comes_late(image, content):
        self._decoded[1], self._fresh = rgb.upright(image), None
      self._turn = rgb.orientation(image)
    self._stored = image.size  # (width, height)
    width, height = self._stored
    self.size = (width, height) if self._turn >= 5 else (height, width)
    self.reused = False

  def picture(self) -> Image.Image:
    """Returns the whole image, RGB.

    Raises:
      ImageError: the file is damaged.
    """
    return self._decode(1)

  def upper(self, box: Region, size: int) -> Image.Image:
    """The whole image, decoded as far down as a crop that will be resized needs it.

    libjpeg decodes row by row, so what lies below costs nothing: with the usual crops an eighth of
    the time. The rows are exactly those of `picture`, and the same damage is noticed.

    Args:
      box: (left, top, right, bottom) in pixels of the image.
      size: side that the crop is resized to, bilinear or bicubic.

    Returns:
      The RGB image; what is further down may be black.

    Raises:
      ImageError: the file is damaged.
    """
    # A bicubic filter reaches two pixels further, larger ones where the crop shrinks.
    rows = math.ceil(box[3] + 2 * max(1.0, (box[3] - box[1]) / size))
    worth_it = rows < _MOST_ROWS * self.size[0] and not self.reused and 1 not in self._decoded
    early = worth_it and self._turn == 1
    return (self._upper_rows(rows) if early else None) or self._decode(1)

  def region(self, box: Region, size: int) -> tuple[Image.Image, Region]:
    """Decodes for a crop that will be resized, at a smaller scale where that is enough.

    libjpeg decodes a JPEG at 1/2, 1/4 or 1/8 for a fraction of the time, by leaving out the high
    frequencies of its blocks; the smallest scale is taken at which the crop still has `size`
    pixels a side. The crop resized from there differs from the exact one by about a grey level in
    the mean (a test bounds it); nothing differs where the crop is less than twice the size, and
    in other formats.

    Args:
      box: (left, top, right, bottom) in pixels of the whole image.
      size: side that the crop is resized to.

    Returns:
      The RGB image, perhaps smaller than the whole, and the box in its pixels.

    Raises:
      ImageError: the file is damaged.
    """
    side = min(box[2] - box[0], box[3] - box[1])
    wanted = next((scale for scale in _SCALES if side >= scale * size), 1)
    image = self._decode(wanted) if wanted > 1 else self.upper(box, size)
    # Counted from the result: only JPEG has scales.
    if image.size == self.size[::-1]:
      return image, box
    # In the stored image its last column and row may stand for fewer pixels, so we count there.
    height, width = self.size
    box = rgb.turn_box_back(box, (width, height), self._turn)
    left, top, right, bottom = (edge / wanted for edge in box)
    width, height = image.size
    stored = (height, width) if self._turn >= 5 else (width, height)
    return image, rgb.turn_box((left, top, right, bottom), stored, self._turn)

  def _decode(self, scale: int) -> Image.Image:
    if scale not in self._decoded:
      with self._reading():
        image = self._fresh or Image.open(io.BytesIO(self._content))
        self._fresh = None  # it decodes but once
        if scale > 1:
          width, height = self._stored
          image.draft(None, (width // scale, height // scale))
        if isinstance(image, ImageFile.ImageFile):
          image.decodermaxblock = len(self._content)  # in one go
        self._decoded[scale] = rgb.turn(rgb.converted(image), self._turn)
    return self._decoded[scale]

  def _upper_rows(self, rows: int) -> Image.Image | None:
    """The first rows of an RGB JPEG of one scan; None of any other, and of one that is not sound.

    libjpeg gives up where damage has made a marker amid the data, and only there. So data with any
    marker but the one at their end, or without that one, are left to be decoded as a whole.
    """
    image = self._fresh
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or image.mode != 'RGB':
      return None
    # The header is read, the data follow. A marker is 255 and then another byte than 0.
    data = np.frombuffer(self._content, np.uint8)[image.fp.tell() if image.fp else 0 :]
    places = np.flatnonzero(data[:-1] == 0xFF)
    if places[data[places + 1] != 0].tolist() != [len(data) - 2]:
      return None
    self._fresh = None  # it decodes but once
    image.decodermaxblock = len(self._content)  # in one go
    image.tile = [image.tile[0]._replace(extents=(0, 0, image.width, rows))]
    with contextlib.suppress(OSError):
      with contextlib.suppress(OSError):
        image.load()  # complains of the rows that are left
      # Rows come in order: the last one is there unless it is black, and then nobody knows.
      if image.crop((0, rows - 1, image.width, rows)).getbbox():
        return to_srgb(image, image.info.get('icc_profile'))
    return None

  @contextlib.contextmanager
  def _reading(self) -> Iterator[None]:
    try:
      yield
    except UserError as error:
      raise ImageError(f'cannot read the image {self._where}: {error}') from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
      reason = str(error) if self._content else 'it is empty'
      reason = 'it is not an image' if reason.startswith('cannot identify') else reason
      raise ImageError(
        f'cannot read the image {self._where}: {reason}; mend or remove it'
      ) from error


def decode_image(content: bytes, where: str) -> np.ndarray:
  """Decodes an image file of any kind that Pillow reads; see `EncodedImage`.

  Args:
    content: the bytes of the file.
    where: what is decoded, for the error message.

  Returns:
    (H, W, 3) uint8.

  Raises:
    ImageError: the bytes are no whole image.
  """
  return np.asarray(EncodedImage(content, where).picture())


def open_image(path: str | os.PathLike) -> EncodedImage:
  """Reads an image file without decoding it.

  Args:
    path: of the file.

  Returns:
    The image.

  Raises:
    ImageError: the file is missing or no image; the message names it.
  """
  try:
    with open(path, 'rb', buffering=0) as file:
      content = file.read()
  except OSError as error:
    raise ImageError(f'cannot read the image {path}: {error.strerror or error}') from error
  return EncodedImage(content, str(path))


def read_image(path: str | os.PathLike) -> np.ndarray:
  """Reads and decodes an image file; see `EncodedImage`.

  Args:
    path: of the file.

  Returns:
    (H, W, 3) uint8.

  Raises:
    ImageError: the file is missing or no whole image; the message names it.
  """
  return np.asarray(open_image(path).picture())


def picture_size(path: str | os.PathLike) -> tuple[int, int]:
  """(height, width) of an image file as it is seen upright, from its head where that will do.

  Args:
    path: of the file.

  Raises:
    ImageError: the file is missing or no image; the message names it.
  """
  try:
    with Image.open(path) as image:
      if image.format not in ('PNG', 'TIFF'):
        width, height = image.size
        return (width, height) if rgb.orientation(image) >= 5 else (height, width)
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
    pass  # said below, in the words of all readers
  return open_image(path).size


def check_size(
  found: tuple[int, ...], stated: tuple[int, ...], what: str, path: str | os.PathLike
) -> None:
  """Refuses annotations that were made on a picture of another size.

  Annotations are of the upright picture, as people and most tools see it. Which way those of a
  picture as it is stored have to turn is not in their file.

  Args:
    found: (H, W) of the upright picture.
    stated: (H, W) that the annotations have.
    what: whose size that is, with a verb.
    path: of the picture.

  Raises:
    UserError: they differ.
  """
  if tuple(found) == tuple(stated):
    return
  cure = 'mend either'
  if tuple(found) == tuple(stated)[::-1] and _is_turned(path):
    cure = (
      'its EXIF orientation turns it, and annotations are of the upright picture: save it without '
      'that, or turn them too'
    )
  raise UserError(
    f'{what} {stated[1]}x{stated[0]} px, the picture {path} has {found[1]}x{found[0]}; {cure}'
  )


def _is_turned(path: str | os.PathLike) -> bool:
  with Image.open(path) as image:
    image.load()
    return (
      image.getexif().get(0x0112, 1) >= 5
      if image.format == 'TIFF'
      else (rgb.orientation(image) >= 5)
    )


def _orientation_comes_late(image: Image.Image, content: bytes) -> bool:
  """Whether decoding alone tells how the image has to be turned: some PNGs, and turned TIFFs."""
  if image.format == 'PNG':
    return b'eXIf' in content or b'Raw profile type' in content or b'tiff:Orientation' in content
  return image.format == 'TIFF' and image.getexif().get(0x0112, 1) != 1
