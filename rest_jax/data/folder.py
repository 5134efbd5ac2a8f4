"""A folder of images, one sub-folder a class.

Either `ROOT/train/CLASS/*.jpg` with `ROOT/val/CLASS/...` (or `test`, `validation`), or
`ROOT/CLASS/*.jpg`, from which a seeded tenth of every class is kept for testing.
"""

from __future__ import annotations

import array
import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from rest_jax.data.images import open_image
from rest_jax.errors import UserError

IMAGE_SUFFIXES = frozenset(
  ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.gif', '.tif', '.tiff', '.ppm', '.pgm')
)
_TEST_NAMES = ('test', 'val', 'validation')
_TEST_SHARE = 10  # one image in so many, where the folder has no split of its own
_SEED = 0


class FileNames(Sequence[str]):
  """Paths in one piece of memory: a worker gets a copy, and a million strings take 200 MB."""

  def __init__(self, paths: Sequence[str]):
    """Packs the paths."""
    # Letter by letter, which need not end at a slash.
    self._prefix = os.path.commonprefix([min(paths), max(paths)]) if paths else ''  # noqa: RUF071
    parts = [os.fsencode(path[len(self._prefix) :]) for path in paths]
    self._ends = np.cumsum([len(part) for part in parts])
    self._packed = b''.join(parts)

  def __len__(self) -> int:
    return len(self._ends)

  def __eq__(self, other: object) -> bool:
    return isinstance(other, FileNames) and list(self) == list(other)

  def __getitem__(self, index):
    if isinstance(index, slice):
      return [self[i] for i in range(*index.indices(len(self)))]
    index = range(len(self))[index]
    start = self._ends[index - 1] if index else 0
    return self._prefix + os.fsdecode(self._packed[start : self._ends[index]])


@dataclasses.dataclass(frozen=True)
class FolderSource:
  """Random access to image files; decoded when asked for.

  Attributes:
    files: path of each image.
    labels: class number of each image.
  """

  files: Sequence[str]
  labels: Sequence[int]

  def __len__(self) -> int:
    return len(self.files)

  def open(self, index: int) -> dict:
    """Returns {'image': an `EncodedImage`, 'label': int}."""
    return {'image': open_image(self.files[index]), 'label': self.labels[index]}

  def __getitem__(self, index: int) -> dict:
    example = self.open(index)
    return {**example, 'image': np.asarray(example['image'].picture())}


def load_folder(root: str | os.PathLike) -> tuple[FolderSource, FolderSource, tuple[str, ...]]:
  """Finds the classes and images of a folder.

  Files that are hidden or carry no image suffix are passed over. Classes and files are sorted by
  name, so that a class keeps its number on every machine.

  Args:
    root: the folder, in one of the two layouts above.

  Returns:
    (train, test, class names).

  Raises:
    UserError: no class, a class without images, a missing test folder, or one with classes that
      the train folder lacks.
  """
  root = pathlib.Path(root)
  if (root / 'train').is_dir():
    test_root = next((root / name for name in _TEST_NAMES if (root / name).is_dir()), None)
    if test_root is None:
      raise UserError(f'{root} has train/ but neither test/ nor val/: add one of them')
    names = _class_names(root / 'train')
    extra = sorted(set(_class_names(test_root)) - set(names))
    if extra:
      raise UserError(f'{test_root} has classes that {root / "train"} lacks: {", ".join(extra)}')
    train = _files_by_class(root / 'train', names)
    test = _files_by_class(test_root, names, may_lack=True)
  else:
    names = _class_names(root)
    train, test = _split(_files_by_class(root, names))
  if not any(test):
    raise UserError(f'{root} leaves no image for testing: add images')
  return _source(train), _source(test), names


def _class_names(root: pathlib.Path) -> tuple[str, ...]:
  names = sorted(d.name for d in root.iterdir() if d.is_dir() and not d.name.startswith('.'))
  if not names:
    raise UserError(f'{root} has no sub-folders: put the images of each class into one')
  return tuple(names)


def _files_by_class(
  root: pathlib.Path, names: tuple[str, ...], may_lack: bool = False
) -> list[list[str]]:
  files = [_image_files(root / name) for name in names]
  empty = [str(root / name) for name, found in zip(names, files, strict=True) if not found]
  if empty and not may_lack:
    raise UserError(f'no images in {", ".join(empty)}: add some or remove the folder')
  return files


def _image_files(folder: pathlib.Path) -> list[str]:
  if not folder.is_dir():
    return []
  return sorted(
    str(path)
    for path in folder.rglob('*')
    if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith('.')
  )


def _split(files: list[list[str]]) -> tuple[list[list[str]], list[list[str]]]:
  """Keeps a random tenth of each class, at least one of two images, for testing."""
  rng = np.random.default_rng(_SEED)
  train, test = [], []
  for found in files:
    order = rng.permutation(len(found))
    count = max(len(found) // _TEST_SHARE, 1 if len(found) > 1 else 0)
    test.append([found[i] for i in sorted(order[:count])])
    train.append([found[i] for i in sorted(order[count:])])
  return train, test


def _source(files: list[list[str]]) -> FolderSource:
  labels = array.array('i', (label for label, found in enumerate(files) for _ in found))
  return FolderSource(FileNames([path for found in files for path in found]), labels)
