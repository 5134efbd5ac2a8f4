"""What the methods share: input checks, targets, chunks, normalised maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rest_jax import ops
from rest_jax.errors import UserError
from rest_jax.explain.taps import Tap, tap


def prepare(
  model: Any,
  images: Any,
  targets: Any = None,
  layer: str | None = None,
  grid: tuple[int, int] | None = None,
) -> tuple[Tap, jax.Array, jax.Array | None]:
  """The first line of every method: checks its input and brings it into one form.

  Args:
    model: as `tap` takes it.
    images: floats (B, H, W, C).
    targets: None, a class index, or (B,) of them.
    layer: as `tap` takes it.
    grid: as `tap` takes it.

  Returns:
    The tap, images as float32, and targets as int32 (B,), or None.

  Raises:
    UserError: what cannot be explained.
  """
  images = check_images(images)
  point = tap(model, layer, grid)
  return point, images, check_targets(targets, images.shape[0], point.num_classes(images.shape))


def check_images(images: Any) -> jax.Array:
  """Images as float32 (B, H, W, C); `UserError` for another rank or type, or for none at all."""
  dtype, shape = getattr(images, 'dtype', None), tuple(np.shape(images))
  is_float = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
  if len(shape) != 4 or not is_float:
    raise UserError(
      f'images are floats in [0, 1] of shape (B, H, W, C), got {dtype} {shape}; pixels of 0 to '
      '255 are divided by 255 first, a single image gets a leading axis'
    )
  if min(shape) < 1:
    raise UserError(f'there are no images in an array of shape {shape}')
  return jnp.asarray(images, jnp.float32)


def check_targets(targets: Any, batch: int, classes: int) -> jax.Array | None:
  """Targets as int32 (B,), or None; `UserError` for another shape or no such class."""
  if targets is None:
    return None
  targets = targets if isinstance(targets, jax.Array) else np.asarray(targets)
  if not jnp.issubdtype(targets.dtype, jnp.integer) or targets.shape not in ((), (1,), (batch,)):
    raise UserError(
      f'targets are None, one class index or {batch} of them, got {targets.dtype} {targets.shape}'
    )
  if not isinstance(targets, Tracer):
    wrong = [int(t) for t in np.ravel(targets) if not 0 <= t < classes]
    if wrong:
      raise UserError(f'there is no class {wrong[0]}: the model has {classes}, counted from 0')
  return jnp.broadcast_to(jnp.asarray(targets, jnp.int32), (batch,))


def resolve_targets(logits: jax.Array, targets: jax.Array | None) -> jax.Array:
  """The class to explain, int32 (B,): as asked, or the predicted one of logits (B, K)."""
  if targets is None:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
  return jnp.broadcast_to(jnp.asarray(targets, jnp.int32), logits.shape[:1])


def pick(scores: jax.Array, targets: jax.Array) -> jax.Array:
  """scores[i, targets[i]]: (B, K), (B,) -> (B,)."""
  return jnp.take_along_axis(scores, targets[:, None], axis=1)[:, 0]


def probability(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Softmax probability of the target class: (B, K), (B,) -> (B,)."""
  return pick(jax.nn.softmax(logits, axis=-1), targets)


def image_keys(key: jax.Array, count: int) -> jax.Array:
  """One key an image: (count,), that of image i being `fold_in(key, i)`; such keys stay."""
  if key.ndim:
    return key
  return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))


class LayerGradient(NamedTuple):
  """Map of a layer (B, h, w, K), gradient of the target's logit there, logits, targets (B,)."""

  features: jax.Array
  gradients: jax.Array
  logits: jax.Array
  targets: jax.Array


def layer_gradient(point: Tap, images: jax.Array, targets: jax.Array | None) -> LayerGradient:
  """One forward pass, and a backward pass down to the layer only."""
  zeros = vary_like(jnp.zeros(point.feature_shape(images), jnp.float32), images)
  logits, pull, features = jax.vjp(lambda d: point.perturbed(images, d), zeros, has_aux=True)
  targets = resolve_targets(logits, targets)
  chosen = jax.nn.one_hot(targets, logits.shape[1], dtype=logits.dtype)
  (gradients,) = pull(vary_like(chosen, logits))
  return LayerGradient(features, gradients, logits, targets)


