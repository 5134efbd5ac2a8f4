"""Balls around images, intersected with [0, 1]: norms, nearest points, starts, exact rounding.

Everything takes a batch, (B, ...) of any further shape, in float32, and a radius a batch or an
image. The projections are solved as one equation in one unknown, whose left side is monotone and
piecewise linear, by Newton's method: exact in a few passes, where sorting the pixels costs most
of an attack's time on XLA:CPU.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from rest_jax.attacks import draws
from rest_jax.attacks.threat import Norm
from rest_jax.inputs import check_pair

_TINY = 1.2e-38  # the smallest normal float32: a radius below it is 0
_ULP = 2.0**-24  # relative error of one float32 operation


def per_image(values: jax.Array | float, like: jax.Array) -> jax.Array:
  """Shapes (B,) or a scalar so that it broadcasts against a batch like `like`, (B, 1, ...)."""
  values = jnp.asarray(values, jnp.float32)
  flat = jnp.broadcast_to(values, like.shape[:1])
  return flat.reshape(flat.shape + (1,) * (like.ndim - 1))


def total(x: jax.Array) -> jax.Array:
  """Sums each image: (B, ...) to (B, 1, ...)."""
  return jnp.sum(x, axis=tuple(range(1, x.ndim)), keepdims=True)


def norm_of(delta: jax.Array, norm: Norm) -> jax.Array:
  """The norm of each image of a batch: (B, ...) to (B,)."""
  axes = tuple(range(1, delta.ndim))
  if norm == 'linf':
    return jnp.max(jnp.abs(delta), axis=axes, initial=0.0)
  if norm == 'l1':
    return jnp.sum(jnp.abs(delta), axis=axes)
  return jnp.sqrt(jnp.sum(jnp.square(delta), axis=axes))


def distances(adv: jax.Array, images: jax.Array, norm: Norm) -> jax.Array:
  """How far each image was moved, (B,); 0 where an attack gave back the original.

  Raises:
    UserError: adversarial images and images of different shapes.
  """
  check_pair(adv, images, ('adversarial images', 'images'))
  return norm_of(jnp.asarray(adv, jnp.float32) - jnp.asarray(images, jnp.float32), norm)


def unscaled(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Takes the scale off each image of a batch: the largest magnitude becomes 1.

  Gradients have any scale: a confident model's are 1e-20, whose squares are 0 in float32, and
  constants that are to keep from dividing by 0 are larger than they.

  Args:
    x: (B, ...), finite.

  Returns:
    Like `x`, images of zeros as they are; and the scale (B,), 1 for those.
  """
  largest = norm_of(x, 'linf')
  scale = jnp.where(largest > 0, largest, 1.0)
  return x / per_image(scale, x), scale


def length_of(x: jax.Array, norm: Norm) -> jax.Array:
  """The norm of each image of a batch of any scale: as `norm_of`, with no square that is 0."""
  unit, scale = unscaled(x)
  return norm_of(unit, norm) * scale


def normalize(x: jax.Array, norm: Norm) -> jax.Array:
  """Scales each image of a batch, whatever its scale, to norm 1; one of zeros stays."""
  unit, _ = unscaled(x)
  # Of what has a value of 1 every norm is 1 or more.
  return unit / per_image(jnp.maximum(norm_of(unit, norm), 1.0), unit)


def project(delta: jax.Array, images: jax.Array, norm: Norm, eps: jax.Array | float) -> jax.Array:
  """The nearest point (Euclidean) to `delta` in the ball, such that images + it is in [0, 1].

  Linf: by clipping. L2: min(s |delta|, room) with the largest s <= 1 that fits. L1: the amounts
  above a threshold, as in Croce & Hein, "Mind the box", 2021, section 3, Proposition 2.2.

  Args:
    delta: (B, ...), any finite values.
    images: (B, ...) in [0, 1].
    norm: of the ball.
    eps: its radius, a scalar or (B,).

  Returns:
    Like `delta`. Rounding may leave the ball by some ulp: `finish` makes up for it.
  """
  eps = per_image(eps, delta)
  boxed = jnp.clip(delta, -images, 1 - images)
  if norm == 'linf':
    return jnp.clip(boxed, -eps, eps)
  amount, room = jnp.abs(delta), jnp.abs(boxed)
  if norm == 'l2':
    fitting = _fill_l2(amount, room, eps, jnp.ones_like(eps))
  else:
    fitting = jnp.clip(amount - _threshold_l1(amount, room, eps), 0, room)
  return jnp.sign(boxed) * fitting


