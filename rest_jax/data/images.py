"""Image files and bytes to RGB arrays, through Pillow."""

from __future__ import annotations

import io
import pathlib

import numpy as np
from PIL import Image

from rest_jax.errors import UserError


def decode_image(content: bytes, where: str) -> np.ndarray:
  """Decodes an image file of any kind that Pillow reads.

  Grey, palette, alpha, CMYK and 16-bit images become 8-bit RGB; transparency is dropped.

  Args:
    content: the bytes of the file.
    where: what is decoded, for the error message.

  Returns:
    (H, W, 3) uint8.

  Raises:
    UserError: the bytes are no whole image.
  """
  try:
    with Image.open(io.BytesIO(content)) as image:
      return np.asarray(_to_rgb(image))
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
    reason = str(error) if content else 'it is empty'
    reason = 'it is not an image' if reason.startswith('cannot identify') else reason
    raise UserError(f'cannot read the image {where}: {reason}; mend or remove it') from error


def read_image(path: str | pathlib.Path) -> np.ndarray:
  """Reads an image file; see `decode_image`.

  Args:
    path: of the file.

  Returns:
    (H, W, 3) uint8.

  Raises:
    UserError: the file is missing or no whole image; the message names it.
  """
  try:
    content = pathlib.Path(path).read_bytes()
  except OSError as error:
    raise UserError(f'cannot read the image {path}: {error.strerror or error}') from error
  return decode_image(content, str(path))


def _to_rgb(image: Image.Image) -> Image.Image:
  if image.mode.startswith(('I', 'F')):
    # Pillow clips where it should scale: 16-bit grey would turn white.
    return Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8)).convert('RGB')
  if image.mode == 'P' and 'transparency' in image.info:
    return image.convert('RGBA').convert('RGB')  # the direct way warns
  return image.convert('RGB')
