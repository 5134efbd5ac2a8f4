"""ResT-Base (30.3 M parameters) on ImageNet-1k at 224 px.

Source: arXiv 2105.13677 and the authors' code; recipe in configs/common/imagenet.py.
Command: python train.py --config configs/rest_base.py
Published result: top-1 / top-5 81.6 / 95.7 on the validation split. Not measured here.
Time and device: not measured, 384 million images; see configs/common/imagenet.py.
"""

from rest_jax.configs.common.imagenet import recipe_v1


def get_config():
  """Returns the config."""
  return recipe_v1('rest_base', drop_path=0.2)
