"""ROIAlign as two matrix products: a region's bilinear samples are linear in rows and columns.

He et al., "Mask R-CNN", ICCV 2017, section 3, with a fixed number of samples a bin. The same values
as torchvision's `roi_align` with that `sampling_ratio`. Its adaptive number (`sampling_ratio=0`,
detectron2's default) has no static shape and cannot be had: of the same boxes it differs by what
more samples change.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

_CHUNK = 64  # regions of one product: (chunk, size, W, C) stands in between


def roi_align(
  features: Float[Array, 'H W C'],
  boxes: Float[Array, 'T 4'],
  size: int,
  *,
  scale: float = 1.0,
  samples: int = 2,
  aligned: bool = True,
) -> Float[Array, 'T size size C']:
  """Means of bilinear samples in size x size bins of each region.

  Args:
    features: one image's map.
    boxes: regions in pixels of the image.
    size: bins a side.
    scale: pixels of the map for one of the image, 1 / stride.
    samples: points a side of a bin.
    aligned: pixel centres at halves, as they are (detectron2, Mask R-CNN's published models). False
      is the older form, half a pixel off and with regions of 1 px at least (torchvision's models).

  Returns:
    The bins; what is further than a pixel outside of the map reads as 0.
  """
  rows, columns = _weights(boxes, features.shape, size, scale, samples, aligned)
  return _products(features, rows, columns)


def _products(features, rows, columns):
  """Sums over rows and columns: (H, W, C), (T, n, H), (T, n, W) -> (T, n, n, C)."""
  # Tensor cores and TPUs would round float32 factors to 10 or 8 bits.
  rows, columns = rows.astype(features.dtype), columns.astype(features.dtype)
  half = jnp.einsum('tyh,hwc->tywc', rows, features, precision='highest')
  return jnp.einsum('txw,tywc->tyxc', columns, half, precision='highest')


def _weights(boxes, shape: tuple[int, ...], size: int, scale: float, samples: int, aligned: bool):
  """`bin_weights` of rows and of columns of a map (H, W, C): (T, size, H), (T, size, W)."""
  return (
    bin_weights(boxes[:, i], boxes[:, i + 2], size, shape[1 - i], scale, samples, aligned)
    for i in (1, 0)
  )


def bin_weights(
  start: Float[Array, ' T'],
  end: Float[Array, ' T'],
  size: int,
  side: int,
  scale: float,
  samples: int,
  aligned: bool,
) -> Float[Array, 'T size side']:
  """What each of `side` samples along one axis weighs in each of `size` bins.

  Args:
    start: of the regions along the axis, in pixels of the image.
    end: of the regions.
    size: bins.
    side: of the map along the axis.
    scale: pixels of the map for one of the image.
    samples: points in a bin.
    aligned: see `roi_align`.

  Returns:
    Rows that sum to 1, or less where points lie outside of the map.
  """
  low = start * scale - (0.5 if aligned else 0.0)
  extent = (end - start) * scale
  if not aligned:
    extent = jnp.maximum(extent, 1.0)
  steps = (jnp.arange(size * samples, dtype=low.dtype) + 0.5) / (size * samples)
  points = low[:, None] + extent[:, None] * steps[None]
  inside = (points >= -1) & (points <= side)
  nearest = jnp.clip(points, 0, side - 1)[..., None]
  hats = jnp.maximum(1 - jnp.abs(nearest - jnp.arange(side, dtype=low.dtype)[None, None]), 0)
  hats = jnp.where(inside[..., None], hats, 0)
  return jnp.mean(hats.reshape(-1, size, samples, side), axis=2)


def roi_levels(
  boxes: Float[Array, '*T 4'], levels: int, canonical: float = 224.0, first: int = 2
) -> Int[Array, '*T']:
  """The level of a pyramid that a region is read from, 0 for the first.

  Lin et al., "Feature Pyramid Networks", CVPR 2017, equation 1: floor(4 + log2(sqrt(area) / 224)),
  kept inside of the pyramid.

  Args:
    boxes: regions in pixels.
    levels: how many there are.
    canonical: side of a region that is read from level 4, in pixels.
    first: number of the first level, log2 of its stride.

  Returns:
    int32 in 0..levels - 1.
  """
  sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0)
  root = jnp.sqrt(sides[..., 0] * sides[..., 1])
  level = jnp.floor(4 + jnp.log2(root / canonical + 1e-8))
  return jnp.clip(level - first, 0, levels - 1).astype(jnp.int32)


def pyramid_roi_align(
  maps: Sequence[Float[Array, 'H W C']],
  boxes: Float[Array, 'T 4'],
  strides: Sequence[int],
  size: int,
  *,
  canonical: float = 224.0,
  samples: int = 2,
  aligned: bool = True,
) -> Float[Array, 'T size size C']:
  """ROIAlign of every region on its own level of one image's pyramid.

  Regions are taken in chunks, which bounds the memory; a region is zero on the other levels, so the
  sum over the levels selects.

  Args:
    maps: the levels, fine to coarse.
    boxes: regions in pixels.
    strides: of the levels; the first one's logarithm is its number in `roi_levels`.
    size: bins a side.
    canonical: see `roi_levels`.
    samples: points a side of a bin.
    aligned: see `roi_align`.

  Returns:
    The bins.
  """
  levels = roi_levels(boxes, len(maps), canonical, strides[0].bit_length() - 1)

  @jax.checkpoint
  def read(part):
    total = 0.0
    for i, (features, stride) in enumerate(zip(maps, strides, strict=True)):
      rows, columns = _weights(part[0], features.shape, size, 1 / stride, samples, aligned)
      total += _products(features, jnp.where((part[1] == i)[:, None, None], rows, 0), columns)
    return total

  count = boxes.shape[0]
  if count <= _CHUNK:
    return read((boxes, levels))
  short = -count % _CHUNK
  padded = jnp.pad(boxes, ((0, short), (0, 0))).reshape(-1, _CHUNK, 4)
  bins = lax.map(read, (padded, jnp.pad(levels, (0, short)).reshape(-1, _CHUNK)))
  return bins.reshape(-1, *bins.shape[2:])[:count]
