"""A small Semantic FPN on digit_mosaics: a class for every pixel.

Source: Kirillov et al. 2019 (arXiv 1901.02446) with 48 channels, on the zoo's ResT of
digit_scenes, whose batch norms stay as they were trained. It is the zoo's `digit_segments`.
Command: python train.py --config configs/segment_mosaics.py[:variant]
Variants: default; smoke (a minute, to try things out).
"""

from rest_jax.configs.common.mosaics import BACKBONE, mosaics
from rest_jax.errors import UserError

STEPS = {'default': 2000, 'smoke': 40}


def get_config(variant: str = 'default'):
  """Returns the config of a variant."""
  if variant not in STEPS:
    raise UserError(f'segment_mosaics has no variant {variant!r}; there are {", ".join(STEPS)}')
  # Enlarged, because a class is told at every fourth pixel and strokes are five wide.
  config = mosaics(STEPS[variant], side=192, batch=10)
  config.optim.lr = 2e-3
  config.model.name = 'semantic_fpn_rest_lite'
  # One pass over the mosaics: nothing is seen twice, so there is nothing to regularise.
  config.model.backbone = BACKBONE | dict(drop_path_rate=0.0)
  config.model.overrides = dict(fpn_width=48, width=48)
  return config
