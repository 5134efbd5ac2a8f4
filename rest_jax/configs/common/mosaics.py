"""What the three configs on digit_mosaics share."""

from rest_jax.data.digit_mosaics import COUNTS, SIDE
from rest_jax.train.config import default_config

# The zoo's `digit_scenes`, whose weights they start from.
BACKBONE = dict(
  widths=(32, 64, 128, 256),
  depths=(1, 1, 2, 1),
  reductions=(4, 2, 1, 1),
  drop_path_rate=0.05,
  bn_frozen=True,
)
BATCH = 16
MAX_OBJECTS = 16  # a window of 3x3 scenes touches nine


def mosaics(steps: int):
  """A config on digit_mosaics that trains for so many steps of 16 pictures."""
  config = default_config()
  config.model.init = 'digit_scenes'

  config.data.name = 'digit_mosaics'
  config.data.eval_batch_size = 20
  config.dense.canvases = ((SIDE, SIDE),)
  config.dense.short = (SIDE,)
  config.dense.long = SIDE
  config.dense.test_short = 0
  config.dense.test_long = 0

  config.optim.lr = 1e-3
  config.optim.weight_decay = 0.05
  config.optim.clip_norm = 1.0
  config.optim.min_lr = 1e-5

  config.train.batch_size = BATCH
  config.train.epochs = steps * BATCH / COUNTS['train']
  config.optim.warmup_epochs = config.train.epochs / 20
  config.train.eval_every = config.train.epochs
  config.log.every = 20
  return config