def vary_like(x: jax.Array, like: jax.Array) -> jax.Array:
  """Inside shard_map: `x` as each device's own, so that its gradient is not summed over them."""
  axes = tuple(_varying(like) - _varying(x))
  return jax.lax.pcast(x, axes, to='varying') if axes else x


def _varying(x: jax.Array) -> frozenset[str]:
  kind = jax.typeof(x)
  kind = getattr(kind, 'manual_axis_type', kind)  # JAX 0.10; before, the type itself tells
  return frozenset(getattr(kind, 'varying', None) or getattr(kind, 'vma', None) or ())


def chunked(fn: Callable[[Any], Any], items: Any, size: int) -> Any:
  """Maps a batched function over a leading axis of any length in bounded memory.

  Args:
    fn: takes a pytree of arrays (m, ...), returns one; it is traced once.
    items: pytree of arrays (n, ...), n >= 1.
    size: items at a time, at most. The chunks are of one size, as even as they can be, and the
      last is filled up with the last item.

  Returns:
    What `fn(items)` would give.

  Raises:
    UserError: a size under 1.
  """
  if size < 1:
    raise UserError(f'query_batch is 1 or more, got {size}')
  n = jax.tree.leaves(items)[0].shape[0]
  count = math.ceil(n / size)
  if count == 1:
    return fn(items)
  chunk = math.ceil(n / count)
  index = np.minimum(np.arange(count * chunk), n - 1).reshape(count, chunk)
  out = jax.lax.map(lambda i: fn(jax.tree.map(lambda x: x[i], items)), jnp.asarray(index))
  return jax.tree.map(lambda x: x.reshape(count * chunk, *x.shape[2:])[:n], out)


def upsample(maps: jax.Array, size: Sequence[int]) -> jax.Array:
  """Bilinear, half-pixel centres: (B, h, w) -> (B, H, W)."""
  return ops.resize_bilinear(maps[..., None], (size[0], size[1]))[..., 0]


class Span(NamedTuple):
  """Least and greatest value of maps (..., H, W), (..., 1, 1) each, and whether they differ."""

  low: jax.Array
  high: jax.Array
  varied: jax.Array


def span(maps: jax.Array) -> Span:
  """Range of maps (..., H, W). One under four units in the last place counts as none."""
  low, high = (f(maps, axis=(-2, -1), keepdims=True) for f in (jnp.min, jnp.max))
  half = 0.5 * high - 0.5 * low  # their difference may overflow
  info = jnp.finfo(maps.dtype)
  least = 2 * float(info.eps) * jnp.maximum(jnp.abs(low), jnp.abs(high))
  varied = (half > least) & (half > float(info.tiny)) & jnp.isfinite(half)
  return Span(low, high, varied)


def min_max(maps: jax.Array) -> jax.Array:
  """Maps (..., H, W) onto [0, 1]; one that is constant (to rounding) or not finite becomes 0."""
  return rescale(maps, span(maps))


def rescale(maps: jax.Array, range_: Span) -> jax.Array:
  """(maps - low) / (high - low), 0 where that is no number."""
  low, high, varied = range_
  half = jnp.where(varied, 0.5 * high - 0.5 * low, 1)
  unit = jnp.clip((0.5 * maps - 0.5 * low) / half, 0, 1)
  # A compiler may divide by multiplying, which leaves the greatest value a little under 1.
  return jnp.where(varied, jnp.where(maps == high, 1, unit), 0)


def constant_maps(maps: jax.Array) -> jax.Array:
  """Which of the maps (B, H, W) that a method gave say nothing: bool (B,)."""
  return jnp.max(maps, axis=(-2, -1)) == 0


def finish(maps: jax.Array, size: Sequence[int]) -> jax.Array:
  """Maps at feature resolution (B, h, w) -> (B, H, W) in [0, 1]."""
  return min_max(upsample(maps, size))
