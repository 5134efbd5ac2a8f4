"""Adversarial training of a ResNet-18 on CIFAR-10 with compression of frequency bands, Linf 8/255.

Source: our reading of Niu et al., arXiv 2012.09384 (rest_jax/models/compression.py says what that
is), trained as in configs/cifar10_at.py. A layer of 8 DCT bands after stage 1, of 32 x 32
positions.
Command: python train.py --config configs/cifar10_compression.py[:variant] --data_dir DIR
  [--config.model.init=DIR2]
From scratch (110 epochs) unless `model.init` names an adversarially trained model directory, which
20 epochs at a fifth of the rate then go on from (`finetune` variants). `wiener` needs measured
gains, hence a start: python -m rest_jax.defend.measure_gains --data cifar10 --model DIR2 --output
DIR3.
Standard training: --config.adversarial.kind=
Expected: without extra data about 52 % under AutoAttack (RobustBench, ResNet-18 without
compression). Not measured here, and neither are time and devices.
Variants: STRATEGY or STRATEGY_finetune for none, low_pass, uniform, soft_threshold, wiener and
learned (the default).
"""

from rest_jax.configs import cifar10_at
from rest_jax.errors import UserError
from rest_jax.models.compression import STRATEGIES

VARIANTS = (*STRATEGIES, *(f'{name}_finetune' for name in STRATEGIES))


def get_config(variant: str = 'learned'):
  """Returns the config of a variant."""
  if variant not in VARIANTS:
    raise UserError(
      f'cifar10_compression has no variant {variant!r}; there are {", ".join(VARIANTS)}'
    )
  strategy = variant.removesuffix('_finetune')
  config = cifar10_at.get_config('pgd')
  config.model.overrides.compression = {
    'strategy': strategy,
    'stages': (1,),
    'transform': 'dct',
    'bands': 8,
  }
  # Thresholds and gates are stored at a tenth, which multiplies plain SGD's steps by 100.
  config.optim.clip_norm = 1.0
  if variant.endswith('_finetune'):
    config.optim.lr = 0.02
    config.optim.step_epochs = (10.0, 15.0)
    config.train.epochs = 20.0
    config.train.eval_every = 2.0
  return config
