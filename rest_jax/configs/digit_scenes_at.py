"""Adversarial training on digit_scenes: the zoo's model made robust to 4/255 in the Linf norm.

Source: Madry et al., arXiv 1706.06083 (pgd); Zhang et al., arXiv 1901.08573 (trades).
Command: python train.py --config configs/digit_scenes_at.py[:variant]
Starts from the zoo's standardly trained model. Evaluations give the accuracy under 20 steps of PGD
beside the clean one; AutoAttack is the stronger judge.
Result: short8 holds 82.35 % of the test scenes under PGD-10 within 8/255, 97.60 % without an
attack, after 19m18s on 2 CPU cores that other work shared. The others: not measured.
Variants: pgd (default); trades; linf8 (pgd within 8/255); l2 (pgd within 0.5 in the L2 norm); short
(pgd of 2 steps, 250 updates, judged by 10); short8 (pgd of 3 steps within 8/255, 500 updates).
"""

from rest_jax.configs import digit_scenes
from rest_jax.errors import UserError

VARIANTS = ('pgd', 'trades', 'linf8', 'l2', 'short', 'short8')


def get_config(variant: str = 'pgd'):
  """Returns the config of a variant."""
  if variant not in VARIANTS:
    raise UserError(f'digit_scenes_at has no variant {variant!r}; there are {", ".join(VARIANTS)}')
  config = digit_scenes.get_config()
  config.model.init = 'digit_scenes'

  config.adversarial.kind = 'trades' if variant == 'trades' else 'pgd'
  config.adversarial.norm = 'linf'
  config.adversarial.eps = 8 / 255 if variant in ('linf8', 'short8') else 4 / 255
  if variant == 'l2':
    config.adversarial.norm, config.adversarial.eps = 'l2', 0.5
  config.adversarial.steps = 7
  config.adversarial.batch_norm = 'eval'
  config.adversarial.eval_steps = 20

  config.augment.label_smoothing = 0.0
  config.optim.lr = 3e-4
  config.optim.warmup_epochs = 0.25

  config.train.epochs = 10.0
  config.train.eval_every = 2.0
  if variant == 'short':
    config.adversarial.steps = 2
    config.adversarial.eval_steps = 10
    config.train.epochs = config.train.eval_every = 0.8
  elif variant == 'short8':
    config.adversarial.steps = 3
    config.adversarial.eval_steps = 10
    config.optim.lr = 5e-4
    config.train.epochs = config.train.eval_every = 1.6
  return config
