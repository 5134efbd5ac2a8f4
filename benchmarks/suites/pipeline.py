"""Suite of the input pipeline."""

from __future__ import annotations

from benchmarks.cases import Case, Options, Ours, Theirs, suite


@suite('pipeline')
def pipeline(options: Options) -> list[Case]:
  """Input pipeline.

  Both sides read the same JPEGs through the recipe of the ResT papers: random resized crop to 224,
  mirroring, RandAugment. The DataLoader goes on to normalised float tensors with random erasing, as
  in the authors' training script, or stops at uint8, as with timm's prefetcher; ours stops at uint8
  and does the rest on the device. Scaled decoding reads a JPEG at a half, a quarter or an eighth
  where the crop keeps 224 pixels a side. A side stands still while it is not its turn, so nobody
  reads ahead for free. Ratios are of processor time over all processes of a side, which hold on a
  busy machine too; the memory is that of the largest worker; the first call starts the workers.
  """
  width, height = (320, 240) if options.quick else (500, 375)
  count, batch = (32, 8) if options.quick else (200, 64)
  root = options.output / f'photographs_{width}x{height}_{count}'
  pictures = dict(count=count, width=width, height=height)
  params = dict(root=str(root), batch=batch, workers=1)
  task = 'pipeline.batches'
  sides: dict[str, Ours | Theirs] = {
    'ours': Ours(task, {**params, 'pictures': pictures}),
    'scaled decoding': Ours(task, {**params, 'scaled': True}),
    'three views': Ours(task, {**params, 'repeats': 3}),
    'DataLoader': Theirs(task, params),
    'DataLoader, uint8': Theirs(task, {**params, 'uint8': True}),
  }
  if options.quick:
    sides = {name: sides[name] for name in ('ours', 'DataLoader')}
  about = {'pictures': f'{width}x{height}', 'batch': batch, 'workers': 1}
  return [Case(about, sides, items=batch, processor=True, calls=4 if options.quick else 6)]
