"""Group-CAM as augmentation: what does not speak for an image's class is blurred.

Source: Zhang et al., "Group-CAM", arXiv 2103.13859, section 4.6, and the authors' fine-tuning
code (main.py). The saliency of the image's own label, in evaluation mode, is cut at its mean to a
mask m, and the network trains on x m + blur(x) (1 - m).

Deviations: the mean is each image's own (the code takes the batch's); the code adds 1 - m to the
blurred image instead of multiplying, which is no published step. Blur of 51 px and deviation 50
at 224 px is scaled with the image's side, so that small images keep as much of themselves;
the queries of Group-CAM use the same blur.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from rest_jax.ops import gaussian_blur
from rest_jax.train.config import Config


def blur_of(side: int) -> tuple[int, float]:
  """Size (odd) and deviation of the paper's blur for images of another side than 224 px."""
  size = round((51 * side / 224 - 1) / 2) * 2 + 1
  return max(size, 3), 50 * side / 224


def binarise(maps: jax.Array) -> jax.Array:
  """1 where a map is not below its mean, else 0; a constant map keeps the whole image.

  Args:
    maps: float32 (B, H, W).

  Returns:
    float32 (B, H, W, 1).
  """
  mean = jnp.mean(maps, axis=(1, 2), keepdims=True)
  constant = jnp.max(maps, axis=(1, 2), keepdims=True) == jnp.min(maps, axis=(1, 2), keepdims=True)
  return ((maps >= mean) | constant).astype(jnp.float32)[..., None]


def blur_background(
  classify: Any, images: jax.Array, labels: jax.Array, augment: Config
) -> jax.Array:
  """Blurs the first images of a batch, a share of `augment.group_cam`, outside their saliency.

  The batch is shuffled already, and taking its first images saves the saliency of the others.

  Args:
    classify: images in [0, 1] -> logits, in evaluation mode; as `explain.tap` takes it.
    images: float32 (B, H, W, 3) in [0, 1].
    labels: int32 (B,).
    augment: the config's group: group_cam, group_cam_groups, group_cam_layer.

  Returns:
    The images; nothing is differentiated through the masks.
  """
  from rest_jax.explain.group_cams import group_cam

  count = math.ceil(augment.group_cam * images.shape[0])
  chosen = jax.lax.stop_gradient(images[:count])
  size, sigma = blur_of(min(images.shape[1:3]))
  maps = group_cam(
    classify,
    chosen,
    labels[:count],
    layer=augment.group_cam_layer or None,
    groups=augment.group_cam_groups,
    blur_size=size,
    blur_sigma=sigma,
    query_batch=count,
  )
  mask = jax.lax.stop_gradient(binarise(maps))
  mixed = chosen * mask + gaussian_blur(chosen, size, sigma) * (1 - mask)
  return jnp.concatenate([mixed, images[count:]])
