"""RISE: randomised input sampling (Petsiuk et al. 2018, arXiv 1806.07421, section 3).

A mask is a grid of random zeros and ones, made larger than the image by bilinear interpolation
with half-pixel centres and cropped at a random offset. Deviation: the authors' code enlarges with
scikit-image, which mirrors half a cell at the border where ours repeats the border value.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rest_jax.errors import UserError
from rest_jax.explain.fills import fill_images
from rest_jax.explain.method import Detail, register
from rest_jax.explain.queries import gained, prepare, probability, support
from rest_jax.explain.sampling import QUERY_BATCH, known_targets, sum_samples

MASKS, CELLS, VISIBLE = 4000, 7, 0.5  # section 4.1; the paper takes 8000 for ResNet-50


@register(
  'rise',
  needs_layer=False,
  needs_key=True,
  queries=lambda image_shape, options: 1 + options.get('masks', MASKS),
  source='Petsiuk et al. 2018, arXiv 1806.07421',
)
def rise(
  model: Any,
  images: jax.Array | np.ndarray,
  targets: Any = None,
  *,
  key: jax.Array | None = None,
  masks: int = MASKS,
  cells: int = CELLS,
  visible: float = VISIBLE,
  fill: str | jax.Array | np.ndarray = 'zero',
  output: str | None = None,
  score: Callable[[Any], jax.Array] | None = None,
  query_batch: int = QUERY_BATCH,
) -> Detail:
  """How much more probable the class is where a pixel is seen (equations 4 and 6).

  Equation 6, the masks' mean weighted by the probabilities p_i of the masked images, estimates
  E[p | the pixel is seen]. Here it is taken of p_i - mean(p), which estimates that expectation
  less E[p], and is 0 for a pixel that has no effect, whatever the masks drawn: below 0 lies what
  speaks against the class. The map shows the support, values above 0 over the largest;
  `explain.explain(...).values` keeps the signed values.

  Args:
    model: as `tap` takes it: a `Classifier`, or any function of images to logits (B, K).
    images: float32 (B, H, W, C).
    targets: class indices, (B,) or one for all; None for the predicted classes.
    key: of the masks, which are the same for every image; jax.random.key(0) by default.
    masks: how many.
    cells: of the grid, a side.
    visible: probability of a cell to be seen, in (0, 1].
    fill: what is seen where a mask is 0, see `metrics.fill_images`; the paper's zero by default.
    output: 'softmax' or 'sigmoid', what makes probabilities of logits; as `explain.tap` takes it.
    score: what is explained instead of a class; as `explain.tap` takes it.
    query_batch: masked images a forward pass; changes memory and speed only.

  Returns:
    float32 (B, H, W) in [0, 1].

  Raises:
    UserError: bad images, targets or options.
  """
  point, images, targets = prepare(model, images, targets, output=output, score=score)
  if masks < 1 or cells < 1 or not 0 < visible <= 1:
    raise UserError(
      'RISE takes masks and cells of 1 or more and visible in (0, 1], '
      f'got {masks}, {cells} and {visible}'
    )
  key = jax.random.key(0) if key is None else key
  fills = fill_images(point, images, fill)
  targets = known_targets(point, images, targets, query_batch)
  values = _values(point, images, fills, targets, key, visible, masks, cells, query_batch)
  return Detail(support(values), values)


@functools.partial(jax.jit, static_argnames=('masks', 'cells', 'query_batch'))
def _values(point, images, fills, targets, key, visible, masks, cells, query_batch):
  def contribution(items, sample, weights):
    pairs, labels = items
    count, size = len(pairs), pairs.shape[2:4]
    planes = random_masks(key, sample, size, cells, visible)
    mask = planes[:, None, :, :, None]
    seen = mask * pairs[None, :, 0] + (1 - mask) * pairs[None, :, 1]
    seen = seen.reshape(-1, *seen.shape[2:])
    scores = probability(point, seen, jnp.tile(labels, len(sample))).reshape(-1, count)
    scores = weights[:, None] * scores
    weighted = jnp.einsum('rp,rhw->phw', scores, planes, precision='highest')
    plane = jnp.einsum('r,rhw->hw', weights, planes, precision='highest')
    plane = jnp.broadcast_to(plane[None], weighted.shape)
    return weighted, plane, scores.sum(0), jnp.abs(scores).sum(0)

  pairs = jnp.stack([images, fills], 1)
  sums = sum_samples(contribution, (pairs, targets), masks, query_batch)
  weighted, planes, total, sizes = sums
  mean, size = (x[:, None, None] / masks * planes for x in (total, sizes))
  return gained(weighted, mean, size) / (masks * visible)


@functools.partial(jax.jit, static_argnames=('size', 'cells'))
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
