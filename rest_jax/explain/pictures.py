"""Picture files for explain.py: found, read, and where in them the model looked.

Part of the script, not of the library: it imports `rest_jax.models`.
"""

from __future__ import annotations

import collections
import functools
import glob
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from rest_jax.data import picture_files
from rest_jax.errors import UserError
from rest_jax.paths import local, safe_name, safe_names
from rest_jax.rgb import upright

_NAMELESS = 'picture'  # results of '...' and the like


class Placement(NamedTuple):
  """The rectangle of a picture that a model saw, in pixels, edges not centres; may be fractional.

  A picture of W x H pixels spans (0, 0, W, H).
  """

  left: float
  top: float
  right: float
  bottom: float


def find_pictures(places: Sequence[str], say: Callable[[str], object] | None = None) -> list[Path]:
  """Turns what the user named into files.

  Args:
    places: files, folders (their picture files by suffix, hidden ones and sub-folders left out) and
      glob patterns ('**' goes down). A name that is none of these is kept as a file: reading it
      says what is wrong, and the other files are still explained.
    say: told what of a folder is passed over and why; by default that goes to stderr.

  Returns:
    Every file once, in the order given; folders and patterns sorted by name.

  Raises:
    UserError: a folder without pictures, or a pattern that nothing matches.
  """
  found: dict[Path, None] = {}
  say = say or functools.partial(print, file=sys.stderr)
  for place in places:
    found |= dict.fromkeys(_expand(place, say))
  return list(found)


def _expand(place: str, say: Callable[[str], object]) -> list[Path]:
  path = local(place, 'a picture')
  if path.is_dir():
    there = picture_files.find(path, deep=False)
    folders = picture_files.sub_folders(path)
    notes = [picture_files.passed_over(there)]
    if folders:
      some = f'{len(folders)} sub-folder{"s" * (len(folders) != 1)}'
      notes.append(f"{some} left out: '{path}/**' goes down")
    note = '; '.join(filter(None, notes))
    if not there.files:
      suffixes = ', '.join(sorted(picture_files.readable_suffixes()))
      raise UserError(
        f'no pictures in the folder {place}{f" ({note})" * bool(note)}: it takes {suffixes}'
      )
    if note:
      say(f'{place}: {note}')
    return [Path(file) for file in there.files]
  if path.exists() or not glob.has_magic(place):
    return [path]
  matches = sorted(Path(name) for name in glob.glob(os.fspath(path), recursive=True))
  # A link to a folder may lead to the same files again, for ever.
  once = {match.resolve(): match for match in reversed(matches) if match.is_file()}
  files = [match for match in matches if once.get(match.resolve()) == match]
  if not files:
    raise UserError(f'no file matches {place!r}: quote the pattern and check the folder')
  there = picture_files.sort_out(map(str, files))
  if not there.files:
    return files  # reading them says what they are
  if note := picture_files.passed_over(there):
    say(f'{place}: {note}')
  return [Path(file) for file in there.files]


def read_picture(path: str | os.PathLike[str]) -> Image.Image:
  """Reads a picture file as a person sees it.

  As training and evaluation read it (`rest_jax.rgb`): the EXIF orientation is applied; grey,
  palette, CMYK and 16-bit pictures become 8-bit RGB, transparency is dropped; of an animation the
  first frame is taken.

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
        picture = upright(file)
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
