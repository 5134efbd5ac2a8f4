"""JPEGs for the benchmarks that read pictures: parts of two photographs that scikit-learn holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

QUALITY = 90


def write_photographs(root: Path, count: int, size: tuple[int, int]) -> None:
  """Writes JPEGs into class folders of a split 'train', and the last two of a split 'test'.

  Args:
    root: folder.
    count: pictures.
    size: (width, height) of each.
  """
  from sklearn.datasets import load_sample_images

  photographs = [Image.fromarray(image) for image in load_sample_images().images]
  rng = np.random.default_rng(0)
  for number in range(count):
    picture = photographs[number % 2]
    width, height = (side * rng.uniform(0.6, 1) for side in picture.size)
    left, top = rng.uniform(0, picture.width - width), rng.uniform(0, picture.height - height)
    box = (left, top, left + width, top + height)
    part = picture.resize(size, Image.Resampling.BICUBIC, box=box)
    folder = root / ('train' if number < count - 2 else 'test') / f'class{number % 2}'
    folder.mkdir(parents=True, exist_ok=True)
    part.save(folder / f'{number:05}.jpg', quality=QUALITY)
