"""Masks between the frame of their box and the whole image.

A mask of m x m samples fills its box: sample i lies at (i + 1/2) / m of the side. Pixel centres are
at halves, and outside of the box a mask fades to 0 within half a sample, as in detectron2's
`paste_masks_in_image`. torchvision's models instead round the box to whole pixels and pad the mask
by one sample; the two agree inside and differ at the rim.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def paste_masks(
  masks: Float[Array, 'N m m'], boxes: Float[Array, 'N 4'], size: tuple[int, int]
) -> Float[Array, 'N H W']:
  """Bilinear enlargement of masks into their boxes, by two matrix products.

  Args:
    masks: values in [0, 1]; a pixel belongs to an object from 0.5 on.
    boxes: corners in pixels of the image.
    size: (H, W) of the image.

  Returns:
    (N, H, W): values in [0, 1], 0 away from the box. A box without area gives zeros. NumPy arrays
    are worked on by NumPy, without a compilation for every size of an image.
  """
  on_host = isinstance(masks, np.ndarray)
  xp: Any = np if on_host else jnp
  rows, columns = (
    _positions(boxes[:, i], boxes[:, i + 2], masks.shape[2 - i], size[1 - i], xp) for i in (1, 0)
  )
  if on_host:
    return rows @ masks.astype(rows.dtype) @ columns.swapaxes(1, 2)
  half = jnp.einsum('nyh,nhw->nyw', rows, masks.astype(rows.dtype), precision='highest')
  return jnp.einsum('nxw,nyw->nyx', columns, half, precision='highest')


def _positions(start, end, samples: int, pixels: int, xp: Any):
  """(N, pixels, samples): weights of a mask's samples at the centres of the image's pixels."""
  side = xp.maximum(end - start, 0)
  centres = xp.arange(pixels, dtype=start.dtype)[None] + 0.5
  share = (centres - start[:, None]) / xp.where(side > 0, side, 1)[:, None]
  weights = hat_weights(share * samples - 0.5, samples, xp)
  return xp.where((side > 0)[:, None, None], weights, 0)


def hat_weights(
  points: Float[Array, 'N P'], samples: int, xp: Any = jnp
) -> Float[Array, 'N P samples']:
  """Bilinear weights of `samples` values at whole numbers, with zeros beyond the first and last."""
  grid = xp.arange(samples, dtype=points.dtype)[None, None]
  return xp.maximum(1 - xp.abs(points[..., None] - grid), 0)


def crop_masks(
  masks: Float[Array, 'T m m'],
  frames: Float[Array, 'T 4'],
  boxes: Float[Array, 'T 4'],
  size: int,
  samples: int = 2,
) -> Float[Array, 'T size size']:
  """The part of masks that lies in other boxes: the targets of a mask head.

  Args:
    masks: each in the frame of its own box, values in [0, 1].
    frames: the boxes that the masks fill.
    boxes: what to cut out, in the same pixels.
    size: samples a side of the result.
    samples: points a side that a sample of the result is the mean of.

  Returns:
    Values in [0, 1]; 0 outside of the frame.
  """
  steps = (jnp.arange(size * samples, dtype=boxes.dtype) + 0.5) / (size * samples)
  weights = []
  for i in (1, 0):
    points = boxes[:, i, None] + (boxes[:, i + 2] - boxes[:, i])[:, None] * steps[None]
    side = jnp.maximum(frames[:, i + 2] - frames[:, i], 1e-6)[:, None]
    share = (points - frames[:, i, None]) / side
    hats = hat_weights(share * masks.shape[2 - i] - 0.5, masks.shape[2 - i])
    weights.append(jnp.mean(hats.reshape(-1, size, samples, hats.shape[-1]), axis=2))
  half = jnp.einsum('tyh,thw->tyw', weights[0], masks.astype(boxes.dtype), precision='highest')
  return jnp.einsum('txw,tyw->tyx', weights[1], half, precision='highest')
