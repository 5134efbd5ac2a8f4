"""Where images come from: TFDS data sets, folders, the embedded `digit_scenes`.

`load` opens what a training needs, `load_judged` the one split that a model is judged on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re

import numpy as np

from rest_jax.data.box_files import boxes_digest, find_boxes, has_drawn
from rest_jax.data.folder import FolderSource, contents_digest
from rest_jax.data.images import ImageError
from rest_jax.data.layout import ALL, Folder, Split, open_folder
from rest_jax.data.sample import Sample, images
from rest_jax.data.source import ImageSource, digest_of
from rest_jax.data.source import open_example as open_example
from rest_jax.data.tfds_source import TfdsSet, default_data_dir, open_tfds
from rest_jax.errors import UserError
from rest_jax.paths import expanded, local

CACHE_LIMIT = 4 * 2**30  # bytes of pixels that one cached split may take
EMBEDDED = 'digit_scenes'
# Known before it is prepared, which takes a minute: what is asked of it is looked at first.
EMBEDDED_CLASSES = tuple(map(str, range(10)))
EMBEDDED_SPLITS = ('train', 'test')
_FOLDER_EXTRAS = ('boxes',)
_SHOWN = 10  # class names of a line


@dataclasses.dataclass(frozen=True)
class DataSources:
  """A data set to train a classifier on.

  Attributes:
    name: as it was asked for.
    train: images to learn from.
    test: images to be judged by, once.
    class_names: the name of each label.
    validation: images that choose the best epoch; None where the test images have to.
    splits: what train, val and test are called in the data set.
    note: what else there is to say about it.
    numbered: as in `JudgedData`.
  """

  name: str
  train: ImageSource
  test: ImageSource
  class_names: tuple[str, ...]
  validation: ImageSource | None = None
  splits: tuple[str, str, str] = ('train', 'test', 'test')
  note: str = ''
  numbered: bool = False

  @property
  def val(self) -> ImageSource:
    """The images that choose the best epoch."""
    return self.test if self.validation is None else self.validation

  @property
  def digests(self) -> dict[str, str]:
    """Of the files and labels of each split."""
    found = {'train': self.train, 'val': self.val, 'test': self.test}
    return {name: digest_of(source) for name, source in found.items()}

  @property
  def digest(self) -> str:
    """Of class names, files and labels: another one is another data set."""
    parts = [*self.class_names, '', *self.digests.values()]
    return hashlib.sha256('\0'.join(parts).encode(errors='surrogateescape')).hexdigest()

  @property
  def line(self) -> str:
    """What is trained on, in one line."""
    train, val, test = self.splits
    rest = f'{val} ({images(len(self.val))}) chooses the best epoch'
    if self.validation is not None:
      rest += f', {test} ({images(len(self.test))}) is judged once, at the end'
    head = data_line(images(len(self.train)), self.class_names, self.name, train)
    return '; '.join(filter(None, (head, rest, self.note)))


@dataclasses.dataclass(frozen=True)
class CachedSource:
  """Images of one size, decoded once and held in memory.

  Attributes:
    images: (N, H, W, 3) uint8.
    labels: (N,) int32.
    problems: what is wrong with an image that could not be read, by its number.
    digest: of the source that was decoded.
  """

  images: np.ndarray
  labels: np.ndarray
  problems: dict[int, str] = dataclasses.field(default_factory=dict)
  digest: str = ''

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> dict:
    if index in self.problems:
      raise ImageError(self.problems[index])
    return {'image': self.images[index], 'label': int(self.labels[index])}


@dataclasses.dataclass(frozen=True)
class JudgedData:
  """The split of a data set that a model is judged on.

  Attributes:
    name: as it was asked for.
    split: what it is called.
    images: the images.
    class_names: the name of each label.
    numbered: whether classes are known by number alone, and more may follow those that occur.
    note: what else there is to say about it.
  """

  name: str
  split: str
  images: ImageSource
  class_names: tuple[str, ...]
  numbered: bool = False
  note: str = ''

  @property
  def digest(self) -> str:
    """Of class names, files, labels and what the files hold: another one is another data set."""
    parts = [*self.class_names, '', digest_of(self.images)]
    if isinstance(self.images, FolderSource):
      parts.append(contents_digest(self.images.files))
    return hashlib.sha256('\0'.join(parts).encode(errors='surrogateescape')).hexdigest()

  @property
  def boxes_digest(self) -> str:
    """Of the boxes of a folder's pictures; '' where it has none. TFDS pins objects by version."""
    source = self.images
    boxes = source.extras.get('boxes') if isinstance(source, FolderSource) else None
    return '' if boxes is None else boxes_digest(boxes)

  def line(self, sample: Sample | None = None, class_names: tuple[str, ...] | None = None) -> str:
    """What is judged, in one line.

    Args:
      sample: of the images; None for all.
      class_names: how the model calls the classes, where only it has names.
    """
    names = self.class_names if class_names is None else class_names
    labels = getattr(self.images, 'labels', None)
    if self.numbered and labels is not None:
      names = tuple(names[label] for label in sorted(set(labels)))
    amount = images(len(self.images)) if sample is None else sample.amount
    detail = sample.detail if sample is not None else ''
    where = f'{self.name} ({self.split})' + (f', {detail}' if detail else '')
    return '; '.join(filter(None, (_line(amount, names, where), self.note)))


