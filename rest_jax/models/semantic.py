"""What segmenters share: from maps at a quarter of the size to losses and to a class a pixel."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from rest_jax.data.semantic_folder import IGNORE
from rest_jax.errors import UserError
from rest_jax.models.dense import MULTIPLE, conv1
from rest_jax.models.layers import Dtype
from rest_jax.ops.dense_losses import cross_entropy
from rest_jax.ops.resize import resize_bilinear


class PixelClassifier(nn.Module):
  """Drops whole channels in training, then a 1x1 convolution: mmsegmentation's `cls_seg`.

  Attributes:
    num_classes: K.
    drop_rate: share of channels that are dropped.
    dtype: computing dtype.
  """

  num_classes: int
  drop_rate: float = 0.1
  dtype: Dtype | None = None

  @nn.compact
  def __call__(self, x, train: bool):
    """(B, H, W, C) -> logits (B, H, W, K), float32."""
    x = nn.Dropout(self.drop_rate, broadcast_dims=(1, 2), deterministic=not train)(x)
    out = conv1(self.num_classes, nn.initializers.normal(0.01), dtype=self.dtype, name='conv')
    return out(x).astype(jnp.float32)


def resize_like(x: jax.Array, other: jax.Array) -> jax.Array:
  """Bilinear resizing of (B, h, w, C) to the height and width of another map."""
  return resize_bilinear(x, (other.shape[1], other.shape[2]))


def enlarge(logits: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Logits of every pixel of images that were padded to multiples of 32 on the way.

  Args:
    logits: (B, h, w, K) of the padded canvas.
    size: (H, W) of the images.

  Returns:
    (B, H, W, K), bilinear with half-pixel centres.
  """
  padded = [side + -side % MULTIPLE for side in size]
  return resize_bilinear(logits, (padded[0], padded[1]))[:, : size[0], : size[1]]


def segmentation_loss(
  logits: jax.Array, labels: jax.Array, *, every_pixel: bool, ignore: int = IGNORE
) -> jax.Array:
  """Mean cross entropy of the pixels.

  Args:
    logits: (B, h, w, K) of a padded canvas.
    labels: (B, H, W) whole numbers of 0..K - 1, or `ignore`.
    every_pixel: the mean is over all pixels, those to ignore too, as in mmsegmentation unless it is
      told `avg_non_ignore`; otherwise over the judged ones.
    ignore: label of pixels that do not count.

  Returns:
    A float32 scalar.
  """
  labels = labels.astype(jnp.int32)
  _, height, width = labels.shape
  entropy = cross_entropy(enlarge(logits, (height, width)), labels, ignore)
  if every_pixel:
    return jnp.mean(entropy)
  return jnp.sum(entropy) / jnp.maximum(jnp.sum((labels != ignore).astype(jnp.float32)), 1.0)


def check_labels(images: jax.Array, labels: jax.Array) -> None:
  """Refuses labels that are not one for each pixel.

  Raises:
    UserError: another shape, or no whole numbers.
  """
  if tuple(labels.shape) != tuple(images.shape[:3]) or not jnp.issubdtype(
    labels.dtype, jnp.integer
  ):
    raise UserError(
      f'labels are whole numbers (B, H, W), one a pixel, got {labels.dtype} {tuple(labels.shape)} '
      f'for images {tuple(images.shape)}'
    )
