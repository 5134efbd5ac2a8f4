"""Fine-tuning ResT-Small on a folder of one's own images, from the authors' ImageNet weights.

Source: layer decay as in the authors' optim_factory; the rates are our choice.
Command: python train.py --config configs/finetune_folder.py[:variant] --config.data.name=FOLDER \\
  --config.model.init=rest_small.pth
The folder holds train/CLASS/*.jpg and test/CLASS/*.jpg, and val/CLASS/*.jpg to choose the epoch
by where there is one (or one sub-folder a class, or a CSV of labels); the new head has as many
classes.
`model.init` is an official .pth or .safetensors, or the model/ directory of an earlier run.
Variants: default (all weights, lower rates further from the head); probe (the head alone).
Not measured: the result is the data's.
"""

from rest_jax.errors import UserError
from rest_jax.train.config import default_config

VARIANTS = ('default', 'probe')


def get_config(variant: str = 'default'):
  """Returns the config of a variant."""
  if variant not in VARIANTS:
    raise UserError(f'finetune_folder has no variant {variant!r}; there are {", ".join(VARIANTS)}')
  config = default_config()
  config.model.name = 'rest_small'
  config.model.init = 'rest_small.pth'

  config.data.name = 'images'
  config.data.image_size = 224
  config.data.eval_resize = 'resize_crop'
  config.data.workers = 4

  config.augment.crop_scale = (0.3, 1.0)
  config.augment.interpolation = 'bicubic'
  config.augment.flip = True
  config.augment.label_smoothing = 0.1

  config.optim.lr = 2e-4
  config.optim.clip_norm = 5.0
  config.optim.warmup_epochs = 1.0
  config.optim.min_lr = 1e-6

  config.train.epochs = 20.0
  config.train.batch_size = 64
  if variant == 'probe':
    config.optim.freeze = '(?!head/)'
    config.optim.lr = 1e-3
    config.optim.weight_decay = 0.0
  else:
    config.model.overrides = {'drop_path_rate': 0.1}
    config.optim.layer_decay = 0.8
  return config
