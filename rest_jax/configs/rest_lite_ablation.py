"""ResT-Lite in the ablation protocol of the ResT paper: 100 epochs of SGD, crops and flips only.

Source: arXiv 2105.13677, ablation study: rest_lite, SGD with momentum 0.9, weight decay 1e-4,
learning rate 0.1 x batch/512, 5 warm-up epochs, a tenth every 30 epochs. Our reading: the 30 epochs
count from the start, and there is no stochastic depth and no label smoothing.
Command: python train.py --config configs/rest_lite_ablation.py[:variant]
Variants: emsa (the default), msa (plain attention), gl and none (other position encodings).
Published result: top-1 / top-5 72.88 / 90.62 for emsa, 72.68 / 90.46 for msa, on the validation
split; those of gl and none are not known to us. Not measured here.
Time and device: not measured, 128 million images; see configs/common/imagenet.py.
"""

from rest_jax.configs.common.imagenet import imagenet
from rest_jax.errors import UserError

VARIANTS = {
  'emsa': {},
  'msa': {'attention': 'msa'},
  'gl': {'position': 'gl'},
  'none': {'position': 'none'},
}


def get_config(variant: str = 'emsa'):
  """Returns the config of a variant."""
  if variant not in VARIANTS:
    raise UserError(f'no variant {variant!r} of this ablation; there are {", ".join(VARIANTS)}')
  config = imagenet('rest_lite', drop_path=0.0)
  config.model.overrides = {'drop_path_rate': 0.0} | VARIANTS[variant]
  config.data.eval_crop_pct = 0.875  # resize to 256, crop 224

  config.optim.name = 'sgd'
  config.optim.momentum = 0.9
  config.optim.lr = 0.1
  config.optim.lr_batch = 512
  config.optim.weight_decay = 1e-4
  config.optim.schedule = 'step'
  config.optim.step_epochs = (30.0, 60.0, 90.0)
  config.optim.warmup_epochs = 5.0

  config.train.epochs = 100.0
  return config
