"""Sums over many queries of each image, such as masks or noise, in bounded memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rest_jax.explain.queries import chunked, resolve_targets, vary_like
from rest_jax.explain.taps import Tap

QUERY_BATCH = 64  # images a forward pass unless told


def sum_samples(
  contribution: Callable[[Any, jax.Array, jax.Array], Any],
  items: Any,
  count: int,
  query_batch: int,
) -> Any:
  """Adds up what `count` samples contribute to each item.

  A block of r samples meets a block of p images, r p of them at most `query_batch`: samples are
  made once for all images of a block, and sums need no scatter.

  Args:
    contribution: `(items (p, ...), samples (r,) int32, weights (r,) float32) -> pytree (p, ...)`,
      the sum over the samples times their weights: 1, and 0 for what only fills a block up.
    items: pytree of arrays with a leading axis B.
    count: samples an item.
    query_batch: bound of r p; changes memory and speed, not the result beyond rounding.

  Returns:
    The sums, leading axis B.
  """
  images = len(jax.tree.leaves(items)[0])
  p, r = block_sizes(images, count, query_batch)
  blocks = -(-count // r)

  def of_block(block):
    def add(i, total):
      samples = i * r + jnp.arange(r)
      weights = (samples < count).astype(jnp.float32)
      return jax.tree.map(jnp.add, total, contribution(block, samples, weights))

    like = jax.eval_shape(contribution, block, jnp.arange(r), jnp.ones(r))
    images = jax.tree.leaves(block)[0]
    zeros = jax.tree.map(lambda x: vary_like(jnp.zeros(x.shape, x.dtype), images), like)
    return jax.lax.fori_loop(0, blocks, add, zeros)

  return chunked(of_block, items, p)


def block_sizes(images: int, count: int, query_batch: int) -> tuple[int, int]:
  """Images and samples of a block: as many as `query_batch` allows, blocks of even size."""
  p = _even(images, query_batch)
  return p, _even(count, query_batch // p)


def _even(total: int, most: int) -> int:
  return -(-total // -(-total // max(1, most)))


def cross(samples: jax.Array, images: jax.Array, combine: Callable[..., jax.Array]) -> jax.Array:
  """Every sample with every image: (r, ...) and (p, H, W, C) to (r p, H, W, C)."""
  both = jax.vmap(jax.vmap(combine, (None, 0)), (0, None))(samples, images)
  return both.reshape(-1, *both.shape[2:])


def known_targets(
  point: Tap, images: jax.Array, targets: jax.Array | None, query_batch: int
) -> jax.Array:
  """The class each map is of, int32 (B,); None: the predicted ones, from a forward pass.

  Before the samples, because what is predicted for them may be another class.
  """
  if targets is None:
    return resolve_targets(all_logits(point, images, query_batch), None)
  return targets


@functools.partial(jax.jit, static_argnames='query_batch')
def all_logits(point: Tap, images: jax.Array, query_batch: int) -> jax.Array:
  """Logits (B, K) of any number of images; one compiled function for all the methods."""
  return chunked(point, images, query_batch)
