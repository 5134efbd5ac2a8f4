"""A small RetinaNet on digit_mosaics, the embedded data set of dense tasks.

Source: Lin et al. 2017 (arXiv 1708.02002) with a quarter of the channels, two convolutions a tower
and the strides 4, 8 and 16, on the zoo's ResT of digit_scenes, whose batch norms stay as they were
trained.
Command: python train.py --config configs/detect_mosaics.py[:variant]
Variants: default; smoke (a minute, to try things out).
"""

from rest_jax.configs.common.mosaics import BACKBONE, MAX_OBJECTS, mosaics
from rest_jax.errors import UserError

STEPS = {'default': 800, 'smoke': 40}


def get_config(variant: str = 'default'):
  """Returns the config of a variant."""
  if variant not in STEPS:
    raise UserError(f'detect_mosaics has no variant {variant!r}; there are {", ".join(STEPS)}')
  config = mosaics(STEPS[variant])
  config.dense.max_objects = MAX_OBJECTS
  config.model.name = 'retinanet_rest_lite'
  config.model.backbone = BACKBONE
  config.model.overrides = dict(stages=(1, 2, 3), extra_levels=0, width=64, convs=2)
  return config
