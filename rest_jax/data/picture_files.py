"""Picture files: found in a defined order, what is passed over counted, read as people see them."""

from __future__ import annotations

import collections
import dataclasses
import functools
import glob
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image

from rest_jax.errors import UserError
from rest_jax.paths import local
from rest_jax.rgb import upright

# What files of pictures are called. Pillow reads most of them, some only with a plug-in.
SUFFIXES = frozenset(
  (
    *('.apng', '.avif', '.avifs', '.bmp', '.dib', '.gif', '.heic', '.heif', '.ico', '.j2c', '.j2k'),
    *('.jfif', '.jp2', '.jpc', '.jpe', '.jpeg', '.jpf', '.jpg', '.jpx', '.jxl', '.mpo', '.pbm'),
    *('.pcx', '.pgm', '.png', '.pnm', '.ppm', '.psd', '.qoi', '.ras', '.sgi', '.tga', '.tif'),
    *('.tiff', '.webp'),
  )
)
_SYSTEM_FILES = frozenset(('thumbs.db', 'desktop.ini', 'ehthumbs.db'))
_SYSTEM_FOLDERS = frozenset(('__macosx', '@eadir', '$recycle.bin', 'system volume information'))
_SHOWN = 4  # suffixes that are named
_OPAQUE = frozenset(('.jfif', '.jpe', '.jpeg', '.jpg', '.mpo', '.pgm', '.pbm', '.ppm', '.pnm'))
_MOST_HEADS = 500  # files whose heads are read for a note: a tenth of a second, or a few over a net


@dataclasses.dataclass(frozen=True)
class Found:
  """What a folder holds.

  Attributes:
    files: paths of the pictures, sorted by name, those of a folder before those of its sub-folders.
    unreadable: how many files of a suffix are pictures that this Pillow cannot read.
    others: how many of a suffix are no pictures.
  """

  files: list[str]
  unreadable: Mapping[str, int]
  others: Mapping[str, int]


@functools.cache
def readable_suffixes() -> frozenset[str]:
  """Those of `SUFFIXES` that Pillow can decode here, plug-ins that are registered included."""
  Image.init()
  kinds = Image.registered_extensions() | {'.mpo': 'JPEG'}  # which is how Pillow opens it
  return frozenset(suffix for suffix in SUFFIXES if kinds.get(suffix) in Image.OPEN)


def is_hidden(name: str) -> bool:
  """Whether a file or folder is the operating system's or hidden, and never meant."""
  return name.startswith('.') or name.lower() in _SYSTEM_FILES | _SYSTEM_FOLDERS


def sub_folders(folder: str | os.PathLike[str]) -> list[str]:
  """Names of the sub-folders, sorted; links are followed, hidden ones left out."""
  with os.scandir(folder) as entries:
    return sorted(e.name for e in entries if not is_hidden(e.name) and _is_folder(e))


def find(folder: str | os.PathLike[str], deep: bool = True) -> Found:
  """Finds the pictures of a folder by their suffix, in any case.

  Hidden files and folders and the operating system's are left out without a word. Links to folders
  are followed; a folder that several lead to is read once, so that loops end.

  Args:
    folder: where.
    deep: whether sub-folders are looked into.
  """
  return sort_out(_walk(os.fspath(folder), deep))


def sort_out(paths: Iterable[str]) -> Found:
  """Tells pictures from other files by their suffix; keeps the order."""
  files: list[str] = []
  passed = {True: collections.Counter[str](), False: collections.Counter[str]()}
  readable = readable_suffixes()
  for path in paths:
    suffix = os.path.splitext(path)[1].lower()
    if suffix in readable:
      files.append(path)
    else:
      passed[suffix in SUFFIXES][suffix or 'no suffix'] += 1
  return Found(files, passed[True], passed[False])


def identity(file: Path) -> object:
  """What a file is whatever it is called; its name where it cannot be looked at."""
  try:
    found = file.stat()
  except OSError:
    return file.absolute()
  return found.st_dev, found.st_ino


def has_pictures(folder: str | os.PathLike[str]) -> bool:
  """Whether there is a picture that can be read in a folder or below it."""
  readable = readable_suffixes()
  paths = _walk(os.fspath(folder), deep=True)
  return any(os.path.splitext(path)[1].lower() in readable for path in paths)


