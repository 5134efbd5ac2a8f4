"""A torch DataLoader with timm's transforms, those of the ResT authors' `datasets.py`.

Pillow must be older than 13 for timm 1.0 to posterize to 0 bits.
"""

from __future__ import annotations

import contextlib

import torch

from benchmarks.work import Work


def _provide_operators() -> torch.library.Library:
  """The names that torchvision wants at import, where its compiled part does not fit torch's."""
  library = torch.library.Library('torchvision', 'FRAGMENT')
  for name in ('nms', 'qnms'):
    with contextlib.suppress(RuntimeError):
      library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
  return library


def batches(root: str, batch: int, workers: int, uint8: bool = False) -> Work:
  """A batch a call: normalised float tensors with random erasing, or uint8 as timm prefetches."""
  try:
    from timm.data import create_transform
    from torchvision.datasets import ImageFolder

    kept = None
  except (ImportError, RuntimeError):
    kept = _provide_operators()
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
    use_prefetcher=uint8,
  )
  data = ImageFolder(f'{root}/train', transform=transform)
  endless = torch.utils.data.RandomSampler(data, replacement=True, num_samples=10**7)
  loader = torch.utils.data.DataLoader(
    data, batch_size=batch, sampler=endless, num_workers=workers, drop_last=True
  )
  found = iter(loader)
  return Work(lambda: next(found), lambda: {'operators': kept is not None})
