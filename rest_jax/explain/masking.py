"""Maps of what hiding parts of the image does to the class's probability: RISE and occlusion.

RISE's mask is a grid of random zeros and ones, made larger than the image by bilinear interpolation
with half-pixel centres and cropped at a random offset. Deviation: the authors' code enlarges with
scikit-image, which mirrors half a cell at the border where ours repeats the border value.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rest_jax.errors import UserError
from rest_jax.explain.fills import fill_images
from rest_jax.explain.maps import gained, support
from rest_jax.explain.methods import Detail, method
from rest_jax.explain.outputs import distance_from_probabilities
from rest_jax.explain.queries import (
  all_logits,
  known_targets,
  pick,
  probability,
  resolve_targets,
  sum_samples,
)
from rest_jax.explain.taps import Tap
from rest_jax.ops.platform import jit

MASKS, CELLS, VISIBLE = 4000, 7, 0.5  # section 4.1; the paper takes 8000 for ResNet-50


@method(
  title='RISE',
  source='Petsiuk et al. 2018, arXiv 1806.07421',
  queries=lambda shape, options: 1 + options.get('masks', MASKS),
)
def rise(
  point: Tap,
  images: jax.Array,
  targets: jax.Array | None,
  key: jax.Array,
  query_batch: int,
  *,
  masks: int = MASKS,
  cells: int = CELLS,
  visible: float = VISIBLE,
  fill: str | jax.Array | np.ndarray = 'zero',
) -> Detail:
  """How much more probable the class is where a pixel is seen.

  Petsiuk et al. 2018, arXiv 1806.07421, section 3, equations 4 and 6. Equation 6, the masks' mean
  weighted by the probabilities p_i of the masked images, estimates E[p | the pixel is seen]. Here
  it is taken of p_i - mean(p), which estimates that expectation less E[p], and is 0 for a pixel
  that has no effect, whatever the masks drawn: below 0 lies what speaks against the class. The map
  shows the support, values above 0 over the largest; `explain.explain(...).values` keeps the signed
  values.

  Args:
    key: of the masks, which are the same for every image; jax.random.key(0) by default.
    masks: how many.
    cells: of the grid, a side.
    visible: probability of a cell to be seen, in (0, 1].
    fill: what is seen where a mask is 0, see `metrics.fill_images`; the paper's zero by default.
    query_batch: masked images a forward pass; changes memory and speed only.
  """
  if masks < 1 or cells < 1 or not 0 < visible <= 1:
    raise UserError(
      'RISE takes masks and cells of 1 or more and visible in (0, 1], '
      f'got {masks}, {cells} and {visible}'
    )
  fills = fill_images(point, images, fill)
  targets = known_targets(point, images, targets, query_batch)
  asked = point, images, fills, targets, key, visible
  values, distances = _gains(*asked, masks, cells, query_batch)
  return Detail(support(values), values, distances=distances)


@functools.partial(jit, static_argnames=('masks', 'cells', 'query_batch'))
def _gains(point, images, fills, targets, key, visible, masks, cells, query_batch):
  def contribution(items, sample, weights):
    pairs, labels = items
    count, size = len(pairs), pairs.shape[2:4]
    planes = random_masks(key, sample, size, cells, visible)
    mask = planes[:, None, :, :, None]
    seen = mask * pairs[None, :, 0] + (1 - mask) * pairs[None, :, 1]
    seen = seen.reshape(-1, *seen.shape[2:])
    logits = point(seen)
    scores = pick(point.probabilities(logits), jnp.tile(labels, len(sample))).reshape(-1, count)
    scores = weights[:, None] * scores
    weighted = jnp.einsum('rp,rhw->phw', scores, planes, precision='highest')
    plane = jnp.einsum('r,rhw->hw', weights, planes, precision='highest')
    plane = jnp.broadcast_to(plane[None], weighted.shape)
    distances = distance_from_probabilities(logits).reshape(-1, count)
    off = (distances > 0).sum(0), (distances > 1).sum(0)
    return weighted, plane, scores.sum(0), jnp.abs(scores).sum(0), off

  pairs = jnp.stack([images, fills], 1)
  sums = sum_samples(contribution, (pairs, targets), masks, query_batch)
  weighted, planes, total, sizes, off = sums
  mean, size = (x[:, None, None] / masks * planes for x in (total, sizes))
  largest = sum(jnp.minimum(count, 1) for count in off)  # distance of a masked image
  return gained(weighted, mean, size) / (masks * visible), largest


@functools.partial(jit, static_argnames=('size', 'cells'))
def random_masks(
  key: jax.Array,
  samples: jax.Array,
  size: tuple[int, int],
  cells: int = CELLS,
  visible: float | jax.Array = VISIBLE,
) -> jax.Array:
  """Masks by number (section 3.2): the same key and number give the same mask.

  Args:
    key: of all the masks.
    samples: int (r,), their numbers.
    size: H, W.
    cells: of the grid, a side.
    visible: probability of a cell to be 1, the mean of every pixel.

  Returns:
    float32 (r, H, W) in [0, 1].
  """

  def one(sample):
    draws = jax.random.uniform(jax.random.fold_in(key, sample), (cells * cells + 2,))
    grid = (draws[2:] < visible).astype(jnp.float32).reshape(cells, cells)
    rows, columns = (_crop(draws[i], size[i], cells) for i in range(2))
    return jnp.einsum('hi,ij,wj->hw', rows, grid, columns, precision='highest')

  return jax.vmap(one)(samples)


def _crop(draw: jax.Array, side: int, cells: int) -> jax.Array:
  """Interpolation weights (side, cells) of a window at a random offset of the enlarged grid.

  The grid of `cells` becomes (cells + 1) * cell pixels, one cell more than the image, whose window
  starts at 0 to cell - 1, as `draw` in [0, 1) says.
  """
  cell = -(-side // cells)
  offset = jnp.floor(draw * cell)
  scale = cells / ((cells + 1) * cell)
  pixels = offset + jnp.arange(side, dtype=jnp.float32)
  position = jnp.clip((pixels + 0.5) * scale - 0.5, 0, cells - 1)
  distance = jnp.abs(position[:, None] - jnp.arange(cells, dtype=jnp.float32)[None])
  return jnp.maximum(0, 1 - distance)


def _patches(image_shape, options) -> int:
  size = tuple(image_shape)[-3:-1]
  patch, stride = patch_and_stride(size, options.get('patch'), options.get('stride'))
  rows, columns = (len(patch_starts(side, patch, stride)) for side in size)
  return 1 + rows * columns


@method(title='Occlusion', source='Zeiler and Fergus 2014, arXiv 1311.2901', queries=_patches)
def occlusion(
  point: Tap,
  images: jax.Array,
  targets: jax.Array | None,
  query_batch: int,
  *,
  patch: int | None = None,
  stride: int | None = None,
  fill: str | jax.Array | np.ndarray = 'mean',
) -> Detail:
  """How far the class's probability falls when a patch is covered, averaged over its patches.

  Zeiler and Fergus 2014, arXiv 1311.2901, section 4.2. The fall has a sign: below 0 lies what
  speaks against the class. The map shows the support, values above 0 over the largest;
  `explain.explain(...).values` keeps the drops themselves.

  Args:
    patch: pixels a side of the square that covers; a quarter of the shorter side by default.
    stride: pixels between patches, at most `patch`; half a patch by default. The last ones end at
      the border, so that every pixel is covered.
    fill: what covers, see `metrics.fill_images`: the image's mean colour, a grey square as in the
      paper; a number for each channel gives another colour.
    query_batch: covered images a forward pass; changes memory and speed only.
  """
  size = (images.shape[1], images.shape[2])
  patch, stride = patch_and_stride(size, patch, stride)
  fills = fill_images(point, images, fill)
  logits = all_logits(point, images, query_batch)
  asked = point, images, fills, logits, targets
  values, distances = _drops(*asked, patch, stride, query_batch)
  return Detail(support(values), values, distances=distances)


@functools.partial(jit, static_argnames=('patch', 'stride', 'query_batch'))
def _drops(point, images, fills, logits, targets, patch: int, stride: int, query_batch: int):
  size = (images.shape[1], images.shape[2])
  covers = [_covers(side, patch_starts(side, patch, stride), patch) for side in size]
  rows, columns = (jnp.asarray(c) for c in covers)

  def contribution(items, sample, weights):
    pairs, labels, whole = items
    # What only fills a block up has weight 0; any patch will do for it.
    y, x = jnp.divmod(jnp.minimum(sample, len(rows) * len(columns) - 1), len(columns))
    planes = rows[y][:, :, None] * columns[x][:, None]
    mask = planes[:, None, :, :, None]
    covered = (1 - mask) * pairs[None, :, 0] + mask * pairs[None, :, 1]
    covered = covered.reshape(-1, *covered.shape[2:])
    scores = probability(point, covered, jnp.tile(labels, len(sample)))
    drops = gained(whole[None], scores.reshape(-1, len(pairs)))
    return jnp.einsum('r,rp,rhw->phw', weights, drops, planes, precision='highest')

  pairs = jnp.stack([images, fills], 1)
  targets = resolve_targets(logits, targets)
  items = (pairs, targets, pick(point.probabilities(logits), targets))
  total = sum_samples(contribution, items, len(rows) * len(columns), query_batch)
  patches_over = np.outer(covers[0].sum(0), covers[1].sum(0))
  return total / jnp.asarray(patches_over)[None], distance_from_probabilities(logits)


def patch_and_stride(
  size: tuple[int, int], patch: int | None, stride: int | None
) -> tuple[int, int]:
  """Fills in the defaults of `occlusion` for an image of (H, W), and checks."""
  side = min(size)
  patch = max(1, side // 4) if patch is None else patch
  stride = max(1, patch // 2) if stride is None else stride
  if not 1 <= patch <= side or not 1 <= stride <= patch:
    raise UserError(
      f'a patch is 1 to {side} px for this image and a stride 1 px to a patch, '
      f'got patch {patch} and stride {stride}'
    )
  return patch, stride


def patch_starts(side: int, patch: int, stride: int) -> np.ndarray:
  """First pixels of the patches along one side; the last patch ends at the border."""
  starts = np.arange(0, side - patch + 1, stride)
  return starts if starts[-1] == side - patch else np.append(starts, side - patch)


def _covers(side: int, starts: np.ndarray, patch: int) -> np.ndarray:
  """float32 (patches, side): 1 where a patch lies."""
  pixels = np.arange(side)
  covers = (pixels >= starts[:, None]) & (pixels < starts[:, None] + patch)
  return covers.astype(np.float32)
