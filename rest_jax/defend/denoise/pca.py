"""Principal components of image patches as a denoiser.

F is the projection of every patch on the components of clean patches, the compression leaves out
those of small variance or shrinks them, and inverse F puts the patches back and averages where
they overlap. Muresan and Parks, "Adaptive principal components and optimal denoising", 2003;
against adversarial perturbations Bhagoji et al., arXiv 1704.02654. One basis for all patches is
our choice.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rest_jax.defend.denoise.denoisers import (
  Denoiser,
  check_positive,
  check_strength,
  register,
  step,
)
from rest_jax.errors import UserError

SHRINKS = ('leading', 'wiener')


@dataclasses.dataclass(frozen=True)
class PatchBasis:
  """Principal components of patches of size x size pixels and C channels, D = size^2 C numbers.

  Attributes:
    mean: float32 (D,), the mean patch.
    components: float32 (D, D), orthonormal rows, by falling variance.
    variances: float32 (D,), of the patches along the components.
    size: pixels a side of a patch.
  """

  mean: jax.Array
  components: jax.Array
  variances: jax.Array
  size: int


jax.tree_util.register_dataclass(
  PatchBasis, data_fields=['mean', 'components', 'variances'], meta_fields=['size']
)


def fit_patch_pca(images: Any, size: int = 8) -> PatchBasis:
  """Fits the principal components of the patches of clean images.

  Args:
    images: floats (N, H, W, C) in [0, 1]; they are cut into patches side by side, and what is left
      over at the right and at the bottom is not looked at.
    size: pixels a side of a patch.

  Returns:
    The basis, in the order of `sklearn.decomposition.PCA` (variances are those of a sample, with
    n - 1 in the denominator).

  Raises:
    UserError: no images, smaller than a patch, or fewer than two patches.
  """
  images = np.asarray(images)
  if images.ndim != 4 or not np.issubdtype(images.dtype, np.floating):
    raise UserError(
      f'fit_patch_pca takes float images (N, H, W, C), got {images.dtype} {images.shape}'
    )
  if not isinstance(size, int) or not 1 <= size <= min(images.shape[1:3]):
    raise UserError(f'size is 1 to {min(images.shape[1:3])} pixels for these images, not {size!r}')
  patches = _cut(images.astype(np.float64), size)
  if len(patches) < 2:
    raise UserError('principal components take two patches or more; give more images')
  mean = patches.mean(axis=0)
  patches -= mean
  variances, vectors = np.linalg.eigh(patches.T @ patches / (len(patches) - 1))
  return PatchBasis(
    mean=jnp.asarray(mean, jnp.float32),
    components=jnp.asarray(vectors[:, ::-1].T, jnp.float32),
    variances=jnp.asarray(np.maximum(variances[::-1], 0.0), jnp.float32),
    size=size,
  )


def _cut(images: np.ndarray, size: int) -> np.ndarray:
  """(N, H, W, C) -> (patches, size^2 C); rows of a patch one after the other."""
  n, height, width, channels = images.shape
  rows, columns = height // size, width // size
  whole = images[:, : rows * size, : columns * size]
  blocks = whole.reshape(n, rows, size, columns, size, channels)
  return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(-1, size * size * channels)


@register(
  'pca',
  family='latent',
  strength='keeps D^(1 - strength) of the D principal components of 8x8 patches, at 1 the first',
  source='Muresan and Parks, 2003; Bhagoji et al., 1704.02654; scikit-learn PCA',
  needs='patches',
)
def pca(
  strength: float,
  basis: PatchBasis | Any = None,
  shrink: str = 'leading',
  noise: float = 32 / 255,
  stride: int = 4,
) -> Denoiser:
  """Projects patches on principal components.

  The mean patch is always kept. 'leading' keeps the first D^(1 - strength) components; of a number
  that is not whole the last one in part. 'wiener' multiplies each by v / (v + n^2), v its variance
  in clean patches and n = strength * noise.

  Args:
    strength: from 0 to 1.
    basis: from `fit_patch_pca`, or clean images (N, H, W, C) that it is fitted to, in 8x8 patches.
    shrink: 'leading' or 'wiener'.
    noise: deviation of the noise that 'wiener' reckons with at strength 1, images in [0, 1].
    stride: pixels between patches, a divisor of their size; with less than the size the patches
      overlap and are averaged, in (size / stride)^2 times the memory. Borders are repeated.

  Raises:
    UserError: no basis, or an option out of range.
  """
  if basis is None:
    raise UserError(
      'pca needs a basis: denoiser("pca", strength, basis=fit_patch_pca(clean_images)), '
      'or the clean images themselves'
    )
  basis = basis if isinstance(basis, PatchBasis) else fit_patch_pca(basis)
  if shrink not in SHRINKS:
    raise UserError(f'shrink is {" or ".join(SHRINKS)}, not {shrink!r}')
  if not isinstance(stride, int) or stride < 1 or basis.size % stride:
    raise UserError(f'stride is a divisor of the patch size {basis.size}, not {stride!r}')
  check_positive('noise', noise)
  settings = {'size': basis.size, 'stride': stride}
  compress = step(_keep_leading) if shrink == 'leading' else step(_wiener, basis.variances, noise)
  return Denoiser(
    'pca',
    check_strength('pca', strength),
    step(_analyse, basis.mean, basis.components, **settings),
    compress,
    step(_synthesise, basis.mean, basis.components, **settings),
  )


def _keep_leading(z: jax.Array, strength: jax.Array) -> jax.Array:
  """Rank by rank; the position of the cut moves evenly on a logarithmic scale."""
  size = z.shape[-1]
  kept = jnp.exp((1 - strength) * np.float32(np.log(size)))
  gains = jnp.clip(kept - jnp.arange(size, dtype=jnp.float32), 0.0, 1.0)
  # At strength 1 the exponential gives 1 exactly, and the first component alone.
  return z * gains[None, None, None, None]


def _wiener(variances: jax.Array, noise: Any, z: jax.Array, strength: jax.Array) -> jax.Array:
  power = jnp.square(strength * noise)
  # Without noise every component is kept, those of no variance too.
  gains = jnp.where(power > 0, variances / jnp.where(power > 0, variances + power, 1.0), 1.0)
  return z * gains[None, None, None, None]


def _shifts(size: int, stride: int) -> list[tuple[int, int]]:
  """How far each grid of patches stands above and left of the image."""
  steps = range(0, size, stride)
  return [(i, j) for i in steps for j in steps]


def _padded(length: int, size: int, stride: int) -> int:
  return -(-(length + size - stride) // size) * size


def _analyse(
  mean: jax.Array, components: jax.Array, images: jax.Array, *, size: int, stride: int
) -> jax.Array:
  """(B, H, W, C) -> (grids, B, rows, columns, D): coefficients of the patches of every grid."""
  batch, height, width, channels = images.shape
  if size * size * channels != mean.shape[0]:
    raise UserError(
      f'the basis of pca is of patches of {mean.shape[0]} numbers; '
      f'images {images.shape} give {size * size * channels}'
    )
  full = [_padded(n, size, stride) for n in (height, width)]
  grids = []
  for top, left in _shifts(size, stride):
    edges = ((0, 0), (top, full[0] - top - height), (left, full[1] - left - width), (0, 0))
    padded = jnp.pad(images, edges, mode='edge')
    blocks = padded.reshape(batch, full[0] // size, size, full[1] // size, size, channels)
    grids.append(blocks.transpose(0, 1, 3, 2, 4, 5).reshape(*_grid(full, batch, size), -1))
  patches = jnp.stack(grids) - mean[None, None, None, None]
  return jnp.einsum('gbijd,kd->gbijk', patches, components, precision='highest')


def _synthesise(
  mean: jax.Array,
  components: jax.Array,
  z: jax.Array,
  shape: tuple[int, ...],
  *,
  size: int,
  stride: int,
) -> jax.Array:
  """The inverse: the mean over the grids of patches put back in their places."""
  patches = jnp.einsum('gbijk,kd->gbijd', z, components, precision='highest')
  patches += mean[None, None, None, None]
  _, height, width, channels = shape
  total = jnp.zeros(shape, patches.dtype)
  for (top, left), grid in zip(_shifts(size, stride), patches, strict=True):
    batch, rows, columns, _ = grid.shape
    blocks = grid.reshape(batch, rows, columns, size, size, channels).transpose(0, 1, 3, 2, 4, 5)
    plane = blocks.reshape(batch, rows * size, columns * size, channels)
    total += plane[:, top : top + height, left : left + width]
  return total / len(_shifts(size, stride))


def _grid(full: list[int], batch: int, size: int) -> tuple[int, int, int]:
  return batch, full[0] // size, full[1] // size
