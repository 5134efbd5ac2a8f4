"""How a folder of pictures is laid out: its splits, its classes, and where the labels are.

  ROOT/train/CLASS/*.jpg   and val/, test/: splits by name, in any case
  ROOT/CLASS/*.jpg         no splits: a seeded tenth of every class is 'test', the rest 'train'
  ROOT/labels.csv          a list of labels (`label_files`) of pictures anywhere below; likewise
  ROOT/train/CLASS/images/*.JPEG, val/images/*.JPEG, val/val_annotations.txt: Tiny-ImageNet

Classes and files are sorted by name, so that a class keeps its number on every machine; those of a
list without splits too, so that its rows may stand in any order.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from rest_jax.data import box_files, label_files, picture_files
from rest_jax.data.box_files import Boxes
from rest_jax.data.folder import FolderSource, folder_source
from rest_jax.data.label_files import Labelled
from rest_jax.data.picture_files import Found, find, has_pictures, sub_folders
from rest_jax.errors import UserError

Role = Literal['train', 'val', 'test']
ROLES: dict[Role, tuple[str, ...]] = {
  'train': ('train', 'training'),
  'val': ('val', 'valid', 'validation'),
  'test': ('test', 'testing'),
}
ALL = 'all'
_TEST_SHARE = 10  # one image in so many, where the folder has no split of its own
_SEED = 0


@dataclasses.dataclass(frozen=True)
class Split:
  """Pictures with labels, and what to say of them."""

  source: FolderSource
  note: str = ''


@dataclasses.dataclass(frozen=True)
class Folder:
  """A folder of pictures; files are looked for when a split is asked for.

  Attributes:
    root: as it was given.
    class_names: the name of each label.
    numbered: whether the classes are known by number alone, as a list of labels may have them; more
      may follow those that occur.
    roles: what is what: the name of the split for training, for choosing, for testing, as far as
      they are there.
    plain: whether it has no splits of its own.
    note: what to say of the layout.
    splits: name to a function that reads it.
    place: the folder or list that the classes come from.
  """

  root: str
  class_names: tuple[str, ...]
  numbered: bool
  roles: Mapping[Role, str]
  plain: bool
  note: str
  splits: Mapping[str, Callable[[], Split]]
  place: str

  def check_classes(self) -> None:
    """Raises `UserError` for a single class, with the sub-folder that would do."""
    if len(self.class_names) < 2:
      _refuse_single(self.place)

  def split(self, name: str) -> Split:
    """Reads a split.

    Args:
      name: that of its folder, one of `ROLES` in any case, or 'all' where there are no splits.

    Returns:
      It.

    Raises:
      UserError: there is none of that name; those that exist are named.
    """
    found = self.find(name)
    if found is None:
      raise UserError(f'{self.root} has no split {name!r}; it has {", ".join(self.splits)}')
    part = self.splits[found]()
    note = picture_files.transparency_note(part.source.files)
    return dataclasses.replace(part, note='; '.join(filter(None, (part.note, note))))

  def find(self, name: str) -> str | None:
    """The split that a name means; None where there is none.

    Raises:
      UserError: several.
    """
    if name in self.splits:
      return name
    role = role_of(name)
    same = [s for s in self.splits if s.lower() == name.lower()]
    same = same or [s for s in self.splits if role is not None and role_of(s) == role]
    if len(same) > 1:
      raise UserError(f'{self.root} has {" and ".join(same)}: say which, or remove one')
    return same[0] if same else None


def role_of(name: str) -> Role | None:
  """What a split is for, by its name in any case; None where that says nothing."""
  return next((role for role, names in ROLES.items() if name.lower() in names), None)


def open_folder(root: str) -> Folder:
  """Finds out how a folder is laid out.

  Args:
    root: the folder, or a CSV with labels.

  Returns:
    The folder; no picture is opened.

  Raises:
    UserError: no class, a single one (with the sub-folder that would do), a class without
      pictures, or several lists of labels.
  """
  root = os.path.normpath(root)
  folder = _listed(root, root) if os.path.isfile(root) else _open_directory(root)
  for name in folder.class_names:
    _check_name(name)
  return folder


def _check_name(name: str) -> None:
  """A class is written into text files, one a line, when a model has learnt it."""
  try:
    name.encode()
  except UnicodeEncodeError:
    raise UserError(f'the name of the class {name!a} is no UTF-8: rename its folder') from None
  if len(name.splitlines()) != 1:
    raise UserError(f'the name of the class {name!r} is not one line: rename its folder')


def _open_directory(root: str) -> Folder:
  folders = [
    name
    for name in sub_folders(root)
    if name.lower() not in box_files.FOLDERS or has_pictures(os.path.join(root, name))
  ]
  stems = {name.lower() for name in folders}
  lists = [
    path
    for path in label_files.find_lists(root)
    if os.path.splitext(os.path.basename(path))[0].lower() not in stems
  ]
  if len(lists) > 1:
    raise UserError(f'{root} has several lists of labels: give one of {", ".join(lists)}')
  if lists:
    return _listed(root, lists[0])
  if _has_splits(root, folders):
    return _with_splits(root, folders)
  return _plain(root, folders)


def _has_splits(root: str, folders: Sequence[str]) -> bool:
  """Whether sub-folders are splits; a class may be called train, beside others such as bus."""
  named = [name for name in folders if role_of(name)]
  return bool(named) and (
    len(named) == len(folders) or any(_labels(os.path.join(root, name)) for name in named)
  )


def _labels(folder: str) -> Literal['list', 'annotations', 'folders', '']:
  """Where the labels of a split are; '' where it has none."""
  if _list_of(folder) is not None:
    return 'list'
  if label_files.find_annotations(folder):
    return 'annotations'
  return 'folders' if _class_folders(folder) else ''


def _list_of(folder: str) -> str | None:
  """A CSV in the folder of a split, or beside it and called like it."""
  inside = label_files.find_lists(folder)
  if len(inside) > 1:
    raise UserError(f'{folder} has several lists of labels: {", ".join(inside)}; leave one')
  beside = [
    path
    for path in label_files.find_lists(os.path.dirname(folder) or '.')
    if os.path.splitext(path)[0].lower() == folder.lower()
  ]
  return (inside or beside or [None])[0]


def _class_folders(folder: str) -> list[str]:
  """Sub-folders that hold pictures; a lone one called images is no class."""
  names = [n for n in sub_folders(folder) if has_pictures(os.path.join(folder, n))]
  return [] if [name.lower() for name in names] == ['images'] else names


def _with_splits(root: str, folders: Sequence[str]) -> Folder:
  places = {name: os.path.join(root, name) for name in folders if role_of(name)}
  labelled = {name: kind for name in places if (kind := _labels(places[name]))}
  if not labelled:
    raise UserError(
      f'{root} has no labels: put the pictures of each class of a split into a folder'
    )
  train = [name for name in labelled if role_of(name) == 'train']
  names, numbered = _names_of({name: places[name] for name in train or labelled}, labelled)
  roles: dict[Role, str] = {}
  for name in labelled:
    roles.setdefault(role_of(name) or 'test', name)
  notes = [
    f'{places[name]} has no labels and is passed over' for name in places if name not in labelled
  ]
  strays = [name for name in folders if name not in places]
  if strays:
    notes.append(f'{", ".join(strays)}: no split by the name, passed over')
  where = train[0] if train else ''
  read = functools.partial(_read_split, root, names, where)
  splits = {name: functools.partial(read, places[name], kind) for name, kind in labelled.items()}
  place = places[next(iter(train or labelled))]
  return Folder(root, names, numbered, roles, False, '; '.join(notes), splits, place)


def _names_of(
  places: Mapping[str, str], labelled: Mapping[str, str]
) -> tuple[tuple[str, ...], bool]:
  """The class names of splits, and whether they are numbers alone."""
  names: set[str] = set()
  numbered = False
  for name, folder in places.items():
    if labelled[name] == 'folders':
      names |= set(sub_folders(folder))
    else:
      labels = _read_labels(folder, labelled[name])
      numbered = labels.numbered
      names |= set(_all_names(labels))
  return tuple(sorted(names, key=lambda name: (int(name), '') if numbered else (0, name))), numbered


def _read_labels(folder: str, kind: str) -> Labelled:
  if kind == 'annotations':
    return label_files.read_annotations(str(label_files.find_annotations(folder)))
  return label_files.read_list(str(_list_of(folder)))


def _all_names(labels: Labelled) -> list[str]:
  """The class names of a list, sorted; of numbers all up to the largest."""
  if labels.numbered:
    return [str(number) for number in range(1 + max(map(int, labels.names)))]
  return sorted(set(labels.names))


def _read_split(root: str, names: tuple[str, ...], where: str, folder: str, kind: str) -> Split:
  if kind != 'folders':
    labels = _read_labels(folder, kind)
    _check_names(folder, labels.names, names, os.path.join(root, where))
    return Split(_source_of(root, labels, names))
  found = _class_folders(folder)
  _check_names(folder, found, names, os.path.join(root, where))
  complete = os.path.join(root, where) == folder
  by_class = _files_by_class(folder, names, may_lack=not complete)
  return Split(_source(root, [one.files for one in by_class]), _passed(folder, by_class))


def _check_names(folder: str, found: Sequence[str], names: Sequence[str], where: str) -> None:
  extra = sorted(set(found) - set(names))
  if extra:
    raise UserError(f'{folder} has classes that {where} lacks: {", ".join(extra)}')


def _passed(folder: str, by_class: Sequence[Found]) -> str:
  """What is passed over, in the class folders and beside them."""
  beside = find(folder, deep=False)
  notes = [picture_files.passed_over(picture_files.together(list(by_class)))]
  if beside.files:
    count = len(beside.files)
    notes.append(f'{count} picture{"s" * (count != 1)} beside the class folders passed over')
  return '; '.join(filter(None, notes))


def _plain(root: str, folders: Sequence[str]) -> Folder:
  if not folders:
    there = 'pictures but ' if find(root, deep=False).files else ''
    raise UserError(
      f'{root} has {there}no sub-folders: put the pictures of each class into a sub-folder, or add '
      'a CSV with the columns file and label'
    )
  classes = _class_folders(root)
  if len(classes) < len(folders) and len(classes) < 2:
    _refuse_single(root)
  by_class = _files_by_class(root, folders)
  return _unsplit(root, tuple(folders), [one.files for one in by_class], _passed(root, by_class))


def _refuse_single(root: str) -> None:
  """Says which sub-folder would do where a folder has a single class, or none.

  Raises:
    UserError: always.
  """
  if not os.path.isdir(root):
    raise UserError(f'{root} has a single class: a classifier tells two apart at least')
  names = [name for name in sub_folders(root) if has_pictures(os.path.join(root, name))]
  if not names:
    empty = ', '.join(os.path.join(root, name) for name in sub_folders(root))
    raise UserError(f'no images in {empty}: add some or remove the folder')
  inner = os.path.join(root, names[0])
  below = _class_folders(inner)
  if len(below) > 1:
    shown = ', '.join(below[:3]) + (', ...' if len(below) > 3 else '')
    raise UserError(f'{root} has a single class, {names[0]}: give {inner}, which has {shown}')
  raise UserError(
    f'{root} has a single class, {names[0]}: put the pictures of each class into a sub-folder of it'
  )


def _files_by_class(folder: str, names: Sequence[str], may_lack: bool = False) -> list[Found]:
  places = [os.path.join(folder, name) for name in names]
  found = [find(place) if os.path.isdir(place) else Found([], {}, {}) for place in places]
  empty = [pair for pair in zip(places, found, strict=True) if not pair[1].files]
  if empty and not may_lack:
    notes = (picture_files.passed_over(one) for _, one in empty)
    shown = [
      f'{place} ({note})' if note else place for (place, _), note in zip(empty, notes, strict=True)
    ]
    raise UserError(f'no images in {", ".join(shown)}: add some or remove the folder')
  return found


def _listed(root: str, path: str) -> Folder:
  labels = label_files.read_list(path)
  names = tuple(_all_names(labels))
  number = {name: label for label, name in enumerate(names)}
  by_class: list[list[str]] = [[] for _ in names]
  for file, name in zip(labels.files, labels.names, strict=True):
    by_class[number[name]].append(file)
  base = os.path.dirname(path) or '.'
  # Which tenth is for testing is a matter of the pictures, not of how a table was sorted.
  by_class = [sorted(some, key=lambda file: os.path.relpath(file, base)) for some in by_class]
  folder = _unsplit(base, names, by_class, f'labels from {path}', labels)
  return dataclasses.replace(folder, root=root, numbered=labels.numbered, place=path)


def _unsplit(
  root: str,
  names: tuple[str, ...],
  files: list[list[str]],
  note: str,
  labels: Labelled | None = None,
) -> Folder:
  """A folder without splits: all of it, and the seeded parts for training and testing."""
  train, test = _parts(files)
  boxes = {} if labels is None else dict(zip(labels.files, labels.boxes, strict=False))

  def part(some: list[list[str]]) -> Split:
    return Split(_source(root, some, boxes))

  splits = {ALL: files, 'test': test, 'train': train}
  readers = {name: functools.partial(part, some) for name, some in splits.items()}
  return Folder(root, names, False, {'train': 'train', 'test': 'test'}, True, note, readers, root)


def _parts(files: list[list[str]]) -> tuple[list[list[str]], list[list[str]]]:
  """Keeps a random tenth of each class, at least one of two images, for testing."""
  rng = np.random.default_rng(_SEED)
  train, test = [], []
  for found in files:
    order = rng.permutation(len(found))
    count = max(len(found) // _TEST_SHARE, 1 if len(found) > 1 else 0)
    test.append([found[i] for i in sorted(order[:count])])
    train.append([found[i] for i in sorted(order[count:])])
  return train, test


def _source(
  root: str,
  files: list[list[str]],
  boxes: Mapping[str, Boxes] | None = None,
) -> FolderSource:
  paths = [path for found in files for path in found]
  labels = [label for label, found in enumerate(files) for _ in found]
  extras = {'boxes': [boxes[path] for path in paths]} if boxes else {}
  return folder_source(root, paths, labels, **extras)


def _source_of(root: str, labels: Labelled, names: Sequence[str]) -> FolderSource:
  number = {name: label for label, name in enumerate(names)}
  extras = {'boxes': labels.boxes} if labels.boxes else {}
  return folder_source(root, labels.files, [number[name] for name in labels.names], **extras)