def into_ball(delta: jax.Array, images: jax.Array, norm: Norm, eps: jax.Array | float) -> jax.Array:
  """As the published attacks do: into the ball, then into [0, 1].

  It is `project` for Linf and L1; for L2 it is shorter where the pixel range cuts the ball off.
  Arguments and result as `project`.
  """
  if norm != 'l2':
    return project(delta, images, norm, eps)
  length = jnp.minimum(per_image(length_of(delta, 'l2'), delta), per_image(eps, delta))
  return jnp.clip(normalize(delta, 'l2') * length, -images, 1 - images)


def furthest(
  gradient: jax.Array, images: jax.Array, norm: Norm, eps: jax.Array | float
) -> jax.Array:
  """The point of the ball within [0, 1] that maximises the inner product with `gradient`.

  So it is the best perturbation of a linear model. Linf: the sign. L2: min(s |gradient|, room)
  with the s that fills the ball. L1: the pixels of the largest gradients to their limits, the last
  of them in part.

  Args:
    gradient: (B, ...); where it is 0 nothing moves.
    images: (B, ...) in [0, 1].
    norm: of the ball.
    eps: its radius, a scalar or (B,).

  Returns:
    The perturbation, like `gradient`.
  """
  eps = per_image(eps, gradient)
  up = jnp.where(gradient > 0, 1 - images, images)
  room = jnp.where(gradient != 0, jnp.minimum(up, eps), 0.0)
  sign = jnp.sign(gradient)
  if norm == 'linf':
    return sign * room
  # Only ratios count; without this the squares of small gradients would underflow.
  amount = jnp.abs(unscaled(gradient)[0])
  if norm == 'l2':
    return sign * _fill_l2(amount, room, eps, jnp.full_like(eps, 1e19))
  return sign * _fill_l1(amount, room, eps)


def _fill_l2(amount: jax.Array, room: jax.Array, eps: jax.Array, most: jax.Array) -> jax.Array:
  """min(s amount, room) of L2 norm eps, or with s = most where that is within it.

  In t = s^2 the squared norm, sum min(t amount^2, room^2), is concave and piecewise linear, so
  Newton's method from the left climbs to the root and reaches it exactly after finitely many
  steps, at most one a breakpoint; typically 2 to 5.
  """
  # In units of eps, so that nothing under- or overflows.
  scale = jnp.maximum(eps, _TINY)
  a2, r2 = jnp.square(amount / scale), jnp.square(room / scale)
  limit = jnp.square(most)

  def climb(carry):
    t, _ = carry
    free = t * a2 < r2
    fixed, slope = total(jnp.where(free, 0.0, r2)), total(jnp.where(free, a2, 0.0))
    root = jnp.where(slope > 0, (1 - fixed) / jnp.where(slope > 0, slope, 1.0), jnp.inf)
    new = jnp.minimum(jnp.maximum(root, t), limit)
    return new, jnp.any(new > t * (1 + 4 * _ULP))

  start = jnp.zeros_like(scale)
  t, _ = lax.while_loop(lambda carry: carry[1], climb, (start, jnp.array(True)))
  return jnp.where(eps >= _TINY, jnp.where(t * a2 < r2, jnp.sqrt(t) * amount, room), 0.0)


