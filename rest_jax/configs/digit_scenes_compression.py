"""Adversarial training on digit_scenes with compression of frequency bands, Linf 8/255 or L2 0.5.

Source: our reading of Niu et al., arXiv 2012.09384 (rest_jax/models/compression.py says what that
is), trained as in configs/digit_scenes_at.py (Madry et al., arXiv 1706.06083). A layer of 8 DCT
bands after stage 1, of 16 x 16 positions; an epoch (250 updates are 0.8) with PGD of 3 steps.
Command: python train.py --config configs/digit_scenes_compression.py:STRATEGY
  --config.model.init=DIR
Starts from the zoo's standardly trained model; a fair comparison starts all strategies from one
adversarially trained model directory (configs/digit_scenes_at.py:linf8). The layer itself starts
new. `wiener` does not train its gains: measure them first,
  python -m rest_jax.defend.measure_gains --model DIR --output DIR2
and start from DIR2. From a model without them the gains stay 1, which is no compression.
Standard training: --config.adversarial.kind= --config.augment.label_smoothing=0.05
Result, time and device: not measured at this size. At 32 pixels, 200 updates from an adversarially
trained start, no strategy held more than none (benchmarks/results/defense.md).
Variants: STRATEGY or STRATEGY_l2 for none, low_pass, uniform, soft_threshold, wiener and learned
(the default). Its options: --config.model.overrides.compression.bands=4, .stages='(1, 2)', ...
"""

from rest_jax.configs import digit_scenes_at
from rest_jax.errors import UserError
from rest_jax.models.compression import STRATEGIES

VARIANTS = (*STRATEGIES, *(f'{name}_l2' for name in STRATEGIES))
OPTIONS = {'low_pass': {'cutoff': 0.5}, 'uniform': {'gain': 0.5}, 'learned': {'groups': 8}}


def get_config(variant: str = 'learned'):
  """Returns the config of a variant."""
  if variant not in VARIANTS:
    raise UserError(
      f'digit_scenes_compression has no variant {variant!r}; there are {", ".join(VARIANTS)}'
    )
  strategy = variant.removesuffix('_l2')
  config = digit_scenes_at.get_config('l2' if variant.endswith('_l2') else 'linf8')
  config.model.overrides.compression = {
    'strategy': strategy,
    'stages': (1,),
    'transform': 'dct',
    'bands': 8,
    **OPTIONS.get(strategy, {}),
  }
  config.adversarial.steps = 3
  config.train.epochs = config.train.eval_every = 0.8
  return config
