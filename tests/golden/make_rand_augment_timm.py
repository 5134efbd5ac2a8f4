"""Writes `rand_augment_timm.npz`: what timm's RandAugment operations do to natural patches.

Run by a Python with timm, torchvision, scikit-learn and Pillow 12 (with Pillow 13, timm 1.0.31
fails to posterize to 0 bits):

  python tests/golden/make_rand_augment_timm.py

For every operation, magnitude 0 to 10, sign and interpolation: its argument, and some pixels of
its result on each of 20 patches.
"""

import itertools
import sys
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

SIZE, PATCHES, PIXELS = 28, 20, 36
FILL = (124, 116, 104)  # round(255 * ImageNet mean)
MOVING = ('Rotate', 'ShearX', 'ShearY', 'TranslateXRel', 'TranslateYRel')


def natural_patches() -> np.ndarray:
  """Returns (20, 28, 28, 3) uint8 cut from two photographs at half and third size."""
  from sklearn.datasets import load_sample_images

  rng = np.random.default_rng(0)
  patches = []
  for number in range(PATCHES):
    picture = Image.fromarray(load_sample_images().images[number % 2])
    picture = picture.reduce(2 + number % 3)
    left, top = (int(rng.integers(side - SIZE)) for side in picture.size)
    patches.append(np.asarray(picture.crop((left, top, left + SIZE, top + SIZE))))
  return np.stack(patches)


def cases(module):
  """Yields (name, magnitude, negative, bicubic)."""
  names = dict.fromkeys(module._RAND_TRANSFORMS + module._RAND_INCREASING_TRANSFORMS)
  for name in names:
    graded = module.LEVEL_TO_ARG[name] is not None
    signed = name in MOVING or (name.endswith('Increasing') and name[:3] not in ('Pos', 'Sol'))
    levels = range(11) if graded else (10,)
    moving = (False, True) if name in MOVING else (True,)
    yield from itertools.product((name,), levels, (False, True) if signed else (False,), moving)


def main() -> None:
  from timm.data import auto_augment

  patches, rng = natural_patches(), np.random.default_rng(1)
  rows, arguments, pixels = [], [], []
  names = list(auto_augment.LEVEL_TO_ARG)
  for name, level, negative, bicubic in cases(auto_augment):
    hparams = {
      'img_mean': FILL,
      'interpolation': Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR,
    }
    operation = auto_augment.AugmentOp(name, prob=1.0, magnitude=level, hparams=hparams)
    with mock.patch.object(auto_augment.random, 'random', lambda n=negative: 1.0 if n else 0.0):
      results = np.stack([np.asarray(operation(Image.fromarray(p))) for p in patches])
      value = operation.level_fn(float(level), hparams)[0] if operation.level_fn else np.nan
    rows.append((names.index(name), level, negative, bicubic))
    arguments.append(value)
    pixels.append(results.reshape(PATCHES, -1))
  # Every case looks at pixels of its own.
  places = rng.integers(0, SIZE * SIZE * 3, (len(rows), PIXELS)).astype(np.uint16)
  seen = np.stack([p[:, at] for p, at in zip(pixels, places, strict=True)])
  np.savez_compressed(
    Path(__file__).with_name('rand_augment_timm.npz'),
    patches=patches,
    names=np.array(names),
    cases=np.array(rows, np.uint8),
    arguments=np.array(arguments),
    places=places,
    pixels=seen,
  )
  print(len(rows), 'cases', file=sys.stderr)


if __name__ == '__main__':
  main()
