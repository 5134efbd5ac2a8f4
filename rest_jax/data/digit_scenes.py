"""`digit_scenes`, the embedded data set: a TFDS builder without TensorFlow or network.

    python -m rest_jax.data.digit_scenes                          # prepare it now
    python -m rest_jax.data.digit_scenes --contact_sheet FILE     # a picture of 30 scenes

20,000 train and 2,000 test scenes of 64x64 RGB pixels, see `digit_scene_synthesis` and
`digit_scene_material`. Features:
`image`; `label` 0-9; `bbox`, TFDS's (ymin, xmin, ymax, xmax) over the image's sides; `mask`, 255 on
the digit's own pixels and 0 elsewhere.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import io
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageDraw

from rest_jax.command_line import Parser
from rest_jax.data.digit_scene_material import SPLITS, load_material
from rest_jax.data.digit_scene_synthesis import SIZE, Scene, synthesize
from rest_jax.data.tfds_source import default_data_dir
from rest_jax.errors import UserError, run_script
from rest_jax.paths import local

SEED = 2021
_AHEAD = 32  # scenes that may wait for their encoding


class DigitScenes(tfds.core.GeneratorBasedBuilder):
  """Builder of `digit_scenes`; its images are handed over as PNG bytes to keep TensorFlow out."""

  VERSION = tfds.core.Version('1.0.0')
  # Nothing is downloaded; TFDS would look for checksums through importlib_resources, a dependency
  # that it does not declare.
  url_infos = None
  RELEASE_NOTES = {'1.0.0': 'First release.'}  # noqa: RUF012
  SCENES = {'train': 20_000, 'test': 2_000}  # noqa: RUF012

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description='One handwritten digit on a piece of a photograph, with clutter.',
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format='png'),
          'label': tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
          'bbox': tfds.features.BBoxFeature(),
          'mask': tfds.features.Image(shape=(SIZE, SIZE, 1), encoding_format='png'),
        }
      ),
      supervised_keys=('image', 'label'),
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
    return {split: self._generate_examples(split) for split in self.SCENES}

  def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
    for index, (scene, image, mask) in enumerate(_encoded(scenes(split, self.SCENES[split]))):
      ymin, xmin, ymax, xmax = (edge / SIZE for edge in scene.bbox)
      yield (
        index,
        {
          'image': image.result(),
          'label': scene.label,
          'bbox': tfds.features.BBox(ymin=ymin, xmin=xmin, ymax=ymax, xmax=xmax),
          'mask': mask.result(),
        },
      )


def scenes(split: str, count: int) -> Iterator[Scene]:
  """Makes the first scenes of a split, each from a seed of its own.

  Args:
    split: 'train' or 'test'.
    count: how many.

  Returns:
    An iterator over `count` scenes, the same ones every time.
  """
  material = load_material(split)
  for index in range(count):
    yield synthesize(material, np.random.default_rng([SEED, SPLITS.index(split), index]))


def prepare(data_dir: str | os.PathLike) -> pathlib.Path:
  """Prepares the data set where that has not been done.

  A kill leaves nothing that is mistaken for the data set, because TFDS renames a finished
  directory only. Of several processes that start together one prepares and the others wait.

  Args:
    data_dir: TFDS data directory; made where it is missing.

  Returns:
    The directory of the prepared version.

  Raises:
    UserError: the directory cannot be written.
  """
  root = pathlib.Path(data_dir).expanduser()
  builder = DigitScenes(data_dir=root, file_format='array_record')
  prepared = pathlib.Path(builder.data_path)
  if (prepared / 'dataset_info.json').exists():
    return prepared
  try:
    with _exclusive(root):
      for leftover in prepared.parent.glob('incomplete.*'):
        shutil.rmtree(leftover)  # of a killed process: whoever works on one holds the lock
      # A new builder: another process may have prepared it while this one waited.
      builder = DigitScenes(data_dir=root, file_format='array_record')
      builder.download_and_prepare()
  except OSError as error:
    raise UserError(
      f'cannot prepare digit_scenes in {root}: {error.strerror or error}; '
      'give another --data_dir or make room'
    ) from error
  return prepared


@contextlib.contextmanager
def _exclusive(root: pathlib.Path) -> Iterator[None]:
  """Holds a lock that the operating system drops with the process, however that ends."""
  root.mkdir(parents=True, exist_ok=True)
  with open(root / '.digit_scenes.lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield


def _encoded(made: Iterable[Scene]) -> Iterator[tuple[Scene, Future, Future]]:
  """Encodes images and masks in a thread, while the next scenes are made."""
  waiting = collections.deque()
  with ThreadPoolExecutor(1) as encoder:
    for scene in made:
      mask = scene.mask.astype(np.uint8) * np.uint8(255)
      waiting.append((scene, encoder.submit(_png, scene.image), encoder.submit(_png, mask)))
      if len(waiting) > _AHEAD:
        yield waiting.popleft()
    yield from waiting


def _png(image: np.ndarray) -> io.BytesIO:
  file = io.BytesIO()
  Image.fromarray(image).save(file, format='png', compress_level=1)
  file.seek(0)
  return file


def contact_sheet(split: str = 'train', columns: int = 10, rows: int = 3) -> Image.Image:
  """A picture of the first scenes, twice their size, each with its label above it.

  Args:
    split: 'train' or 'test'.
    columns: scenes in a row.
    rows: rows of scenes.

  Returns:
    An RGB picture.
  """
  zoom, gap, head = 2, 8, 16
  wide, high = SIZE * zoom + gap, SIZE * zoom + gap + head
  sheet = Image.new('RGB', (columns * wide + gap, rows * high + gap), 'white')
  pen = ImageDraw.Draw(sheet)
  for index, scene in enumerate(scenes(split, columns * rows)):
    row, column = divmod(index, columns)
    x, y = gap + column * wide, gap + row * high
    pen.text((x + 1, y + 1), str(scene.label), fill=(60, 60, 60), font_size=13)
    tile = Image.fromarray(scene.image)
    nearest = Image.Resampling.NEAREST  # the pixels as they are, and a small file
    sheet.paste(tile.resize((SIZE * zoom, SIZE * zoom), nearest), (x, y + head))
  return sheet


def main() -> None:
  """Prepares the data set, or draws a contact sheet of it."""
  parser = Parser(description='Prepare or draw the embedded data set.')
  parser.add_argument('--data_dir', default=None, help='TFDS data directory (default: as TFDS)')
  parser.add_argument('--contact_sheet', metavar='FILE', help='write a picture of 30 scenes')
  arguments = parser.parse_args()
  if arguments.contact_sheet:
    picture = contact_sheet()
    try:
      picture.save(local(arguments.contact_sheet, '--contact_sheet'), optimize=True)
    except (OSError, ValueError) as error:
      raise UserError(f'cannot write {arguments.contact_sheet}: {error}') from error
    return
  given = arguments.data_dir
  print(prepare(default_data_dir() if given is None else local(given, '--data_dir')))


if __name__ == '__main__':
  run_script(main)
