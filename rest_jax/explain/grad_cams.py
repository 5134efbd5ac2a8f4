"""The frame of the CAM methods that need one gradient at the layer and nothing else."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

from rest_jax.explain.queries import chunked, finish, layer_gradient, prepare
from rest_jax.explain.taps import Tap

Combine = Callable[[jax.Array, jax.Array], jax.Array]


def gradient_cam(
  combine: Combine,
  model: Any,
  images: Any,
  targets: Any,
  layer: str | None,
  grid: tuple[int, int] | None,
  output: str | None,
  score: Callable[[Any], jax.Array] | None,
  query_batch: int,
) -> jax.Array:
  """Maps (B, H, W) in [0, 1] of a combination of a layer's map and the gradient there.

  Args:
    combine: takes the map A and the gradient of the target's logit, (B, h, w, K) each, and
      returns (B, h, w); a function of a module's top level, since it is part of the program.
    model: as `tap` takes it.
    images: floats (B, H, W, C) in [0, 1].
    targets: class indices, (B,) or one for all; None for the predicted classes.
    layer: as `tap` takes it.
    grid: as `tap` takes it.
    output: as `tap` takes it.
    score: as `tap` takes it.
    query_batch: images at a time.

  Raises:
    UserError: bad images, targets or layer.
  """
  point, images, targets = prepare(model, images, targets, layer, grid, output=output, score=score)
  return _run(point, images, targets, combine, query_batch)


@functools.partial(jax.jit, static_argnames=('combine', 'query_batch'))
def _run(
  point: Tap, images: jax.Array, targets: jax.Array | None, combine: Combine, query_batch: int
) -> jax.Array:
  def part(item):
    chunk, classes = item
    seen = layer_gradient(point, chunk, classes)
    return finish(combine(seen.features, seen.gradients), images.shape[1:3])

  return chunked(part, (images, targets), query_batch)
