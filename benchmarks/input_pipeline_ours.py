"""The input pipeline of rest_jax: reads as many batches as each line on stdin says.

Started by `benchmarks/input_pipeline.py`.
"""

import argparse
import sys
import time

import PIL
from PIL import features


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--root', required=True)
  parser.add_argument('--batch', type=int, required=True)
  parser.add_argument('--workers', type=int, required=True)
  parser.add_argument('--repeats', type=int, default=1)
  parser.add_argument('--scaled', action='store_true', help='data.scaled_decoding')
  args = parser.parse_args()
  import grain  # noqa: F401  # so that the start is that of the workers

  from rest_jax.data import AugmentConfig, train_iterator
  from rest_jax.data.folder import FolderSource

  source = open_folder(args.root, FolderSource)
  config = AugmentConfig(rand_augment='rand-m9-mstd0.5-inc1', scaled_decoding=args.scaled)
  turbo = features.version('libjpeg_turbo')
  print(f'@rest_jax with Pillow {PIL.__version__}, libjpeg-turbo {turbo}', flush=True)
  start = time.perf_counter()
  batches = train_iterator(
    source, args.batch, 224, config, workers=args.workers, repeats=args.repeats
  )
  next(batches)
  print(f'@{time.perf_counter() - start}', flush=True)
  for line in sys.stdin:
    for _ in range(int(line)):
      next(batches)
    print('@done', flush=True)
  batches.close()


def open_folder(root: str, kind):
  """All images below `root`, labelled by their folder."""
  from pathlib import Path

  files = sorted(Path(root).rglob('*.jpg'))
  names = sorted({path.parent for path in files})
  return kind(tuple(map(str, files)), tuple(names.index(path.parent) for path in files))


if __name__ == '__main__':
  main()
