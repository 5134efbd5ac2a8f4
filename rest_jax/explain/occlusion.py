"""Occlusion sensitivity (Zeiler and Fergus 2014, arXiv 1311.2901, section 4.2)."""

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
from rest_jax.explain.queries import (
  gained,
  pick,
  prepare,
  probability,
  resolve_targets,
  support,
)
from rest_jax.explain.sampling import QUERY_BATCH, all_logits, sum_samples


def _queries(image_shape, options) -> int:
  size = tuple(image_shape)[-3:-1]
  patch, stride = patch_and_stride(size, options.get('patch'), options.get('stride'))
  rows, columns = (len(patch_starts(side, patch, stride)) for side in size)
  return 1 + rows * columns


@register(
  'occlusion',
  needs_layer=False,
  needs_key=False,
  queries=_queries,
  source='Zeiler and Fergus 2014, arXiv 1311.2901',
)
def occlusion(
  model: Any,
  images: jax.Array | np.ndarray,
  targets: Any = None,
  *,
  patch: int | None = None,
  stride: int | None = None,
  fill: str | jax.Array | np.ndarray = 'mean',
  output: str | None = None,
  score: Callable[[Any], jax.Array] | None = None,
  query_batch: int = QUERY_BATCH,
) -> Detail:
  """How far the class's probability falls when a patch is covered, averaged over its patches.

  That has a sign: below 0 lies what speaks against the class. The map shows the support, values
  above 0 over the largest; `explain.explain(...).values` keeps the drops themselves.

  Args:
    model: as `tap` takes it: a `Classifier`, or any function of images to logits (B, K).
    images: float32 (B, H, W, C).
    targets: class indices, (B,) or one for all; None for the predicted classes.
    patch: pixels a side of the square that covers; a quarter of the shorter side by default.
    stride: pixels between patches, at most `patch`; half a patch by default. The last ones end at
      the border, so that every pixel is covered.
    fill: what covers, see `metrics.fill_images`: the image's mean colour, a grey square as in the
      paper; a number for each channel gives another colour.
    output: 'softmax' or 'sigmoid', what makes probabilities of logits; as `explain.tap` takes it.
    score: what is explained instead of a class; as `explain.tap` takes it.
    query_batch: covered images a forward pass; changes memory and speed only.

  Returns:
    float32 (B, H, W) in [0, 1].

  Raises:
    UserError: bad images, targets or options.
  """
  point, images, targets = prepare(model, images, targets, output=output, score=score)
  size = (images.shape[1], images.shape[2])
  patch, stride = patch_and_stride(size, patch, stride)
  fills = fill_images(point, images, fill)
  logits = all_logits(point, images, query_batch)
  values = _drops(point, images, fills, logits, targets, patch, stride, query_batch)
  return Detail(support(values), values)


@functools.partial(jax.jit, static_argnames=('patch', 'stride', 'query_batch'))
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
  return total / jnp.asarray(patches_over)[None]


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
