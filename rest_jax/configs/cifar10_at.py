"""PGD adversarial training of a ResNet-18 on CIFAR-10, Linf 8/255.

Source: Madry et al., arXiv 1706.06083: 7 or 10 steps of 2/255 within 8/255 from a random start. The
schedule (SGD 0.1, /10 at epochs 100 and 105 of 110, weight decay 5e-4) is that of Rice, Wong and
Kolter, arXiv 2002.11569, and Pang et al., arXiv 2010.00467, because robust accuracy falls when
training goes on for long after the decay.
Command: python train.py --config configs/cifar10_at.py[:variant] --data_dir DIR
Expected: a ResNet-18 without extra data holds about 52 % under AutoAttack (RobustBench). Not
measured here, and neither are time and devices.
Variants: pgd (default); trades (beta 6); mart (lambda 5); free (8 replays, 14 passes); fast (30
epochs, step of 1.25 eps).
"""

from rest_jax.errors import UserError
from rest_jax.train.config import default_config

VARIANTS = ('pgd', 'trades', 'mart', 'free', 'fast')


def get_config(variant: str = 'pgd'):
  """Returns the config of a variant."""
  if variant not in VARIANTS:
    raise UserError(f'cifar10_at has no variant {variant!r}; there are {", ".join(VARIANTS)}')
  config = default_config()
  config.model.name = 'resnet18_cifar'

  config.data.name = 'cifar10'
  config.data.image_size = 32
  config.data.cache = True
  config.data.eval_batch_size = 512

  config.augment.crop_scale = (0.7, 1.0)
  config.augment.flip = True

  config.adversarial.kind = variant
  config.adversarial.norm = 'linf'
  config.adversarial.eps = 8 / 255
  config.adversarial.step_size = 2 / 255 if variant in ('pgd', 'trades', 'mart') else 0.0
  config.adversarial.steps = 10
  if variant == 'free':
    config.adversarial.replays = 8
  # The papers of free and fast training leave the network in training mode throughout.
  config.adversarial.batch_norm = 'train' if variant == 'fast' else 'eval'
  config.adversarial.eval_steps = 20

  config.optim.name = 'sgd'
  config.optim.lr = 0.1
  config.optim.momentum = 0.9
  config.optim.weight_decay = 5e-4
  config.optim.schedule = 'step'

  epochs = {'free': 14.0, 'fast': 30.0}.get(variant, 110.0)
  config.optim.step_epochs = (epochs * 100 / 110, epochs * 105 / 110)
  config.train.epochs = epochs
  config.train.batch_size = 128
  config.train.eval_every = epochs / 10
  return config
