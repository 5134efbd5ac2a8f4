"""Data sets for detection and segmentation by name: `digit_mosaics`, or a folder in a known layout.

A folder is COCO's where it has `annotations/instances_SPLIT.json` and the pictures in `SPLIT/` or
`images/SPLIT/`, Pascal VOC's where it has `Annotations/`, and one of `semantic_folder`'s otherwise,
for which `classes.txt` in it names the classes, one a line.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rest_jax.data.coco import CocoSource, load_coco
from rest_jax.data.dense_splits import (
  Splits,
  coco_splits,
  find_splits,
  passed_over,
  pixel_splits,
  voc_splits,
)
from rest_jax.data.digit_mosaics import PIXEL_CLASSES, SIDE, MosaicSource, load_digit_mosaics
from rest_jax.data.images import picture_size
from rest_jax.data.objects import absent_note, learnt, specks_note
from rest_jax.data.picture_files import transparency_note
from rest_jax.data.semantic_folder import SemanticSource, check_marks, load_semantic
from rest_jax.data.sources import DataSources
from rest_jax.data.voc import SPLITS as VOC_LISTS
from rest_jax.data.voc import VocSource, load_voc
from rest_jax.errors import UserError

EMBEDDED = 'digit_mosaics'
CLASSES_FILE = 'classes.txt'
# What is learnt: boxes, boxes with masks, or a class for every pixel.
Kind = Literal['boxes', 'masks', 'pixels']
_LEFT_OUT = {
  'boxes': ('masks', 'segmentation'),
  'masks': ('segmentation',),
  'pixels': ('boxes', 'labels', 'ignore', 'areas', 'masks'),
}
_ADE20K = ('images/training', 'annotations/training')


@dataclasses.dataclass(frozen=True)
class DenseSource:
  """A split of a data set, with what its examples do not say themselves.

  Attributes:
    examples: random access to examples, see `rest_jax.data.objects` and `semantic_folder`.
    class_names: the name of each label.
    digest: changes with the annotations.
    kind: what is learnt; the rest of an example is left out. None keeps all.
    note: what else there is to say about it.
  """

  examples: Any
  class_names: tuple[str, ...]
  digest: str
  kind: Kind | None = None
  note: str = ''

  def __len__(self) -> int:
    return len(self.examples)

  def __getitem__(self, index: int) -> dict[str, Any]:
    left_out = _LEFT_OUT.get(self.kind or '', ())
    return {name: value for name, value in self.examples[index].items() if name not in left_out}

  def most_objects(self) -> tuple[int, Any]:
    """The most objects of a picture that are learnt from, and its id; 0 where nobody counted.

    Counted in annotations that were read, never by reading pictures.
    """
    source, most, where = self.examples, 0, None
    if not isinstance(source, CocoSource | VocSource):
      return most, where
    coco = isinstance(source, CocoSource)
    annotated = source.objects if coco else source.boxes
    order = sorted(range(len(source)), key=lambda index: -len(annotated[index]))
    for index in order:
      if len(annotated[index]) <= most:
        break
      found: Any = annotated[index]
      boxes = [o.box for o in found] if coco else found
      ignored = [o.crowd for o in found] if coco else source.difficult[index]
      count = _learnt(boxes, self.size(index), ignored)
      if count > most:
        most, where = count, source.images[index][0] if coco else source.names[index]
    return most, where

  def size(self, index: int) -> tuple[int, int]:
    """(H, W) of a picture, from what is known of it or from the head of its file."""
    source = self.examples
    if hasattr(source, 'chosen'):  # some of another source
      source, index = source.source, source.chosen[index]
    if isinstance(source, MosaicSource):
      return SIDE, SIDE
    if isinstance(source, CocoSource):
      return source.images[index][2], source.images[index][3]
    if isinstance(source, VocSource):
      return source.sizes[index]
    if isinstance(source, SemanticSource):
      return picture_size(source.images[index])
    return source[index]['image'].shape[:2]


def _learnt(boxes: Any, size: tuple[int, int], ignored: Any) -> int:
  """How many objects take room when a picture is learnt from; see `objects.to_learn`."""
  corners = np.asarray(boxes, np.float64).reshape(-1, 4)
  return int(np.count_nonzero(learnt(corners, size) | np.asarray(ignored, bool)))


def load_dense(
  name: str,
  kind: Kind,
  *,
  data_dir: str | os.PathLike | None = None,
  train_split: str = 'train',
  test_split: str = 'test',
  val_split: str = '',
) -> DataSources:
  """Opens a data set to train a detector or a segmenter on.

  Args:
    name: 'digit_mosaics', or a folder.
    kind: 'boxes', 'masks' (boxes with masks) or 'pixels'.
    data_dir: where the scenes of digit_mosaics stand; None for $TFDS_DATA_DIR or
      ~/tensorflow_datasets.
    train_split: what is learnt from; 'train' finds 'training' and 'train2017' too.
    test_split: what is judged by; 'test' is the validation split where there is no test split.
    val_split: what chooses the best epoch; by default the validation split where there is a test
      split as well, else the test split has to.

  Returns:
    The sources; each split is a `DenseSource`.

  Raises:
    UserError: no such data set or split, damaged annotations, splits of different classes, or
      masks where the data set has none.
  """
  if name == EMBEDDED:
    opened = _mosaics(kind, data_dir, (train_split, test_split, val_split))
    splits = Splits(train_split, val_split, test_split)
  else:
    root = _folder(name)
    opened, known = _opener(root, kind)
    splits = find_splits(known, name, train=train_split, val=val_split, test=test_split)
    note = '; '.join(filter(None, (splits.note, '' if kind == 'pixels' else passed_over(root))))
    splits = dataclasses.replace(splits, note=note)
  wanted = dict.fromkeys(filter(None, (splits.train, splits.test, splits.val)))
  found = {split: dataclasses.replace(opened(split), kind=kind) for split in wanted}
  names = found[splits.train].class_names
  for split, source in found.items():
    if source.class_names != names:
      raise UserError(f'{name}: {split} has other classes than {splits.train}; make one list')
    if not len(source):
      raise UserError(f'{name}: the split {split} has no pictures')
  return DataSources(
    name,
    found[splits.train],
    found[splits.test],
    names,
    found[splits.val] if splits.val else None,
    (splits.train, splits.val or splits.test, splits.test),
    '; '.join(filter(None, (splits.note, *_notes(found)))),
  )


def _notes(found: dict[str, DenseSource]) -> list[str]:
  """What there is to say of splits; once where several say the same."""
  by_note: dict[str, list[str]] = {}
  for split, source in found.items():
    by_note.setdefault(source.note, []).append(split)
  return [f'{", ".join(splits)}: {note}' for note, splits in by_note.items() if note]


def judged_split(name: str, kind: Kind) -> str:
  """The split of a data set that is judged where none is asked for; as `load_dense` finds it."""
  return 'test' if name == EMBEDDED else find_splits(_opener(_folder(name), kind)[1], name).test


def _folder(name: str) -> Path:
  """The folder of a data set."""
  root = Path(os.path.expanduser(name))
  if not root.is_dir():
    raise UserError(f'there is no folder {name}, and the embedded data set is {EMBEDDED}')
  return root


def _mosaics(kind: Kind, data_dir: Any, splits: tuple[str, ...]) -> Callable[[str], DenseSource]:
  """How splits of digit_mosaics are opened."""
  unknown = [split for split in splits if split not in ('train', 'test', '')]
  if unknown:
    raise UserError(f'{EMBEDDED} has the splits train and test, not {unknown[0]!r}')
  sources = load_digit_mosaics(data_dir)
  names = PIXEL_CLASSES if kind == 'pixels' else sources.class_names

  def opened(split: str) -> DenseSource:
    mosaics: Any = sources.train if split == 'train' else sources.test
    return DenseSource(mosaics, names, f'{EMBEDDED} {split} {len(mosaics)}')

  return opened


def _opener(root: Path, kind: Kind) -> tuple[Callable[[str], DenseSource], list[str]]:
  """How splits of a folder are opened, by its layout, and which it has."""
  if kind == 'pixels':
    return lambda split: _semantic(root, split), pixel_splits(root)
  if (root / 'annotations').is_dir():
    return lambda split: _coco(root, split, kind == 'masks'), coco_splits(root)
  if (root / 'Annotations').is_dir():
    if kind == 'masks':
      raise UserError(
        f'{root} has boxes and no masks (Pascal VOC): take a detector of boxes, such as retinanet_*'
      )
    return lambda split: _voc(root, split), voc_splits(root)
  raise UserError(
    f'{root} is no data set of objects: annotations/instances_SPLIT.json (COCO) or Annotations/ '
    '(Pascal VOC) is needed'
  )


def _coco(root: Path, split: str, masks: bool) -> DenseSource:
  file = root / 'annotations' / f'instances_{split}.json'
  if not file.is_file():
    known = ', '.join(coco_splits(root)) or 'none'
    raise UserError(f'there is no {file}; the splits of {root} are {known}')
  folders = [root / split, root / 'images' / split, root / 'images', root]
  if not any(folder.is_dir() for folder in folders[:-1]):
    raise UserError(f'the pictures of {file} are missing: {folders[0]} or {folders[1]} is needed')
  source = load_coco(file, [f for f in folders if f.is_dir()], masks=masks)
  own = [o for found in source.objects for o in found if not o.crowd]
  absent = _check_objects(file, source.class_names, (o.label for o in own))
  files = [source.folder / name for _, name, _, _ in source.images]
  note = _note(files, specks_note(source.specks), absent)
  return DenseSource(source, source.class_names, _digest(file.read_bytes()), note=note)


def _check_objects(file: Path, names: Sequence[str], labels: Iterable[int]) -> str:
  """Says which classes have no object; refuses a split without any, whose AP is no number."""
  there = set(labels)
  if not there:
    raise UserError(
      f'{file} has no objects to learn or to judge by: annotate it, or name another split '
      '(--config.data.test_split, --split in evaluations); rest-jax predict takes pictures alone'
    )
  return absent_note('object', [name for label, name in enumerate(names) if label not in there])


def _voc(root: Path, split: str) -> DenseSource:
  source = load_voc(root, split)
  labels = np.concatenate(source.labels)[~np.concatenate(source.difficult)]
  absent = _check_objects(root / VOC_LISTS / f'{split}.txt', source.class_names, labels)
  arrays = [*source.boxes, *source.labels, *source.difficult]
  parts = [','.join(source.names).encode(), *(np.ascontiguousarray(a).tobytes() for a in arrays)]
  note = _note(source.files, specks_note(source.specks), absent)
  return DenseSource(source, source.class_names, _digest(*parts), note=note)


def _semantic(root: Path, split: str) -> DenseSource:
  listing = root / CLASSES_FILE
  try:
    lines = listing.read_text(encoding='utf-8-sig').splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(
      f'cannot read {listing}, which names the classes of pixels, one a line: {error}'
    ) from error
  names = [line.strip() for line in lines if line.strip()]
  ade = all((root / part).is_dir() for part in _ADE20K)
  source = load_semantic(root, split, names, zero_is_ignored=ade)
  parts = [str(p.relative_to(root)).encode() + b'%d' % p.stat().st_size for p in source.annotations]
  counted = f"class 0 of its PNGs is nobody's, as in ADE20K: 1 is {names[0]}" if ade else ''
  note = _note(source.images, counted, check_marks(source))
  return DenseSource(source, tuple(names), _digest(*parts), note=note)


def _note(files: Sequence[Path], *more: str) -> str:
  """What there is to say of the pictures, and what else there is."""
  return '; '.join(filter(None, (*more, transparency_note(files))))


def _digest(*parts: bytes) -> str:
  """A hash of annotations, hexadecimal."""
  found = hashlib.sha256()
  for part in parts:
    found.update(b'%d ' % len(part) + part)
  return found.hexdigest()
