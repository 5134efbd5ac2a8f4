"""Prepared TFDS data sets, read without TensorFlow.

Records are read at random from ArrayRecord files and decoded by Pillow.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
from typing import Any

import numpy as np

from rest_jax.data.images import EncodedImage, decode_image
from rest_jax.errors import UserError, did_you_mean


@dataclasses.dataclass
class TfdsSource:
  """Random access to one split of a prepared data set; picklable, opened when first read.

  Attributes:
    directory: of the prepared version.
    split: TFDS's name of the split, such as 'train' or 'train[:90%]'.
    extras: features to return beside image and label; those with images become bool masks where
      they have one channel.
  """

  directory: str
  split: str
  extras: tuple[str, ...] = ()
  _records: Any = dataclasses.field(default=None, init=False, repr=False, compare=False)

  def __getstate__(self) -> dict:
    return {**self.__dict__, '_records': None}

  def __len__(self) -> int:
    return len(self._open())

  def open(self, index: int) -> dict:
    """Returns {'image': an `EncodedImage`, 'label': int} and the extras."""
    record = self._open()[index]
    where = f'{index} of {self.split} in {self.directory}'
    label = int(record['label'])
    if label < 0:
      raise UserError(f'example {where} has no label: choose a split with labels')
    example: dict[str, Any] = {'image': EncodedImage(record['image'], where), 'label': label}
    for name in self.extras:
      value = record[name]
      example[name] = decode_image(value, where)[..., 0] > 127 if _is_bytes(value) else value
    return example

  def __getitem__(self, index: int) -> dict:
    example = self.open(index)
    return {**example, 'image': np.asarray(example['image'].picture())}

  def label(self, index: int) -> int:
    """The label of an example, negative where it has none."""
    return int(self._open()[index]['label'])

  @property
  def digest(self) -> str:
    """Of the prepared version, the split and its size, wherever it stands."""
    version = pathlib.Path(self.directory).parts[-3:]
    return hashlib.sha256(f'{version} {self.split} {len(self)}'.encode()).hexdigest()

  def _open(self) -> Any:
    if self._records is None:
      import tensorflow_datasets as tfds

      builder: Any = tfds.builder_from_directory(self.directory)
      features = builder.info.features
      images = {
        name: tfds.decode.SkipDecoding()
        for name, feature in features.items()
        if isinstance(feature, tfds.features.Image)
      }
      self._records = builder.as_data_source(split=self.split, decoders=images)
    return self._records


def _is_bytes(value: Any) -> bool:
  return isinstance(value, bytes) or (isinstance(value, np.ndarray) and value.dtype == object)


def default_data_dir() -> str:
  """The directory that TFDS uses: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
  return os.environ.get('TFDS_DATA_DIR') or os.path.expanduser('~/tensorflow_datasets')


@dataclasses.dataclass(frozen=True)
class TfdsSet:
  """A prepared TFDS data set for image classification.

  Attributes:
    name: as it was asked for.
    class_names: the name of each label.
    splits: names of its splits, without those that are empty.
  """

  name: str
  class_names: tuple[str, ...]
  splits: tuple[str, ...]
  _builder: Any
  _extras: tuple[str, ...]

  def split(self, name: str) -> TfdsSource:
    """Opens a split.

    Args:
      name: TFDS's name of it, or of a part such as 'train[:90%]'.

    Raises:
      UserError: no such split, or an empty one.
    """
    _check_split(self._builder, self.name, name)
    return TfdsSource(str(self._builder.data_path), name, self._extras)

  def has_labels(self, name: str) -> bool:
    """Whether a split is there and its first example has a label."""
    return name in self.splits and self.split(name).label(0) >= 0


def open_tfds(name: str, data_dir: str | os.PathLike, extras: tuple[str, ...] = ()) -> TfdsSet:
  """Opens a prepared TFDS image-classification data set.

  Args:
    name: as in `tfds.builder`, with a configuration and version where wanted.
    data_dir: TFDS data directory.
    extras: further features to return.

  Returns:
    The data set.

  Raises:
    UserError: unknown name, not prepared (with how to prepare it), prepared in a format without
      random access, or not a data set of labelled images.
  """
  root = pathlib.Path(data_dir).expanduser()
  builder = _prepared_builder(name, root)
  class_names = _check_features(builder, name, extras)
  if builder.info.file_format is None or builder.info.file_format.value != 'array_record':
    raise UserError(
      f'{name} in {root} is not in the format array_record, which random access needs; prepare it '
      f'again in another --data_dir: {_prepare_command(name, None)}'
    )
  splits = tuple(split for split, info in builder.info.splits.items() if info.num_examples)
  return TfdsSet(name, class_names, splits, builder, extras)


def _prepared_builder(name: str, root: pathlib.Path) -> Any:
  """The builder of a data set that stands prepared under `root`, from its files alone."""
  from tensorflow_datasets.core import naming, read_only_builder, registered

  try:
    parsed, options = naming.parse_builder_name_kwargs(name)
    return read_only_builder.builder_from_files(str(parsed), data_dir=root, **options)
  except (ValueError, registered.DatasetNotFoundError) as error:
    raise UserError(_missing(name, root)) from error


def _missing(name: str, root: pathlib.Path) -> str:
  """Says what to do about a data set that is not there."""
  import tensorflow_datasets as tfds

  known = tfds.list_builders(with_community_datasets=False)
  base = name.split('/')[0].split(':')[0]
  if base not in known:
    hint = did_you_mean(base, [*known, 'digit_scenes'], 'see tensorflow.org/datasets/catalog')
    return f'no data set and no directory is called {name!r}: {hint}'
  files = ''
  if base == 'imagenet2012':
    files = (
      'get ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from image-net.org (free '
      f'registration), put both into {root}/downloads/manual, then '
    )
  return (
    f"{name} is not prepared in {root}: {files}run once pip install 'rest-jax[prepare]' && "
    f'{_prepare_command(name, root)}'
  )


def _prepare_command(name: str, root: pathlib.Path | None) -> str:
  where = f"'{root}'" if root else 'DIRECTORY'
  return (
    f"python -c \"import tensorflow_datasets as tfds; tfds.builder('{name}', data_dir={where}, "
    "file_format='array_record').download_and_prepare()\""
  )


def _check_features(builder: Any, name: str, extras: tuple[str, ...]) -> tuple[str, ...]:
  import tensorflow_datasets as tfds

  found = builder.info.features
  features: dict[str, Any] = (
    dict(found.items()) if isinstance(found, tfds.features.FeaturesDict) else {}
  )
  have = ', '.join(sorted(features)) or 'none by name'
  if not (
    isinstance(features.get('image'), tfds.features.Image)
    and isinstance(features.get('label'), tfds.features.ClassLabel)
  ):
    raise UserError(
      f"{name} is no image-classification data set: it needs the features 'image' and 'label', "
      f'and has {have}'
    )
  missing = sorted(set(extras) - set(features))
  if missing:
    raise UserError(f'{name} has no feature {", ".join(missing)}; it has {have}')
  return tuple(features['label'].names)


def _check_split(builder: Any, name: str, split: str) -> None:
  try:
    count = builder.info.splits[split].num_examples
  except (KeyError, ValueError, AssertionError) as error:
    have = ', '.join(builder.info.splits)
    raise UserError(f'{name} has no split {split!r}; it has {have}') from error
  if not count:
    raise UserError(f'the split {split!r} of {name} is empty')
