"""The input pipeline: JPEGs read, cropped, mirrored, augmented by RandAugment, as uint8 batches."""

from __future__ import annotations

from pathlib import Path

from benchmarks.photographs import write_photographs
from benchmarks.work import Work


def batches(
  root: str,
  batch: int,
  workers: int,
  repeats: int = 1,
  scaled: bool = False,
  pictures: dict[str, int] | None = None,
) -> Work:
  """A batch a call.

  Args:
    root: folder with JPEGs, labelled by their folder.
    batch: images.
    workers: processes that read.
    repeats: views of an image.
    scaled: `data.scaled_decoding`.
    pictures: 'count', 'width' and 'height' of what is written there first, unless it is there.
  """
  if pictures is not None and not Path(root).exists():
    write_photographs(Path(root), pictures['count'], (pictures['width'], pictures['height']))
  from rest_jax.data import AugmentConfig, train_iterator
  from rest_jax.data.folder import FolderSource

  files = sorted(Path(root).rglob('*.jpg'))
  names = sorted({path.parent for path in files})
  source = FolderSource(tuple(map(str, files)), tuple(names.index(path.parent) for path in files))
  config = AugmentConfig(rand_augment='rand-m9-mstd0.5-inc1', scaled_decoding=scaled)
  found = train_iterator(source, batch, 224, config, workers=workers, repeats=repeats)
  return Work(lambda: next(found), close=found.close)
