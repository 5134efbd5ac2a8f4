"""ResTv2-Base (56.0 M parameters) on ImageNet-1k at 224 px.

Source: arXiv 2204.07366 and the authors' code; recipe in configs/common/imagenet.py.
Command: python train.py --config configs/restv2_base.py
Published result: top-1 83.7 on the validation split. Not measured here.
Time and device: not measured, 384 million images; see configs/common/imagenet.py.
"""

from rest_jax.configs.common.imagenet import recipe_v2


def get_config():
  """Returns the config."""
  return recipe_v2('restv2_base', drop_path=0.3)
