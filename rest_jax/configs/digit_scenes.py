"""A small ResT on digit_scenes, the data set that the package makes itself. What `make train` runs.

Source: ResT-Lite (arXiv 2105.13677) with half the widths, fewer blocks, and less reduction of the
keys, because at 64 pixels the published 8, 4, 2, 1 leave only 2x2 of them.
Command: python train.py --config configs/digit_scenes.py[:variant]
Variants: default; full (longer, the model of the zoo); smoke (a minute, to try things out).
"""

from rest_jax.errors import UserError
from rest_jax.train.config import default_config

EPOCHS = {'default': 12.0, 'full': 40.0, 'smoke': 1.0}


def get_config(variant: str = 'default'):
  """Returns the config of a variant."""
  if variant not in EPOCHS:
    raise UserError(f'digit_scenes has no variant {variant!r}; there are {", ".join(EPOCHS)}')
  config = default_config()

  config.model.name = 'rest_lite'
  config.model.overrides = dict(
    widths=(32, 64, 128, 256), depths=(1, 1, 2, 1), reductions=(4, 2, 1, 1), drop_path_rate=0.05
  )

  config.data.name = 'digit_scenes'
  config.data.image_size = 64
  config.data.cache = True
  config.data.eval_batch_size = 256

  config.augment.crop_scale = (0.8, 1.0)
  config.augment.color_jitter = (0.3, 0.3, 0.3)
  config.augment.label_smoothing = 0.05

  # From 1.5e-3 on the instance norm's large gradients drive training to chance.
  config.optim.lr = 5e-4
  config.optim.weight_decay = 0.05
  config.optim.clip_norm = 1.0
  config.optim.warmup_epochs = 1.0
  config.optim.min_lr = 1e-5

  config.train.epochs = EPOCHS[variant]
  config.train.batch_size = 64
  config.train.eval_every = 5.0 if variant == 'full' else 2.0
  return config
