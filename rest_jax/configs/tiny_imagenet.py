"""Tiny-ImageNet-200: 64 x 64 photographs of 200 classes, from scratch.

Source: the data set of Stanford's CS231n (100,000 training and 10,000 validation images); the model
is a ResTv2 (arXiv 2204.07366) whose stem halves once, so that its stages see 32, 16, 8 and 4
positions a side.
Command: python train.py --config configs/tiny_imagenet.py[:variant] --config.data.name=FOLDER
Variants: default (60 epochs, bfloat16, for a GPU); cpu (12 epochs of a smaller model).
FOLDER is the unpacked tiny-imagenet-200.
Result: cpu with three epochs (--config.train.epochs=3 --config.optim.warmup_epochs=0.3
--config.train.eval_every=1), stopped once and resumed: top-1 19.51 % of the 10,000 validation
images, which chose the epoch too, in 1h33m of 2 CPU cores that other work used as well. Not
measured: 12 epochs, and the default.
"""

from rest_jax.errors import UserError
from rest_jax.train.config import default_config

EPOCHS = {'default': 60.0, 'cpu': 12.0}


def get_config(variant: str = 'default'):
  """Returns the config of a variant."""
  if variant not in EPOCHS:
    raise UserError(f'tiny_imagenet has no variant {variant!r}; there are {", ".join(EPOCHS)}')
  config = default_config()
  small = variant == 'cpu'

  config.data.name = 'tiny-imagenet-200'
  config.data.image_size = 64
  config.data.cache = small
  config.data.workers = 0 if small else 8
  config.data.eval_batch_size = 1000

  config.model.name = 'restv2_tiny'
  config.model.overrides = dict(
    widths=(32, 64, 128, 256) if small else (64, 128, 256, 512),
    heads=(1, 2, 4, 8),
    depths=(1, 1, 2, 1) if small else (1, 2, 6, 2),
    reductions=(8, 4, 2, 1),
    stem_stride=2,
    drop_path_rate=0.0 if small else 0.1,
  )
  config.model.dtype = 'float32' if small else 'bfloat16'

  config.augment.crop_scale = (0.35, 1.0)
  config.augment.flip = True
  config.augment.label_smoothing = 0.1
  if not small:
    config.augment.mixup = 0.2
    config.augment.cutmix = 1.0
    config.augment.mix_prob = 0.5

  config.optim.lr = 1e-3
  config.optim.weight_decay = 0.05
  config.optim.clip_norm = 1.0
  config.optim.warmup_epochs = 2.0
  config.optim.min_lr = 1e-5
  config.train.epochs = EPOCHS[variant]
  config.train.batch_size = 128 if small else 256
  config.train.eval_every = 4.0
  config.train.ema = 0.999
  return config
