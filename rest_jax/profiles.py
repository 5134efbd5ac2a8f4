"""Colour profiles: pictures in the colours that a person sees, as sRGB without a profile.

Pixels of a photo in Display P3, of a print in CMYK or of a scan in grey with a dot gain mean other
colours than the same numbers in sRGB. A profile that outlives its pixels is worse: it makes a
program that honours it draw an RGB picture as if it were CMYK.
"""

from __future__ import annotations

import functools
import io

from PIL import Image, ImageCms

_MODES = ('L', 'RGB', 'CMYK')
# Colours that sRGB lacks are clipped, black stays black; no cache, which threads would share.
_FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION | ImageCms.Flags.NOCACHE


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
  """A picture as RGB without a profile.

  Args:
    image: loaded, mode L, RGB or CMYK; with alpha or a palette it is converted to one of these
      first.
    profile: the ICC profile of its file; None, a damaged one and one of another kind of pixels
      count as none: then CMYK is 255 minus ink, and numbers of RGB and grey stay.

  Returns:
    Mode RGB; the same object where nothing is to be done.
  """
  transform = _transform(profile, image.mode) if profile and image.mode in _MODES else None
  if transform is not None:
    converted = ImageCms.applyTransform(image, transform)
    image = image if converted is None else converted
  elif image.mode != 'RGB':
    image = image.convert('RGB')
  image.info.pop('icc_profile', None)
  return image


@functools.lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
  """From a profile to sRGB; None where it is sRGB already or does not fit the pixels."""
  try:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if mode == 'RGB' and 'srgb' in ImageCms.getProfileDescription(source).lower():
      return None
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    return ImageCms.buildTransform(
      source, ImageCms.createProfile('sRGB'), mode, 'RGB', intent, _FLAGS
    )
  except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
    return None