def passed_over(found: Found) -> str:
  """What was passed over and why, '' where that is nothing."""
  reasons = []
  if found.unreadable:
    reasons.append(f'{_counts(found.unreadable)}, which Pillow cannot read here: save them as PNG')
  if found.others:
    reasons.append(f'{_counts(found.others)}, no pictures by their suffix')
  count = sum(found.unreadable.values()) + sum(found.others.values())
  return f'{count} file{"s" * (count != 1)} passed over ({"; ".join(reasons)})' if count else ''


def transparency_note(files: Sequence[str | os.PathLike[str]]) -> str:
  """What is said once of pictures with an alpha channel, which no reader here looks at.

  As in torchvision, timm and Detectron2 the stored colours count, also where nobody sees them. The
  heads of files alone are read, of many files those of some.

  Args:
    files: paths of pictures; what cannot be read is passed over.

  Returns:
    A line; '' where none has one.
  """
  suffixes = (os.path.splitext(os.fspath(file))[1].lower() for file in files)
  able = [place for place, suffix in enumerate(suffixes) if suffix not in _OPAQUE]
  looked = able[:: -(-len(able) // _MOST_HEADS) or 1]
  count = sum(_is_transparent(files[place]) for place in looked)
  if not count:
    return ''
  of = (
    f'{len(files)} pictures' if len(looked) == len(able) else f'{len(looked)} that were looked at'
  )
  have = 'has' if count == 1 else 'have'
  return f'{count} of {of} {have} an alpha channel, which is left out: the colours under it count'


def _is_transparent(path: str | os.PathLike[str]) -> bool:
  """Whether the head of a file says that it has an alpha channel, or a transparent colour."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # of damage, which is said when it is read
      with Image.open(path) as image:
        return image.has_transparency_data
  except Exception:
    return False  # whatever a decoder makes of damaged bytes


def together(several: list[Found]) -> Found:
  """One for several folders, in their order."""
  return Found(
    [file for found in several for file in found.files],
    sum((collections.Counter(found.unreadable) for found in several), collections.Counter()),
    sum((collections.Counter(found.others) for found in several), collections.Counter()),
  )


def _counts(passed: Mapping[str, int]) -> str:
  kinds = sorted(passed.items(), key=lambda item: (-item[1], item[0]))
  shown = [f'{count} {suffix}' for suffix, count in kinds[:_SHOWN]]
  rest = sum(count for _, count in kinds[_SHOWN:])
  return ', '.join([*shown, f'{rest} others'] if rest else shown)


def _walk(folder: str, deep: bool) -> Iterator[str]:
  """Paths of all files that are not hidden, in an order that no file system decides."""
  seen: set[tuple[int, int]] = set()
  waiting = [folder]
  while waiting:
    place = waiting.pop()
    state = os.stat(place)
    if (state.st_dev, state.st_ino) in seen:
      continue
    seen.add((state.st_dev, state.st_ino))
    with os.scandir(place) as entries:
      ordered = sorted((e for e in entries if not is_hidden(e.name)), key=lambda e: e.name)
    folders = [entry for entry in ordered if _is_folder(entry)]
    names = {entry.name for entry in folders}
    # A link that leads nowhere is a file too: reading it says so, and no image is lost unseen.
    files = (e for e in ordered if e.name not in names)
    yield from (e.path for e in files if e.is_symlink() or e.is_file(follow_symlinks=False))
    if deep:
      # The last one is taken first; links after folders, so that a folder is found by its own name.
      folders.sort(key=lambda entry: (entry.is_symlink(), entry.name), reverse=True)
      waiting += [entry.path for entry in folders]


def _is_folder(entry: os.DirEntry[str]) -> bool:
  try:
    return entry.is_dir()
  except OSError:  # a link to itself
    return False


# ---- What a user names --------------------------------------------------------------------------


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
    there = find(path, deep=False)
    folders = sub_folders(path)
    notes = [passed_over(there)]
    if folders:
      some = f'{len(folders)} sub-folder{"s" * (len(folders) != 1)}'
      notes.append(f"{some} left out: '{path}/**' goes down")
    note = '; '.join(filter(None, notes))
    if not there.files:
      suffixes = ', '.join(sorted(readable_suffixes()))
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
  there = sort_out(map(str, files))
  if not there.files:
    return files  # reading them says what they are
  if note := passed_over(there):
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