def _threshold_l1(amount: jax.Array, room: jax.Array, eps: jax.Array) -> jax.Array:
  """The least c >= 0 with sum clip(amount - c, 0, room) <= eps, (B, 1, ...).

  The sum falls with c and is piecewise linear: Newton's method, inside a bracket that is halved
  every third pass.
  """

  def narrow(carry):
    low, high, c, _, step = carry
    left = amount - c
    over = total(jnp.clip(left, 0, room)) - eps
    active = total(((left > 0) & (left < room)).astype(jnp.float32))
    low, high = jnp.where(over > 0, c, low), jnp.where(over > 0, high, c)
    root = c + over / jnp.maximum(active, 1.0)
    inside = (active > 0) & (root > low) & (root < high) & (step % 3 < 2)
    met, closed = jnp.abs(over) <= 1e-6 * eps, high - low <= 2 * _ULP * high
    # An image that is done stays at its c while others of the batch go on.
    new = jnp.where(closed, high, jnp.where(inside, root, (low + high) / 2))
    return low, high, jnp.where(met, c, new), jnp.all(met | closed), step + 1

  def unfinished(carry):
    return ~carry[3] & (carry[4] < 100)

  low = jnp.zeros_like(eps)
  high = per_image(norm_of(amount, 'linf'), amount)
  start = (low, high, low, jnp.array(False), jnp.int32(0))
  return lax.while_loop(unfinished, narrow, start)[2]


def _fill_l1(amount: jax.Array, room: jax.Array, eps: jax.Array) -> jax.Array:
  """Room of the largest amounts until their sum is eps; what is left goes to equals, in order."""
  bits = lax.bitcast_convert_type(amount, jnp.int32)

  def narrow(_, carry):
    low, high = carry
    middle = low + (high - low) // 2
    fits = total(jnp.where(bits > middle, room, 0.0)) <= eps
    return jnp.where(fits, low, middle), jnp.where(fits, middle, high)

  low = jnp.full(eps.shape, -1, jnp.int32)
  high = jnp.full(eps.shape, 0x7F800000, jnp.int32)
  _, cut = lax.fori_loop(0, 32, narrow, (low, high))
  above = jnp.where(bits > cut, room, 0.0)
  equals = jnp.where((bits == cut) & (amount > 0), room, 0.0)
  before = jnp.cumsum(equals.reshape(equals.shape[0], -1), axis=1).reshape(equals.shape) - equals
  return above + jnp.clip(eps - total(above) - before, 0, equals)


def kth_smallest(x: jax.Array, k: jax.Array) -> jax.Array:
  """The k-th smallest value of each row, without sorting.

  The bits of floats from 0 are ordered as integers: 31 passes settle one bit each.

  Args:
    x: float32 (B, n), at least 0.
    k: int32 (B,), from 0 for the least.

  Returns:
    (B,).
  """
  bits = lax.bitcast_convert_type(jnp.asarray(x, jnp.float32), jnp.int32)

  def settle(i, found):
    tried = found | (jnp.int32(1) << (30 - i))
    below = jnp.sum((bits < tried[:, None]).astype(jnp.int32), axis=1)
    return jnp.where(below <= k, tried, found)

  found = lax.fori_loop(0, 31, settle, jnp.zeros_like(k, jnp.int32))
  return lax.bitcast_convert_type(found, jnp.float32)


def random_start(
  keys: jax.Array, images: jax.Array, norm: Norm, eps: jax.Array | float
) -> jax.Array:
  """Perturbations drawn uniformly from the ball, then cut to [0, 1].

  Args:
    keys: (B,) PRNG keys, one an image.
    images: (B, ...) in [0, 1].
    norm: of the ball.
    eps: its radius, a scalar or (B,).

  Returns:
    (B, ...).
  """
  shape = images.shape[1:]
  eps = per_image(eps, images)
  if norm == 'linf':
    draw = draws.uniform(keys, shape)
  else:
    direction = (draws.normal if norm == 'l2' else draws.laplace)(keys, shape)
    # The d-th power of the distance from the centre is uniform.
    size = max(math.prod(shape), 1)
    radius = jnp.abs(draws.uniform(keys, (1,) * len(shape), skip=size)) ** (1 / size)
    draw = radius * normalize(direction, norm)
  return jnp.clip(eps * draw, -images, 1 - images)
