"""Fine-tuning on a folder of one's own images, from weights that are here: EfficientNet-Lite0's.

Source: layer decay as in the ResTs' code (optim_factory); the rates are our choice.
Command: python train.py --config configs/finetune_folder.py[:variant] --config.data.name=FOLDER
The folder holds train/CLASS/*.jpg and test/CLASS/*.jpg, and val/CLASS/*.jpg to choose the epoch
by where there is one (or one sub-folder a class, or a CSV of labels); the new head has as many
classes.
`--config.model.init=` takes another model to start from: a name of the zoo, the work directory of
an earlier run, hf://owner/name, or an official .pth called after its model (rest_small.pth). It
brings the model's name and overrides, mean, std, size and crop, unless they are given.
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
  config.model.init = 'efficientnet_lite0'
  config.model.as_init = True

  config.data.name = 'images'
  config.data.workers = 4

  config.augment.crop_scale = (0.3, 1.0)
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
    config.optim.layer_decay = 0.8
  return config
