"""What the methods share: input checks, targets, chunks, normalised maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rest_jax import inputs, ops
from rest_jax.errors import UserError
from rest_jax.explain.taps import Tap, tap

# Differences below this share of what they come from are rounding: float32 sums of a network in
# another order differ by a few units in the last place.
ROUNDING = 32 * float(jnp.finfo(jnp.float32).eps)


def prepare(
  model: Any,
  images: Any,
  targets: Any = None,
  layer: str | None = None,
  grid: tuple[int, int] | None = None,
  *,
  output: str | None = None,
  score: Callable[[Any], jax.Array] | None = None,
) -> tuple[Tap, jax.Array, jax.Array | None]:
  """The first line of every method: checks its input and brings it into one form.

  Args:
    model: as `tap` takes it.
    images: floats (B, H, W, C).
    targets: None, a class index, or (B,) of them.
    layer: as `tap` takes it.
    grid: as `tap` takes it.
    output: as `tap` takes it.
    score: as `tap` takes it.

  Returns:
    The tap, images as float32, and targets as int32 (B,), or None.

  Raises:
    UserError: what cannot be explained.
  """
  images = check_images(images)
  point = tap(model, layer, grid, output=output, score=score)
  classes = point.num_classes(images.shape)
  return point, images, check_targets(targets, images.shape[0], classes, point.score is not None)


def check_images(images: Any) -> jax.Array:
  """Images as float32 (B, H, W, C), one or more; `UserError` as `inputs.check_images`."""
  return inputs.check_images(images, empty=False)


def check_targets(targets: Any, batch: int, classes: int, scored: bool = False) -> jax.Array | None:
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
    if wrong and scored:
      raise UserError(f'a score of your own has no classes: leave targets out, got {wrong[0]}')
    if wrong and classes == 1:
      raise UserError(
        f'there is no class {wrong[0]}: the model has one logit, class 0; what speaks against it '
        'is score=lambda logits: -logits[:, 0]'
      )
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


def probability(point: Tap, images: jax.Array, targets: jax.Array) -> jax.Array:
  """The target's probability, or the score of one's own, of images: (B, H, W, C), (B,) -> (B,)."""
  return pick(point.probabilities(point(images)), targets)


def gained(after: jax.Array, before: jax.Array, size: jax.Array | None = None) -> jax.Array:
  """after - before, and 0 where the difference is one of rounding.

  A model that does not look at what was changed gives the same value but for the order of its
  sums; brought to [0, 1] that noise would be a picture.

  Args:
    after: float32, any shape.
    before: the same shape.
    size: that of the numbers from which both came; the larger of the two by default.
  """
  size = jnp.maximum(jnp.abs(after), jnp.abs(before)) if size is None else size
  change = after - before
  return jnp.where(jnp.abs(change) <= ROUNDING * size, 0, change)


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
  return LayerGradient(features, only_finite(gradients, logits), logits, targets)


def only_finite(values: jax.Array, logits: jax.Array) -> jax.Array:
  """Values (B, ...) of an image, not a number where one of its logits (B, K) is not finite."""
  fine = jnp.isfinite(logits).all(1)
  return jnp.where(fine.reshape(-1, *([1] * (values.ndim - 1))), values, jnp.nan)


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
  """Maps (..., H, W) onto [0, 1]; one that is constant (to rounding) becomes 0.

  One that is not finite stays so, all of it not a number: it must not look like an empty map.
  """
  return rescale(maps, span(maps))


def rescale(maps: jax.Array, range_: Span) -> jax.Array:
  """(maps - low) / (high - low); 0 where they are equal, not a number where they are not finite."""
  low, high, varied = range_
  half = jnp.where(varied, 0.5 * high - 0.5 * low, 1)
  unit = jnp.clip((0.5 * maps - 0.5 * low) / half, 0, 1)
  # A compiler may divide by multiplying, which leaves the greatest value a little under 1.
  unit = jnp.where(varied, jnp.where(maps == high, 1, unit), 0)
  return jnp.where(jnp.isfinite(low) & jnp.isfinite(high), unit, jnp.nan)


def support(values: jax.Array) -> jax.Array:
  """What speaks for the class: signed values (..., H, W) to [0, 1], those of 0 or less to 0.

  Unlike `min_max` it leaves 'no effect' at 0 where something speaks against the class.
  """
  high = jnp.max(values, axis=(-2, -1), keepdims=True)
  low = jnp.min(values, axis=(-2, -1), keepdims=True)
  real = high > float(jnp.finfo(values.dtype).tiny)
  unit = jnp.where(real, jnp.maximum(values, 0) / jnp.where(real, high, 1), 0)
  unit = jnp.where(real & (values == high), 1, unit)
  return jnp.where(jnp.isfinite(low) & jnp.isfinite(high), unit, jnp.nan)


def peak(values: jax.Array) -> jax.Array:
  """Largest size of an image's values (B, ...), (B, 1, ...); 1 where all are 0.

  To divide by, where a scale cancels in the end and products would leave the range of float32.
  """
  high = jnp.max(jnp.abs(values), axis=tuple(range(1, values.ndim)), keepdims=True)
  return jnp.where(high > 0, high, 1)


def constant_maps(maps: jax.Array) -> jax.Array:
  """Which of the maps (B, H, W) that a method gave say nothing: bool (B,)."""
  return jnp.max(maps, axis=(-2, -1)) == 0


def finish(maps: jax.Array, size: Sequence[int]) -> jax.Array:
  """Maps at feature resolution (B, h, w) -> (B, H, W) in [0, 1]."""
  return min_max(upsample(maps, size))
