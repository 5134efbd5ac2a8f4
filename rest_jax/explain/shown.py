"""Pictures that were explained, and their maps laid over them as files.

What a model sees of a picture is the model's to know: one that has `views(pictures)`, as a
`Classifier` has, is asked for it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from rest_jax.errors import UserError
from rest_jax.explain.overlays import overlay, stretch
from rest_jax.files import replacing
from rest_jax.inputs import check_images
from rest_jax.paths import local, output_names

_FORMATS = {
  # Level 6 takes four times as long on a large picture and saves a few per cent.
  '.png': {'format': 'png', 'compress_level': 3},
  '.jpg': {'format': 'jpeg', 'quality': 92, 'subsampling': 0},
  '.webp': {'format': 'webp', 'quality': 90},
}
_FORMATS['.jpeg'] = _FORMATS['.jpg']
_LONGEST = {'jpeg': 65500, 'webp': 16383}  # pixels a side that a format has
_LARGE = 4 * 2**20  # pixels from which a PNG takes seconds to write and megabytes to keep
_ADVICE = 'free some space or give another path'


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Shown:
  """What an explanation is of, for `save`; no leaves, so that explanations are trees of arrays.

  Attributes:
    views: of each picture: its `file` ('' where it is none), and `look()`, which gives the whole
      `picture`, the rectangle `place` of it that was seen, and the model's `pixels`. None for
      arrays.
    by_pixel: whether the maps are gradients of single pixels.
  """

  views: tuple[Any, ...] = ()
  by_pixel: bool = False


def are_pictures(images: Any) -> bool:
  """Whether these are files or Pillow images, or a list with some, and no array of floats."""
  if isinstance(images, tuple | list):
    return any(map(are_pictures, images))
  return isinstance(images, str | os.PathLike | Image.Image)


def views_of(model: Any, pictures: Any) -> tuple[Any, ...]:
  """How a model sees pictures, as `Shown` has it.

  Raises:
    UserError: it does not know, or there is no picture.
  """
  if not callable(getattr(model, 'views', None)):
    raise UserError(
      f'pictures need a model that knows how they are resized, a Classifier; {_kind(model)} takes '
      'floats (B, H, W, C) in [0, 1]'
    )
  return tuple(model.views(pictures))


def _kind(model: Any) -> str:
  return 'a function' if callable(model) and hasattr(model, '__name__') else type(model).__name__


# ---- Files --------------------------------------------------------------------------------------


def save(shown: Shown, maps: Any, path: str | os.PathLike[str], images: Any = None) -> list[Path]:
  """Lays maps over their pictures and writes them; arguments, result and errors as
  `Explanation.save`.
  """
  maps = np.asarray(maps)
  place = local(path, 'the path of an overlay')
  stems = _stems(place, [view.file for view in shown.views] or [''] * len(maps))
  looks, written = _looks(shown, images, len(maps)), []
  for (stem, suffix), saliency, (picture, seen) in zip(stems, maps, looks, strict=True):
    saliency = stretch(saliency) if shown.by_pixel else saliency
    written.append(Path(f'{stem}{suffix or suffix_for(picture.size)}'))
    write_picture(written[-1], overlay(picture, saliency, seen), _ADVICE)
  return written


def _looks(shown: Shown, images: Any, count: int) -> Iterable[tuple[Image.Image, Any]]:
  """Each picture, read when it is asked for, and the rectangle of it that was seen."""
  if images is None and shown.views:
    return ((seen.picture, seen.place) for seen in (view.look() for view in shown.views))
  if images is None:
    raise UserError(
      'these maps are of arrays, which are not kept: save(path, images) lays the maps over them'
    )
  pixels = np.asarray(check_images(images), np.float32)
  if len(pixels) != count or pixels.shape[-1] not in (1, 3):
    raise UserError(f'images are ({count}, H, W, 1 or 3), as many as maps, got {pixels.shape}')
  eight = np.rint(pixels * 255).clip(0, 255).astype(np.uint8)
  return ((Image.fromarray(np.repeat(p, 3 // p.shape[-1], -1)), None) for p in eight)


def _stems(place: Path, sources: Sequence[str]) -> list[tuple[Path, str]]:
  """A file for each picture, without and with what its name ends in; '' where its size decides.

  The one that was named, numbered ones, or names in a folder.
  """
  suffix = place.suffix.lower()
  if place.is_dir() or not suffix:
    names = output_names([Path(source or f'picture_{n}') for n, source in enumerate(sources, 1)])
    return [(place / name, '') for name in names]
  if suffix not in _FORMATS:
    raise UserError(
      f'{place}: an overlay is a file that ends in {", ".join(_FORMATS)}, or goes into a folder, '
      'whose name has no ending or which is there'
    )
  if len(sources) == 1:
    return [(place.with_suffix(''), place.suffix)]
  numbers = range(1, len(sources) + 1)
  return [(place.with_name(f'{place.stem}_{n}'), place.suffix) for n in numbers]


def write_picture(path: Path, picture: Image.Image, advice: str) -> None:
  """Writes a picture in the format that its name ends in.

  Args:
    path: ends in one of .png, .jpg, .jpeg and .webp.
    picture: mode RGB.
    advice: what to do about an error.

  Raises:
    UserError: it is too long for the format, or cannot be written.
  """
  options = _FORMATS[path.suffix.lower()]
  longest = _LONGEST.get(str(options['format']))
  if longest and max(picture.size) > longest:
    raise UserError(
      f'{path}: {picture.width}x{picture.height} px are more than the {longest:,} a side that '
      'the format has; .png has no such limit'
    )
  with replacing(path, advice=advice) as temporary:
    picture.save(temporary, **options)


def suffix_for(size: tuple[int, int]) -> str:
  """'.png', and '.jpg' for a picture so large that a PNG would take long and much room."""
  large = size[0] * size[1] > _LARGE and max(size) <= _LONGEST['jpeg']
  return '.jpg' if large else '.png'