def data_line(amount: str, class_names: tuple[str, ...], name: str, split: str) -> str:
  """Such as '12 images of 2 classes from photos (val): cat, dog'."""
  return _line(amount, class_names, f'{name} ({split})')


def _line(amount: str, names: tuple[str, ...], where: str) -> str:
  shown = list(names) if len(names) <= _SHOWN else [*names[: _SHOWN - 2], '...', names[-1]]
  classes = f'{len(names)} class' + ('' if len(names) == 1 else 'es')
  return f'{amount} of {classes} from {where}: {", ".join(shown)}'


def load(
  name: str | os.PathLike,
  data_dir: str | os.PathLike | None = None,
  train_split: str = 'train',
  test_split: str = 'test',
  cache: bool = False,
  extras: tuple[str, ...] = (),
  on_error: str = 'fatal',
  val_split: str | None = None,
  labels: bool = True,
) -> DataSources:
  """Opens a data set to train on; `digit_scenes` is prepared first where that has not been done.

  Args:
    name: 'digit_scenes', the name of a TFDS data set, or a folder or list of labels as `layout`
      knows them.
    data_dir: where TFDS data sets stand; None for $TFDS_DATA_DIR or ~/tensorflow_datasets.
    train_split: name of the train split: TFDS's, or that of a folder.
    test_split: of the test split; where a data set has no labelled 'test', its validation split is
      taken.
    cache: decodes all images once into memory, for small data sets of one image size.
    extras: further features, for digit_scenes 'bbox' ((4,) float32, TFDS's order) and 'mask'
      ((H, W) bool), for folders 'boxes' (`box_files.Boxes`, from the list of labels or XML files).
    on_error: what an image that cannot be read does to `cache`: 'fatal' ends it, with 'skip' the
      image is in error when it is asked for, as without a cache.
    val_split: of the split that chooses the best epoch; by default the validation split where there
      is one beside 'test', else the test split.
    labels: False for images alone, of which a folder without classes will do.

  Returns:
    The sources.

  Raises:
    UserError: unknown or unprepared data set, unusable folder, no such split (those that exist are
      named), images that cannot be cached.
  """
  name = os.fspath(name)
  if cache and extras:
    raise UserError(f'cache=True holds images and labels only, without {", ".join(extras)}')
  opened = _open(name, data_dir, extras, (train_split, val_split, test_split))
  if isinstance(opened, Folder):
    sources = _from_folder(opened, name, train_split, val_split or None, test_split, labels)
  else:
    sources = _from_tfds(opened, train_split, val_split or None, test_split)
  return _in_memory(sources, on_error) if cache else sources


def load_judged(
  name: str | os.PathLike,
  data_dir: str | os.PathLike | None = None,
  split: str | None = None,
  extras: tuple[str, ...] = (),
) -> JudgedData:
  """Opens what a model is judged on; a data set needs no other split for that.

  Args:
    name: as in `load`.
    data_dir: as in `load`.
    split: its name; by default 'test', else the validation split, else the only one, and all of a
      folder without splits.
    extras: as in `load`.

  Returns:
    The split.

  Raises:
    UserError: as `load`.
  """
  name = expanded(os.fspath(name), 'the data set')
  opened = _open(name, data_dir, extras, (split,))
  if isinstance(opened, Folder):
    judged = _judged_folder(opened, name, split)
    return _with_boxes(judged, opened.root) if 'boxes' in extras else judged
  chosen, note = (split, '') if split is not None else _judged_split(opened)
  return JudgedData(name, chosen, opened.split(chosen), opened.class_names, False, note)


