"""A small Mask R-CNN on digit_mosaics: boxes and the mask of every digit.

Source: He et al. 2017 (arXiv 1703.06870) with a quarter of the channels and fewer regions, on the
zoo's ResT of digit_scenes, whose batch norms stay as they were trained.
Command: python train.py --config configs/instances_mosaics.py[:variant]
Variants: default; small (narrower heads, 3.9 MB as float16: the zoo's `digit_instances`); smoke (a
minute, to try things out).
"""

from rest_jax.configs.common.mosaics import BACKBONE, MAX_OBJECTS, mosaics
from rest_jax.errors import UserError

STEPS = {'default': 800, 'small': 800, 'smoke': 20}


def get_config(variant: str = 'default'):
  """Returns the config of a variant."""
  if variant not in STEPS:
    raise UserError(f'instances_mosaics has no variant {variant!r}; there are {", ".join(STEPS)}')
  config = mosaics(STEPS[variant])
  config.dense.max_objects = MAX_OBJECTS
  config.model.name = 'mask_rcnn_rest_lite'
  config.model.backbone = BACKBONE
  config.model.overrides = dict(
    stages=(1, 2, 3),
    width=48 if variant == 'small' else 64,
    box_width=64 if variant == 'small' else 128,
    convs=2,
    canonical=56.0,
    proposal_candidates=(256, 128),
    proposals=(128, 64),
    anchors_drawn=64,
    regions_drawn=32,
    max_detections=20,
  )
  return config
