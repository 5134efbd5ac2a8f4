"""ResT's segmenters on ADE20K: UPerNet with the paper's recipe, Semantic FPN with PVT's.

Sources: arXiv 2204.07366 (ResTv2), section 4.4, and the authors' mmsegmentation code,
github.com/wofmanaf/ResT; Semantic FPN: Wang et al., arXiv 2102.12122 (PVT), section 5.3.
Command: python train.py --config configs/segment_ade20k.py:VARIANT --config.data.name=FOLDER
  --config.model.init=restv2_tiny.pth, or whichever ImageNet weights the backbone starts from
Variants: upernet_v2_tiny (default), upernet_v2_small, upernet_v2_base: 160,000 steps of 16, judged
at six scales with mirror images; semantic_fpn_small: 80,000 steps of 16, judged at one scale.
Published results, mIoU: 47.3, 49.2 and 49.6; none of Semantic FPN. Not measured here, nor is the
time.

Where this differs from the authors' runs: batch norms are synchronised over the devices as theirs,
in the backbone too; small and base decay the learning rate by stage as their code means to (it asks
for a rule that public mmsegmentation has for ConvNeXt alone): 1 for the head, 0.9 for stage 4, ...,
0.9^5 for the stem, a patch embedding with its stage; the warm-up is a line to where their product
of warm-up and decay meets the decay.

Data: ADE20K's folder, images/ and annotations/ with training/ and validation/, and a classes.txt
that names the 150 classes.
"""

from typing import NamedTuple

from rest_jax.errors import UserError
from rest_jax.train.config import default_config

PICTURES = 20_210  # of training
BATCH = 16


class Recipe(NamedTuple):
  """What a variant has of its own: a model, stochastic depth, and how it learns."""

  model: str
  drop_path: float
  lr: float
  weight_decay: float
  stage_decay: float = 1.0
  steps: int = 160_000
  warmup: int = 1500
  power: float = 1.0
  scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


VARIANTS = {
  'upernet_v2_tiny': Recipe('upernet_restv2_tiny', 0.1, 6e-5, 0.01),
  'upernet_v2_small': Recipe('upernet_restv2_small', 0.2, 1.5e-4, 0.05, 0.9),
  'upernet_v2_base': Recipe('upernet_restv2_base', 0.3, 1.5e-4, 0.05, 0.9),
  'semantic_fpn_small': Recipe(
    'semantic_fpn_rest_small', 0.1, 1e-4, 1e-4, steps=80_000, warmup=0, power=0.9, scales=(1.0,)
  ),
}


def get_config(variant: str = 'upernet_v2_tiny'):
  """Returns the config of a variant."""
  if variant not in VARIANTS:
    raise UserError(f'segment_ade20k has no variant {variant!r}; there are {", ".join(VARIANTS)}')
  recipe, epoch = VARIANTS[variant], PICTURES / BATCH
  config = default_config()
  config.model.name = recipe.model
  config.model.backbone = dict(drop_path_rate=recipe.drop_path)

  config.data.name = 'ade20k'
  config.data.train_split = 'training'
  config.data.test_split = 'validation'
  config.data.workers = 8

  config.augment.flip = True
  # Crops of 512 px lie on the first; the others hold whole test pictures of that shorter side.
  wide = ((512, 704), (512, 1024), (512, 2048))
  config.dense.canvases = ((512, 512), *wide, *((width, height) for height, width in wide))
  config.dense.short = (512,)
  config.dense.long = 2048
  config.dense.jitter = (0.5, 2.0)
  config.dense.most_of_a_class = 0.75
  config.dense.photometric = True
  config.dense.test_short = 512
  config.dense.test_long = 2048
  config.dense.test_scales = recipe.scales
  config.dense.test_flip = len(recipe.scales) > 1

  # mmsegmentation's line begins at step 0, ours where the warm-up ends.
  config.optim.lr = recipe.lr * (1 - recipe.warmup / recipe.steps) ** recipe.power
  config.optim.weight_decay = recipe.weight_decay
  config.optim.stage_decay = recipe.stage_decay
  config.optim.schedule = 'linear'
  config.optim.power = recipe.power
  if recipe.warmup:
    config.optim.warmup_epochs = recipe.warmup / epoch
    config.optim.warmup_lr = recipe.lr * 1e-6

  config.train.batch_size = BATCH
  config.train.sync_bn = True
  config.train.epochs = recipe.steps / epoch
  config.train.eval_every = config.train.epochs  # many views of a picture take long
  config.log.every = 50
  return config
