"""What is asked of a model: targets, gradients, and many queries in bounded memory."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rest_jax import inputs
from rest_jax.errors import UserError
from rest_jax.explain.taps import Tap, tap
from rest_jax.ops.platform import jit
from rest_jax.ops.rewrite import fast_convolutions


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
  targets = whole_targets(targets, batch)
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


def whole_targets(targets: Any, batch: int) -> jax.Array | np.ndarray:
  """One class index or `batch` of them, whatever classes there are; `UserError` for others."""
  targets = targets if isinstance(targets, jax.Array) else np.asarray(targets)
  if not jnp.issubdtype(targets.dtype, jnp.integer) or targets.shape not in ((), (1,), (batch,)):
    raise UserError(
      f'targets are None, one class index or {batch} of them, got {targets.dtype} {targets.shape}'
    )
  return targets


def resolve_targets(logits: jax.Array, targets: jax.Array | None) -> jax.Array:
  """The class to explain, int32 (B,): as asked, or the predicted one of logits (B, K)."""
  if targets is None:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
  return jnp.broadcast_to(jnp.asarray(targets, jnp.int32), logits.shape[:1])


def known_targets(
  point: Tap, images: jax.Array, targets: jax.Array | None, query_batch: int
) -> jax.Array:
  """The class each map is of, int32 (B,); None: the predicted ones, from a forward pass.

  Before the samples, because what is predicted for them may be another class.
  """
  if targets is None:
    return resolve_targets(all_logits(point, images, query_batch), None)
  return targets


def logits_once(model: Any, images: jax.Array | np.ndarray) -> jax.Array:
  """Logits (B, K) of images: one compiled program for whoever asks.

  Args:
    model: a tap, at whatever layer, or what `tap` takes.
    images: floats (B, H, W, C).
  """
  # Neither the layer nor what is made of the logits changes them.
  return _logits(dataclasses.replace(tap(model), layer=None, grid=None, output=None), images)


_logits = jit(lambda point, images: point(images))


@functools.partial(jit, static_argnames='query_batch')
def all_logits(point: Tap, images: jax.Array, query_batch: int) -> jax.Array:
  """Logits (B, K) of any number of images; one compiled function for all the methods."""
  return chunked(point, images, query_batch)


def pick(scores: jax.Array, targets: jax.Array) -> jax.Array:
  """scores[i, targets[i]]: (B, K), (B,) -> (B,)."""
  return jnp.take_along_axis(scores, targets[:, None], axis=1)[:, 0]


def probability(point: Tap, images: jax.Array, targets: jax.Array) -> jax.Array:
  """The target's probability, or the score of one's own, of images: (B, H, W, C), (B,) -> (B,)."""
  return pick(point.probabilities(point(images)), targets)


class LayerGradient(NamedTuple):
  """Map of a layer (B, h, w, K), gradient of the target's logit there, logits, targets (B,)."""

  features: jax.Array
  gradients: jax.Array
  logits: jax.Array
  targets: jax.Array


def layer_gradient(point: Tap, images: jax.Array, targets: jax.Array | None) -> LayerGradient:
  """One forward pass, and a backward pass down to the layer only."""
  zeros = vary_like(jnp.zeros(point.feature_shape(images), jnp.float32), images)
  # The perturbation alone is an argument of what is rewritten: model and images stay what they are.
  perturbed = fast_convolutions(lambda delta: point.perturbed(images, delta))
  logits, pull, features = jax.vjp(perturbed, zeros, has_aux=True)
  targets = resolve_targets(logits, targets)
  chosen = jax.nn.one_hot(targets, logits.shape[1], dtype=logits.dtype)
  (gradients,) = pull(vary_like(chosen, logits))
  return LayerGradient(features, only_finite(gradients, logits), logits, targets)


def target_gradients(
  model: Callable[..., jax.Array], images: jax.Array, targets: jax.Array | None
) -> jax.Array:
  """d logit_target / d image, in one pass over all the images.

  Args:
    model: images to logits (B, K).
    images: (B, H, W, C).
    targets: int (B,), or None for the predicted classes.

  Returns:
    (B, H, W, C), not a number for an image with a logit that is not finite.
  """

  def score(x):
    logits = model(x)
    return jnp.sum(pick(logits, resolve_targets(logits, targets))), logits

  gradients, logits = jax.grad(fast_convolutions(score), has_aux=True)(images)
  return only_finite(gradients, logits)


def only_finite(values: jax.Array, logits: jax.Array) -> jax.Array:
  """Values (B, ...) of an image, not a number where one of its logits (B, K) is not finite."""
  fine = jnp.isfinite(logits).all(1)
  return jnp.where(_as_rows(fine, values), values, jnp.nan)


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
  _check_size(size)
  n = jax.tree.leaves(items)[0].shape[0]
  count = math.ceil(n / size)
  if count == 1:
    return fn(items)
  chunk = math.ceil(n / count)
  index = np.minimum(np.arange(count * chunk), n - 1).reshape(count, chunk)
  out = jax.lax.map(lambda i: fn(jax.tree.map(lambda x: x[i], items)), jnp.asarray(index))
  return jax.tree.map(lambda x: x.reshape(count * chunk, *x.shape[2:])[:n], out)


def _check_size(size: int) -> None:
  if size < 1:
    raise UserError(f'query_batch is 1 or more, got {size}')


def chunked_where(fn: Callable[[Any], Any], items: Any, wanted: jax.Array, size: int) -> Any:
  """Like `chunked`, but of the items that are wanted alone: the others are no work.

  Args:
    fn: as `chunked` has it; of a chunk that is not full it sees items that are not wanted.
    items: pytree of arrays (n, ...), n >= 1.
    wanted: bool (n,); it may hang on what is computed.
    size: items at a time, at most.

  Returns:
    What `fn(items)` would give; 0 for the others.

  Raises:
    UserError: a size under 1.
  """
  _check_size(size)
  n = wanted.shape[0]
  chunk = _even(n, size)
  order, count = jnp.argsort(~wanted, stable=True), jnp.sum(wanted)

  def some(first):
    return jax.tree.map(lambda x: x[order[first + jnp.arange(chunk)]], items)

  def step(i, found):
    # A last chunk that reaches beyond the items begins earlier, and finds some of them again.
    first = jnp.minimum(i * chunk, n - chunk)
    put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=first, axis=0)
    return jax.tree.map(put, found, fn(some(first)))

  like = jax.eval_shape(fn, jax.eval_shape(some, 0))
  zeros = jax.tree.map(lambda x: vary_like(jnp.zeros((n, *x.shape[1:]), x.dtype), wanted), like)
  found = jax.lax.fori_loop(0, -(-count // chunk), step, zeros)
  back = jnp.argsort(order)
  return jax.tree.map(lambda x: jnp.where(_as_rows(wanted, x), x[back], jnp.zeros_like(x)), found)


def _as_rows(flags: jax.Array, x: jax.Array) -> jax.Array:
  return flags.reshape(-1, *([1] * (x.ndim - 1)))


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
