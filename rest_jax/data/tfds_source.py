"""Prepared TFDS data sets, read without TensorFlow.

Records are read at random from ArrayRecord files and decoded by Pillow.
"""

from __future__ import annotations

import dataclasses
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


def load_tfds(
  name: str,
  data_dir: str | os.PathLike,
  train_split: str,
  test_split: str,
  extras: tuple[str, ...] = (),
) -> tuple[TfdsSource, TfdsSource, tuple[str, ...]]:
  """Opens a prepared TFDS image-classification data set.

  Args:
    name: as in `tfds.builder`, with a configuration and version where wanted.
    data_dir: TFDS data directory.
    train_split: TFDS's name of the train split.
    test_split: of the test split; where the data set has no 'test', its 'validation' is taken.
    extras: further features to return.

  Returns:
    (train, test, class names).

  Raises:
    UserError: unknown name, not prepared (with how to prepare it), prepared in a format without
      random access, no such split, or not a data set of labelled images.
  """
  root = pathlib.Path(data_dir).expanduser()
  builder = _prepared_builder(name, root)
  class_names = _check_features(builder, name, extras)
  if builder.info.file_format is None or builder.info.file_format.value != 'array_record':
    raise UserError(
      f'{name} in {root} is not in the format array_record, which random access needs; prepare it '
      f'again in another --data_dir: {_prepare_command(name, None)}'
    )
  if test_split == 'test' and 'test' not in builder.info.splits:
    test_split = 'validation'
  for split in (train_split, test_split):
    _check_split(builder, name, split)
  directory = str(builder.data_path)
  train = TfdsSource(directory, train_split, extras)
  return train, TfdsSource(directory, test_split, extras), class_names


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
