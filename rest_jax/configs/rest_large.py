"""ResT-Large (51.7 M parameters) on ImageNet-1k at 224 px.

Source: arXiv 2105.13677 and the authors' code; recipe in configs/common/imagenet.py.
Command: python train.py --config configs/rest_large.py
Published result: top-1 / top-5 83.6 / 96.3 on the validation split. Not measured here.
Time and device: not measured, 384 million images; see configs/common/imagenet.py.
"""

from rest_jax.configs.common.imagenet import recipe_v1


def get_config():
  """Returns the config."""
  return recipe_v1('rest_large', drop_path=0.3)
