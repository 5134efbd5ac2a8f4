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


def mosaics(steps: int, *, side: int = SIDE, batch: int = BATCH):
  """A config on digit_mosaics.

  Args:
    steps: of training.
    side: that pictures are enlarged to, in pixels.
    batch: pictures of a step.
  """
  config = default_config()
  config.model.init = 'digit_scenes'

  config.data.name = 'digit_mosaics'
  config.data.eval_batch_size = 20
  config.dense.canvases = ((side, side),)
  config.dense.short = (side,)
  config.dense.long = side
  config.dense.test_short = side
  config.dense.test_long = side

  config.optim.lr = 1e-3
  config.optim.weight_decay = 0.05
  config.optim.clip_norm = 1.0
  config.optim.min_lr = 1e-5

  config.train.batch_size = batch
  config.train.epochs = steps * batch / COUNTS['train']
  config.optim.warmup_epochs = config.train.epochs / 20
  config.train.eval_every = config.train.epochs
  config.log.every = 20
  return config