def _open(
  name: str,
  data_dir: str | os.PathLike | None,
  extras: tuple[str, ...],
  splits: tuple[str | None, ...],
) -> Folder | TfdsSet:
  place = name = expanded(name, 'the data set')
  is_list = place.lower().endswith('.csv') and os.path.isfile(place)
  if name != EMBEDDED and (os.path.isdir(place) or is_list):
    missing = [extra for extra in extras if extra not in _FOLDER_EXTRAS]
    if missing:
      raise UserError(f'the folder {name} has images and labels only, no {", ".join(missing)}')
    if data_dir is not None:
      raise UserError(f'{name} is a place by itself: leave data_dir out, it is for TFDS data sets')
    return open_folder(name)
  if name != EMBEDDED and os.path.isfile(name):
    raise UserError(f'{name} is a file: a data set is a folder, a CSV with labels or a TFDS name')
  given = default_data_dir() if data_dir is None else data_dir
  root = os.fspath(local(given, 'the data directory'))
  if name == EMBEDDED:
    _check_embedded(splits)
    from rest_jax.data.digit_scenes import prepare

    prepare(root)
  return open_tfds(name, root, extras)


def _check_embedded(splits: tuple[str | None, ...]) -> None:
  """Raises `UserError` for a split that digit_scenes will not have when it is prepared."""
  for split in filter(None, splits):
    # Of TFDS's 'train[:50%]+test' the names.
    names = re.sub(r'\[[^]]*\]', '', split).split('+')
    if not set(names) <= {*EMBEDDED_SPLITS, 'all'}:
      raise UserError(f'{EMBEDDED} has no split {split!r}; it has {", ".join(EMBEDDED_SPLITS)}')


def _from_folder(
  folder: Folder,
  name: str,
  train_split: str,
  val_split: str | None,
  test_split: str,
  labels: bool,
) -> DataSources:
  train = folder.split(train_split)
  test_name, val_name = _roles(folder, val_split, test_split)
  test = folder.split(test_name)
  val = None if val_name in (None, test_name) else folder.split(val_name)
  read = [folder.find(name_) or '' for name_ in (train_split, val_name or test_name, test_name)]
  for part, called in ((test, test_name), (val, val_name), (train, train_split)):
    if part is not None and not len(part.source):
      purpose = 'training' if part is train else 'testing'
      raise UserError(f'{name} leaves no image for {purpose} ({called}): add images')
  if labels:
    folder.check_classes()
  notes = [f'{called}: {part.note}' for called, part in zip(read, (train, val), strict=False)
           if part is not None and part.note]  # fmt: skip
  notes += [f'{test_name}: {test.note}'] if test.note else []
  return DataSources(
    name,
    train.source,
    test.source,
    folder.class_names,
    None if val is None else val.source,
    (read[0], read[1], read[2]),
    '; '.join(filter(None, [folder.note, *notes])),
    folder.numbered,
  )


def _roles(folder: Folder, val_split: str | None, test_split: str) -> tuple[str, str | None]:
  """Names of the split to be judged by and, where it is another, of the one to choose by."""
  if test_split != 'test':
    return test_split, val_split
  test, val = folder.roles.get('test'), folder.roles.get('val')
  if test is None and val is None:
    raise UserError(f'{folder.root} has train/ but neither test/ nor val/: add one of them')
  for role in ('test', 'val'):
    if folder.roles.get(role) is not None:
      folder.find(role)  # refuses two of a kind
  return test or val or '', val_split or val


def _from_tfds(
  opened: TfdsSet, train_split: str, val_split: str | None, test_split: str
) -> DataSources:
  train, note = opened.split(train_split), ''
  if test_split == 'test':
    test_split, note = _judged_split(opened)
    if val_split is None and test_split == 'test' and opened.has_labels('validation'):
      val_split = 'validation'
  test = opened.split(test_split)
  val = None if val_split in (None, test_split) else opened.split(val_split)
  splits = (train_split, val_split or test_split, test_split)
  return DataSources(opened.name, train, test, opened.class_names, val, splits, note)


