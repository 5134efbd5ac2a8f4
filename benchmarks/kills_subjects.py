"""A model and pictures small enough to be killed on: made here, and attacked by this script.

  python benchmarks/kills_subjects.py FOLDER                   makes FOLDER/tiny and FOLDER/colours
  python benchmarks/kills_subjects.py FOLDER --output PLACE    attacks.evaluate on them

`benchmarks/kills.py` calls it.
"""

import argparse
from pathlib import Path

CLASSES = ('blue', 'red')
SIDE, EACH = 32, 16


def make(folder: Path) -> None:
  """Writes an untrained classifier of two classes, and pictures of them in two splits."""
  import jax
  import numpy as np
  from PIL import Image

  from rest_jax.models.classifier import Classifier
  from rest_jax.models.registry import create_model

  overrides = dict(width=4, depths=(1, 1, 1, 1))
  module = create_model('resnet18', len(CLASSES), **overrides)
  variables = jax.jit(module.init)(jax.random.key(0), np.zeros((1, SIDE, SIDE, 3), np.float32))
  Classifier.create(
    'resnet18',
    variables,
    num_classes=len(CLASSES),
    overrides=overrides,
    class_names=CLASSES,
    input_size=SIDE,
  ).save(folder / 'tiny')
  rng = np.random.default_rng(0)
  for split in ('train', 'test'):
    for name in CLASSES:
      place = folder / 'colours' / split / name
      place.mkdir(parents=True)
      for number in range(EACH):
        pixels = rng.integers(0, 120, (SIDE, SIDE, 3), dtype=np.uint8)
        pixels[..., 0 if name == 'red' else 2] += 120
        Image.fromarray(pixels).save(place / f'{number}.png')


def attack(folder: Path, output: Path) -> None:
  """Evaluates the model under two attacks at two radii."""
  import jax
  import numpy as np
  from PIL import Image

  from rest_jax import attacks
  from rest_jax.models.classifier import Classifier

  paths = sorted((folder / 'colours' / 'test').rglob('*.png'))
  images = np.stack([np.asarray(Image.open(path), np.float32) / 255 for path in paths])
  labels = np.asarray([CLASSES.index(path.parent.name) for path in paths])
  attacks.evaluate(
    Classifier.load(folder / 'tiny'),
    images,
    labels,
    attacks=('fgsm', attacks.named_attack('pgd', steps=5)),
    threats=attacks.epsilon_grid('linf', ['1/255', '8/255']),
    key=jax.random.key(0),
    batch_size=4,
    save_images=True,
    output_dir=output,
  )


if __name__ == '__main__':
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('folder', type=Path)
  parser.add_argument('--output', type=Path, help='attacks, with results here')
  args = parser.parse_args()
  if args.output is None:
    make(args.folder)
  else:
    attack(args.folder, args.output)
