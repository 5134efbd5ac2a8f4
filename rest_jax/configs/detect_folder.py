"""A detector for a folder of one's own pictures with boxes, from weights that are here.

Source: RetinaNet (Lin et al. 2017, arXiv 1708.02002) with a quarter of the channels on
EfficientNet-Lite0, whose ImageNet weights it starts from. Its batch norms and its first two stages
stay as they are, which a small data set is better off with and which takes less time. The rates are
our choice.
Command: python train.py --config configs/detect_folder.py[:variant] --config.data.name=FOLDER
The folder is laid out as COCO (annotations/instances_train.json and train/) or as Pascal VOC
(Annotations/, JPEGImages/, ImageSets/Main/train.txt), see docs/dense.md.
Variants: default (pictures of 512 px, for a GPU), small (320 px, for a CPU).
"""

from rest_jax.errors import UserError
from rest_jax.train.config import default_config

LONG_SIDES = {'default': 512, 'small': 320}


def get_config(variant: str = 'default'):
  """Returns the config of a variant."""
  if variant not in LONG_SIDES:
    raise UserError(f'detect_folder has no variant {variant!r}; there are {", ".join(LONG_SIDES)}')
  config = default_config()
  config.model.name = 'retinanet_efficientnet_lite0'
  config.model.init = 'efficientnet_lite0'
  config.model.backbone = dict(bn_frozen=True, frozen_stages=2)
  config.model.overrides = dict(width=64, convs=2, anchor_scale=3.0)

  config.data.name = 'images'
  config.data.mean = (127 / 255,) * 3
  config.data.std = (128 / 255,) * 3
  config.data.workers = 0
  _sizes(config.dense, LONG_SIDES[variant])

  config.augment.flip = True
  config.optim.lr = 1e-3
  config.optim.weight_decay = 0.05
  config.optim.clip_norm = 1.0
  config.optim.warmup_epochs = 1.0
  config.optim.min_lr = 1e-5

  config.train.batch_size = 8
  config.train.epochs = 15.0
  config.train.eval_every = 5.0
  return config


def _sizes(dense, long: int) -> None:
  """Pictures of up to `long` pixels, lying or standing, at 0.8 to 1 times that in training."""
  short = long * 3 // 4
  dense.canvases = ((short, long), (long, short))
  dense.short = (short,)
  dense.long = long
  dense.jitter = (0.8, 1.0)
  dense.crop_share = (0.7, 1.0)
  dense.least_visible = 0.3
  dense.test_short = short
  dense.test_long = long
