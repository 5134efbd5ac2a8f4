"""ResTv2 on ImageNet-1k at 384 px, fine-tuned from the weights trained at 224 px.

Source: arXiv 2204.07366, section 4.1, and the authors' TRAINING.md: 30 epochs, learning rate
1.5e-5 x batch/256, batch 512, weight decay 1e-8, no warm-up, no mixup or cutmix, clip 1.0, and the
recipe of configs/common/imagenet.py otherwise. Evaluation warps the images to 384 px.
Command: python train.py --config configs/finetune_384.py:tiny --config.model.init=restv2_tiny.pth
`model.init` takes the authors' .pth or .safetensors, or a model directory of configs/restv2_*.py.
Published result (top-1): tiny 83.7 (83.708; top-5 96.524), small 84.5, base 85.1, large 85.4. Not
measured here, and neither are time and devices.
Variants: tiny (default), small, base, large.
"""

from rest_jax.configs.common.imagenet import recipe_v2
from rest_jax.errors import UserError

# Stochastic depth: the authors' command names it for tiny; the others as in training at 224 px.
DROP_PATH = {'tiny': 0.1, 'small': 0.2, 'base': 0.3, 'large': 0.5}


def get_config(variant: str = 'tiny'):
  """Returns the config of a variant."""
  if variant not in DROP_PATH:
    raise UserError(f'finetune_384 has no variant {variant!r}; there are {", ".join(DROP_PATH)}')
  config = recipe_v2(f'restv2_{variant}', drop_path=DROP_PATH[variant])
  config.model.init = f'restv2_{variant}.pth'

  config.data.image_size = 384
  config.data.eval_resize = 'squash'

  config.augment.mixup = 0.0
  config.augment.cutmix = 0.0

  config.optim.lr = 1.5e-5
  config.optim.lr_batch = 256
  config.optim.weight_decay = 1e-8
  config.optim.warmup_epochs = 0.0

  config.train.epochs = 30.0
  config.train.batch_size = 512
  config.train.ema = 0.0
  return config