def _judged_split(opened: TfdsSet) -> tuple[str, str]:
  """The split of a TFDS data set to be judged by, and what to say about that."""
  if opened.has_labels('test'):
    return 'test', ''
  if 'validation' in opened.splits:
    unlabelled = 'test has no labels and is passed over'
    return 'validation', unlabelled if 'test' in opened.splits else ''
  if len(opened.splits) == 1:
    return opened.splits[0], ''
  raise UserError(
    f'{opened.name} has no labelled test or validation split; it has {", ".join(opened.splits)}'
  )


def _judged_folder(folder: Folder, name: str, split: str | None) -> JudgedData:
  if split is None:
    order = (folder.roles.get('test'), folder.roles.get('val'), *folder.splits)
    split = ALL if folder.plain else next(filter(None, order))
  part: Split = folder.split(split)
  chosen = folder.find(split) or split
  if not len(part.source):
    raise UserError(f'{name} has no image in {chosen}: add some, or choose another split')
  folder.check_classes()
  note = folder.note
  if chosen == ALL:
    seen = 'test is the tenth of each class that a training on it leaves out'
    note = '; '.join(filter(None, (note, seen)))
  note = '; '.join(filter(None, (note, part.note)))
  return JudgedData(name, chosen, part.source, folder.class_names, folder.numbered, note)


def _with_boxes(judged: JudgedData, root: str) -> JudgedData:
  """Adds the boxes of XML files, where the list of labels has none."""
  source = judged.images
  if not isinstance(source, FolderSource) or 'boxes' in source.extras:
    return judged
  root = root if os.path.isdir(root) else os.path.dirname(root) or '.'
  boxes = find_boxes(root, source.files)
  if boxes is None:
    unused = 'no picture has the name of one of the XML files with boxes' if has_drawn(root) else ''
    return dataclasses.replace(judged, note='; '.join(filter(None, (judged.note, unused))))
  return dataclasses.replace(judged, images=dataclasses.replace(source, extras={'boxes': boxes}))


def _in_memory(sources: DataSources, on_error: str) -> DataSources:
  name = sources.name
  train = cached(sources.train, f'{name} train', on_error)
  test = cached(sources.test, f'{name} test', on_error)
  val = sources.validation
  val = None if val is None else cached(val, f'{name} {sources.splits[1]}', on_error)
  return dataclasses.replace(sources, train=train, test=test, validation=val)


def cached(source: ImageSource, name: str = 'images', on_error: str = 'fatal') -> CachedSource:
  """Decodes a whole source into memory.

  Args:
    source: its images must have one size.
    name: for the progress bar and messages.
    on_error: 'fatal', or 'skip' to keep the place of an image that cannot be read.

  Returns:
    The same examples in the same order.

  Raises:
    UserError: images of several sizes, more than CACHE_LIMIT bytes, or one that cannot be read.
  """
  from tqdm import tqdm

  count = len(source)
  images, shape = np.empty(0, np.uint8), None
  labels = np.zeros(count, np.int32)
  problems: dict[int, str] = {}
  for index in tqdm(range(count), desc=f'decode {name}', unit='img', leave=False, delay=1):
    try:
      example = source[index]
    except ImageError as error:
      if on_error != 'skip':
        raise
      problems[index] = str(error)
      continue
    if shape is None:
      shape = example['image'].shape
      images = _room(count, shape, name)
    if example['image'].shape != shape:
      raise UserError(
        f'{name}: image {index} has shape {example["image"].shape}, others {shape}; '
        'use cache=False for images of several sizes'
      )
    images[index], labels[index] = example['image'], example['label']
  return CachedSource(images, labels, problems, digest_of(source))


def _room(count: int, shape: tuple[int, ...], name: str) -> np.ndarray:
  if count * int(np.prod(shape)) > CACHE_LIMIT:
    raise UserError(
      f'{name}: {count} images of {shape[0]}x{shape[1]} do not fit {CACHE_LIMIT >> 30} GiB of '
      'memory; use cache=False'
    )
  return np.zeros((count, *shape), np.uint8)
