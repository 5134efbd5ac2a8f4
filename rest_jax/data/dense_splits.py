"""Which splits a folder of objects or of pixels has, and what each is for.

As in folders of classes (`rest_jax.data.layout`): 'val' chooses the best epoch where there is a
'test' as well, 'test' is judged once at the end, and without it 'val' is. Years behind the names,
as COCO has them ('train2017'), are understood.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path

from rest_jax.data.layout import ROLES, Role
from rest_jax.data.split_lists import read_names
from rest_jax.data.voc import SPLITS as VOC_LISTS
from rest_jax.errors import UserError

_PIXEL_LISTS = 'ImageSets/Segmentation'


@dataclasses.dataclass(frozen=True)
class Splits:
  """What is learnt from, what chooses, what is judged.

  Attributes:
    train: name of the split.
    val: where it is another one than `test`; else empty.
    test: name of the split.
    note: what to say of them.
  """

  train: str
  val: str
  test: str
  note: str = ''


def coco_splits(root: Path) -> list[str]:
  """Splits of a folder in COCO's layout whose file has annotations, sorted."""
  files = [path for path in _coco_files(root) if _is_annotated(path)]
  return sorted(path.stem.removeprefix('instances_') for path in files)


def passed_over(root: Path) -> str:
  """What there is to say of files in COCO's layout without annotations; '' where there are none."""
  names = sorted(path.name for path in _coco_files(root) if not _is_annotated(path))
  return ' and '.join(f'annotations/{n} has no annotations and is passed over' for n in names)


def _coco_files(root: Path) -> list[Path]:
  return list((root / 'annotations').glob('instances_*.json'))


@functools.lru_cache(maxsize=64)
def _annotated(path: Path, changed: tuple[int, int]) -> bool:
  """Whether a file has annotations; what is damaged counts, for whoever opens it says so."""
  del changed  # of a file that was written anew
  try:
    content = path.read_bytes()
    # Large ones are those with annotations, and parsing them takes long.
    if re.search(rb'"annotations"\s*:\s*\[\s*[^\]\s]', content):
      return True
    parts = json.loads(content.decode('utf-8-sig'))
  except (OSError, ValueError, RecursionError):
    return True
  whole = isinstance(parts, dict) and isinstance(parts.get('images'), list)
  return not whole or bool(parts.get('annotations'))


def _is_annotated(path: Path) -> bool:
  found = path.stat()
  return _annotated(path, (found.st_mtime_ns, found.st_size))


def voc_splits(root: Path) -> list[str]:
  """Splits of a folder in Pascal VOC's layout whose first picture has boxes, sorted."""
  return _listed(root / VOC_LISTS, lambda name: (root / 'Annotations' / f'{name}.xml').is_file())


def pixel_splits(root: Path) -> list[str]:
  """Splits of a folder in the layout of ADE20K, CamVid or Pascal VOC, sorted."""
  annotated = root / 'annotations'
  ade = [p.name for p in annotated.iterdir() if p.is_dir()] if annotated.is_dir() else []
  camvid = [p.name.removesuffix('annot') for p in root.glob('*annot') if p.is_dir()]
  classes = root / 'SegmentationClass'
  listed = _listed(root / _PIXEL_LISTS, lambda name: (classes / f'{name}.png').is_file())
  return sorted({*ade, *camvid, *listed})


def _listed(folder: Path, annotated: Callable[[str], bool]) -> list[str]:
  """Names of the lists of which the first picture has annotations."""
  found = []
  for path in folder.glob('*.txt'):
    text = path.read_text(encoding='utf-8-sig', errors='replace')
    first = text.strip().partition('\n')[0]
    if any(annotated(name) for name in read_names(first, annotated)):
      found.append(path.stem)
  return sorted(found)


def find_splits(
  known: list[str], where: str, *, train: str = 'train', val: str = '', test: str = 'test'
) -> Splits:
  """What each split is for; names that were not changed from their defaults are looked for.

  Args:
    known: splits with annotations.
    where: the data set, for messages.
    train: name of the split to learn from.
    val: name of the one that chooses; empty where it is to be looked for.
    test: name of the one to be judged by.

  Returns:
    The splits. One that is not among the known is left as it is asked for.

  Raises:
    UserError: two that could be meant.
  """
  learnt = _one(known, 'train', where) if train == 'train' else train
  if test != 'test':
    return Splits(learnt or train, '' if val == test else val, test)
  tested, chooser = _one(known, 'test', where), _one(known, 'val', where)
  judged = tested or chooser or test
  val = val or (chooser if tested else '')
  note = '' if tested else f'no split test with annotations: {judged} is judged'
  return Splits(learnt or train, '' if val == judged else val, judged, note)


def _one(known: list[str], role: Role, where: str) -> str:
  """The split of a role, as it is called there; empty where there is none."""
  for name in ROLES[role]:
    if name in known:
      return name
  pattern = re.compile(rf'({"|".join(ROLES[role])})[-_]?(\d{{4}})?', re.IGNORECASE)
  found = [name for name in known if pattern.fullmatch(name)]
  if len(found) > 1:
    raise UserError(
      f'{where} has {" and ".join(found)}: say which is meant by --config.data.{role}_split'
      + (' (--split in evaluations)' if role != 'train' else '')
    )
  return found[0] if found else ''
