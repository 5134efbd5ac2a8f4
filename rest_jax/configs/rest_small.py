"""ResT-Small (13.7 M parameters) on ImageNet-1k at 224 px.

Source: arXiv 2105.13677 and the authors' code; recipe in configs/common/imagenet.py.
Command: python train.py --config configs/rest_small.py
Published result: top-1 / top-5 79.6 / 94.9 on the validation split. Not measured here.
Time and device: not measured, 384 million images; see configs/common/imagenet.py.
"""

from rest_jax.configs.common.imagenet import recipe_v1


def get_config():
  """Returns the config."""
  return recipe_v1('rest_small', drop_path=0.1)
