"""What stands where a pixel was taken away: the images that measures and methods fade into.

Images are float32 (B, H, W, C) in [0, 1] .
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rest_jax.errors import UserError
from rest_jax.explain.taps import mean_of
from rest_jax.inputs import check_range, is_known
from rest_jax.ops.blur import gaussian_blur

FILLS = ('blur', 'zero', 'mean', 'black')
BLUR_SIZE, BLUR_SIGMA = 51, 50.0  # Group-CAM, arXiv 2103.13859, section 3.2


def fill_images(model: Any, images: jax.Array, fill: str | jax.Array | np.ndarray) -> jax.Array:
  """Images without information, to replace pixels by.

  Args:
    model: as `tap` takes it; only the mean colour of its normalisation is looked at.
    images: float32 (B, H, W, C).
    fill: 'blur': the images under a Gaussian of 51 px and sigma 50, as Group-CAM has it. 'zero':
      what is zero to the network, the mean colour of a `Classifier` and 0 for a plain function.
      'mean': each image's own mean colour. 'black': 0. Or an array that broadcasts to `images`: a
      colour (C,), an image (H, W, C) or a batch.

  Returns:
    float32, the shape of `images`.

  Raises:
    UserError: an unknown name, or an array of another shape, or beyond [0, 1].
  """
  if not isinstance(fill, str):
    check_range(np.asarray(fill, np.float32) if is_known(fill) else fill, 'fills')
    return _given(jnp.asarray(fill, jnp.float32), images)
  if fill == 'blur':
    return gaussian_blur(images, BLUR_SIZE, BLUR_SIGMA)
  if fill == 'zero':
    return _given(jnp.asarray(mean_of(model) or 0.0, jnp.float32), images)
  if fill == 'mean':
    return jnp.broadcast_to(jnp.mean(images, (1, 2), keepdims=True), images.shape)
  if fill == 'black':
    return jnp.zeros_like(images)
  raise UserError(f'no fill is called {fill!r}; there are {", ".join(FILLS)}, or give an array')


def _given(fill: jax.Array, images: jax.Array) -> jax.Array:
  missing = images.ndim - fill.ndim
  shape = (1,) * missing + fill.shape
  if missing < 0 or any(a not in (1, b) for a, b in zip(shape, images.shape, strict=True)):
    raise UserError(
      f'a fill of shape {fill.shape} does not fit images {images.shape}; '
      f'give a colour ({images.shape[-1]},), an image or a batch'
    )
  return jnp.broadcast_to(fill.reshape(shape), images.shape)
