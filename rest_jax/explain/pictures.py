"""Picture files for explain.py: found, read, and where in them the model looked.

Part of the script, not of the library: it imports `rest_jax.models`.
"""

from __future__ import annotations

import collections
import glob
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps

from rest_jax.errors import UserError
from rest_jax.models.preprocess import to_rgb
from rest_jax.paths import local, safe_name, safe_names

SUFFIXES = frozenset(
  ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.gif', '.tif', '.tiff', '.ppm', '.pgm', '.avif')
)

_NAMELESS = 'picture'  # results of '...' and the like


class Placement(NamedTuple):
  """The rectangle of a picture that a model saw, in pixels, edges not centres; may be fractional.

  A picture of W x H pixels spans (0, 0, W, H).
  """

  left: float
  top: float
  right: float
  bottom: float


def find_pictures(places: Sequence[str]) -> list[Path]:
  """Turns what the user named into files.

  Args:
    places: files, folders (their picture files by suffix, hidden ones and sub-folders left out) and
      glob patterns ('**' goes down). A name that is none of these is kept as a file: reading it
      says what is wrong, and the other files are still explained.

  Returns:
    Every file once, in the order given; folders and patterns sorted by name.

  Raises:
    UserError: a folder without pictures, or a pattern that nothing matches.
  """
  found: dict[Path, None] = {}
  for place in places:
    found |= dict.fromkeys(_expand(place))
  return list(found)


def _expand(place: str) -> list[Path]:
  path = local(place, 'a picture')
  if path.is_dir():
    files = [p for p in sorted(path.iterdir()) if p.suffix.lower() in SUFFIXES and p.is_file()]
    files = [p for p in files if not p.name.startswith('.')]
    if not files:
      raise UserError(f'no pictures in the folder {place}: it has no {", ".join(sorted(SUFFIXES))}')
    return files
  if path.exists() or not glob.has_magic(place):
    return [path]
  matches = sorted(Path(name) for name in glob.glob(os.fspath(path), recursive=True))
  files = [match for match in matches if match.is_file()]
  if not files:
    raise UserError(f'no file matches {place!r}: quote the pattern and check the folder')
  return files


def read_picture(path: str | os.PathLike[str]) -> Image.Image:
  """Reads a picture file as a person sees it.

  The EXIF orientation is applied; grey, palette, CMYK and 16-bit pictures become 8-bit RGB,
  transparency is dropped; of an animation the first frame is taken.

  Args:
    path: of the file.

  Returns:
    A loaded Pillow image in mode RGB.

  Raises:
    UserError: the file is missing, empty, damaged, no picture, of one pixel, or has more pixels
      than Pillow decodes (twice `PIL.Image.MAX_IMAGE_PIXELS`, 179 million).
  """
  path = Path(path)
  try:
    if path.stat().st_size == 0:
      raise UserError(f'{path} is empty: nothing to explain')
    with warnings.catch_warnings():
      # Large pictures are welcome up to Pillow's hard limit; damaged metadata is not our concern.
      warnings.simplefilter('ignore')
      with Image.open(path) as file:
        picture = to_rgb(ImageOps.exif_transpose(file))
  except UserError as error:
    raise error if str(path) in str(error) else UserError(f'{path}: {error}') from error
  except Exception as error:
    # Whatever a decoder makes of damaged bytes: there is no common class for it.
    raise UserError(f'cannot read {path}: {_reason(error)}') from error
  if picture.size == (1, 1):
    raise UserError(f'{path} has a single pixel: there is nothing to locate in it')
  return picture


def _reason(error: Exception) -> str:
  if isinstance(error, Image.UnidentifiedImageError):
    return 'it is not a picture, or of a kind that Pillow does not know'
  if isinstance(error, Image.DecompressionBombError):
    limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    return f'it has more than {limit:,} pixels and may be a decompression bomb; scale it down first'
  if isinstance(error, OSError) and error.strerror:
    return error.strerror.lower()
  return f'the file is damaged ({" ".join(str(error).split()) or type(error).__name__})'


def placement(
  size: tuple[int, int], *, input_size: int, resize: str, crop_pct: float = 0.875
) -> Placement:
  """Where in a picture the model's input lies: the inverse of `models.preprocess.preprocess`.

  Args:
    size: (width, height) of the picture.
    input_size: pixels a side of the model's input.
    resize: 'squash' or 'resize_crop'.
    crop_pct: as the classifier's.

  Returns:
    The rectangle; the whole picture for 'squash'.
  """
  width, height = size
  if resize == 'squash':
    return Placement(0.0, 0.0, float(width), float(height))
  shorter, least = int(input_size / crop_pct), min(width, height)
  scaled = int(shorter * width / least), int(shorter * height / least)
  left, top = (round((side - input_size) / 2) for side in scaled)
  across, down = width / scaled[0], height / scaled[1]
  return Placement(
    left * across, top * down, (left + input_size) * across, (top + input_size) * down
  )


def output_names(files: Sequence[Path]) -> list[str]:
  """A name for each file's results: its stem, with suffix or number where two share one.

  Every file system takes them, also one that ignores case; none is that of another folder, as '..'.
  """
  safe = collections.Counter(map(_stem, files))
  return safe_names((f.name if safe[_stem(f)] > 1 else f.stem for f in files), _NAMELESS)


def _stem(file: Path) -> str:
  return safe_name(file.stem, _NAMELESS).casefold()
