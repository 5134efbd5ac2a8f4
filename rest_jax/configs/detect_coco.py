"""ResT's detectors on COCO: RetinaNet and Mask R-CNN with the papers' recipes.

Sources: arXiv 2105.13677 (ResT), section 4.2; arXiv 2204.07366 (ResTv2), section 4.3; the authors'
detectron2 code, github.com/wofmanaf/ResT. 16 pictures a step, AdamW of 1e-4, a tenth from two marks
on; 1x is 90,000 steps, 3x is 270,000 with a wider range of sizes.
Command: python train.py --config configs/detect_coco.py:VARIANT --config.data.name=FOLDER
  --config.model.init=rest_small.pth, or whichever ImageNet weights the backbone starts from
Variants: retinanet_small (default), retinanet_base, mask_rcnn_small, mask_rcnn_base (version 1,
1x); mask_rcnn_v2_tiny, mask_rcnn_v2_small, mask_rcnn_v2_base (version 2, 3x).
Published results, box AP / mask AP on val2017: RetinaNet 40.3, 42.0; Mask R-CNN 39.6 / 37.2 and
41.6 / 38.7; version 2 47.6 / 43.2, 48.1 / 43.3, 48.7 / 43.9. Not measured here, nor is the time.

Where this differs from the authors' runs: batch norms of the stem and the patch embeddings stay as
ImageNet left them, theirs learnt from two pictures a GPU; pictures are RGB with ImageNet's mean and
deviation taken out, where their version 1 was given BGR of deviation 1; vectors (biases as well as
norms) have no weight decay; pictures without objects are trained on.

Data: a folder with annotations/instances_train2017.json, instances_val2017.json and the pictures in
train2017/ and val2017/.
"""

from typing import Any, NamedTuple

from rest_jax.errors import UserError
from rest_jax.train.config import default_config

PICTURES = 118_287  # of train2017
BATCH = 16


class Recipe(NamedTuple):
  """What a variant has of its own: a model, stochastic depth, and how long it learns."""

  model: str
  drop_path: float
  steps: int = 90_000
  marks: tuple[int, int] = (60_000, 80_000)
  least_short: int = 640


_LONG: dict[str, Any] = dict(steps=270_000, marks=(210_000, 250_000), least_short=480)
VARIANTS = {
  'retinanet_small': Recipe('retinanet_rest_small', 0.1),
  'retinanet_base': Recipe('retinanet_rest_base', 0.2),
  'mask_rcnn_small': Recipe('mask_rcnn_rest_small', 0.1),
  'mask_rcnn_base': Recipe('mask_rcnn_rest_base', 0.2),
  'mask_rcnn_v2_tiny': Recipe('mask_rcnn_restv2_tiny', 0.1, **_LONG),
  'mask_rcnn_v2_small': Recipe('mask_rcnn_restv2_small', 0.2, **_LONG),
  'mask_rcnn_v2_base': Recipe('mask_rcnn_restv2_base', 0.3, **_LONG),
}


def get_config(variant: str = 'retinanet_small'):
  """Returns the config of a variant."""
  if variant not in VARIANTS:
    raise UserError(f'detect_coco has no variant {variant!r}; there are {", ".join(VARIANTS)}')
  recipe, epoch = VARIANTS[variant], PICTURES / BATCH
  config = default_config()
  config.model.name = recipe.model
  config.model.backbone = dict(drop_path_rate=recipe.drop_path, bn_frozen=True)

  config.data.name = 'coco'
  config.data.train_split = 'train2017'
  config.data.test_split = 'val2017'
  config.data.workers = 8

  config.augment.flip = True
  config.dense.short = tuple(range(recipe.least_short, 801, 32))
  config.dense.long = 1333
  config.dense.crop_share = (0.9, 0.9)
  config.dense.test_short = 800
  config.dense.test_long = 1333

  config.optim.lr = 1e-4
  config.optim.weight_decay = 0.05
  config.optim.clip_norm = 0.01 if recipe.model.startswith('mask_rcnn_') else 0.0
  config.optim.schedule = 'step'
  config.optim.step_epochs = tuple(mark / epoch for mark in recipe.marks)
  config.optim.warmup_epochs = 1000 / epoch
  config.optim.warmup_lr = 1e-7

  config.train.batch_size = BATCH
  config.train.epochs = recipe.steps / epoch
  config.train.eval_every = config.train.epochs / 3
  config.log.every = 50
  return config
