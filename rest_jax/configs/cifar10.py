"""CIFAR-10: 32 x 32 photographs of ten classes, from scratch, with a ResTv2 whose stem halves once.

Source: ResTv2 (arXiv 2204.07366) made for small images: at stem stride 2 the four stages see 16, 8,
4 and 2 positions a side, and reductions 4, 2, 1, 1 leave at least 4 x 4 keys in the first three.
The ResNet-18 is the one of He et al. (arXiv 1512.03385) with the stem for CIFAR.
Command: python train.py --config configs/cifar10.py[:variant] --data_dir DIR
Variants: default (200 epochs, for a GPU); cpu (25 epochs); resnet18 (60 epochs, for a GPU);
resnet20 and resnet56 (the ResNet paper's own recipe: 64,000 updates, crops out of 4 black pixels
around the image, SGD whose rate falls to a tenth at half and three quarters; for a GPU).
Result: resnet20, the model of the zoo, 91.45 % test top-1 at its end, 91.48 % at its best one
(91.25 % in the paper), 6m51s on an H200 that other trainings used. cpu: 78.94 % (average of the
weights; 79.03 % without) on a JPEG copy of CIFAR-10, 2 CPU cores, some 45 minutes at 500 img/s.
resnet18 was only seen to learn: 117 updates at a rate of 0.05 reach 40.05 %, at 45 img/s on 2 CPU
cores. default and resnet56: not measured.
"""

from rest_jax.errors import UserError
from rest_jax.train.config import default_config

EPOCHS = {'default': 200.0, 'cpu': 25.0, 'resnet18': 60.0, 'resnet20': 164.0, 'resnet56': 164.0}


def get_config(variant: str = 'default'):
  """Returns the config of a variant."""
  if variant not in EPOCHS:
    raise UserError(f'cifar10 has no variant {variant!r}; there are {", ".join(EPOCHS)}')
  config = default_config()

  config.data.name = 'cifar10'
  config.data.image_size = 32
  config.data.cache = True
  config.data.eval_batch_size = 500

  config.augment.crop_scale = (0.5, 1.0)
  config.augment.flip = True
  config.augment.color_jitter = (0.2, 0.2, 0.2)
  config.augment.label_smoothing = 0.1

  config.train.epochs = EPOCHS[variant]
  config.train.batch_size = 128
  config.train.eval_every = 5.0
  if variant == 'resnet18':
    _resnet(config)
  elif variant in ('resnet20', 'resnet56'):
    _published(config, variant)
  else:
    _rest(config, long=variant == 'default')
  return config


def _rest(config, long: bool) -> None:
  config.model.name = 'restv2_tiny'
  config.model.overrides = dict(
    widths=(32, 64, 128, 256),
    heads=(1, 2, 4, 8),
    depths=(1, 2, 3, 1) if long else (1, 1, 2, 1),
    reductions=(8, 4, 2, 1) if long else (4, 2, 1, 1),
    stem_stride=1 if long else 2,
    drop_path_rate=0.1 if long else 0.0,
  )
  config.optim.lr = 2e-3
  config.optim.weight_decay = 0.05
  config.optim.clip_norm = 1.0
  config.optim.warmup_epochs = 2.0
  config.optim.min_lr = 1e-5
  config.train.ema = 0.999
  if long:
    config.augment.mixup = 0.2
    config.augment.cutmix = 1.0
    config.augment.mix_prob = 0.5


def _resnet(config) -> None:
  config.model.name = 'resnet18_cifar'
  config.optim.name = 'sgd'
  config.optim.lr = 0.1
  config.optim.weight_decay = 5e-4
  config.optim.warmup_epochs = 2.0


def _published(config, name: str) -> None:
  """Section 4.2 of the ResNet paper."""
  config.model.name = name
  config.data.mean = (0.4914, 0.4822, 0.4465)
  config.data.std = (0.247, 0.2435, 0.2616)
  config.augment.crop_scale = ()
  config.augment.padding = 4
  config.augment.color_jitter = ()
  config.augment.label_smoothing = 0.0
  config.optim.name = 'sgd'
  config.optim.lr = 0.1
  config.optim.weight_decay = 1e-4
  config.optim.schedule = 'step'
  config.optim.step_epochs = (82.0, 123.0)
