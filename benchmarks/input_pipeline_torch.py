"""A torch DataLoader with timm's transforms: reads as many batches as each line on stdin says.

Started by `benchmarks/input_pipeline.py`; needs nothing of rest_jax. The transforms are those of
the ResT authors' `datasets.py`. Pillow must be older than 13 for timm 1.0 to posterize to 0 bits.
"""

import argparse
import contextlib
import sys
import time

import PIL
import torch
from PIL import features


def provide_operators() -> list:
  """The names that torchvision wants at import, where its compiled part does not fit torch's."""
  library = torch.library.Library('torchvision', 'FRAGMENT')
  for name in ('nms', 'qnms'):
    with contextlib.suppress(RuntimeError):
      library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
  return [library]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--root', required=True)
  parser.add_argument('--batch', type=int, required=True)
  parser.add_argument('--workers', type=int, required=True)
  parser.add_argument('--uint8', action='store_true')
  args = parser.parse_args()
  kept = provide_operators()
  import timm
  import torchvision
  from timm.data import create_transform
  from torchvision.datasets import ImageFolder

  transform = create_transform(
    input_size=224,
    is_training=True,
    color_jitter=0.4,
    auto_augment='rand-m9-mstd0.5-inc1',
    interpolation='bicubic',
    re_prob=0.25,
    re_mode='pixel',
    re_count=1,
    use_prefetcher=args.uint8,
  )
  data = ImageFolder(f'{args.root}/train', transform=transform)
  endless = torch.utils.data.RandomSampler(data, replacement=True, num_samples=10**7)
  turbo = features.version('libjpeg_turbo')
  print(
    f'@torch {torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__} '
    f'with Pillow {PIL.__version__}, libjpeg-turbo {turbo}',
    flush=True,
  )
  start = time.perf_counter()
  loader = torch.utils.data.DataLoader(
    data, batch_size=args.batch, sampler=endless, num_workers=args.workers, drop_last=True
  )
  batches = iter(loader)
  next(batches)
  print(f'@{time.perf_counter() - start}', flush=True)
  for line in sys.stdin:
    for _ in range(int(line)):
      next(batches)
    print('@done', flush=True)
  del kept


if __name__ == '__main__':
  main()
