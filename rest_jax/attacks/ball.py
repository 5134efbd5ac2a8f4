"""Balls around images, intersected with [0, 1]: norms, nearest points, steps, starts, rounding.

Everything takes a batch, (B, ...) of any further shape, in float32, and a radius a batch or an
image. The projections are solved as one equation in one unknown, whose left side is monotone and
piecewise linear, by Newton's method: exact in a few passes, where sorting the pixels costs most
of an attack's time on XLA:CPU.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rest_jax.inputs import Norm, check_pair, widest

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
  """How far each image was moved.

  Args:
    adv: floats (B, H, W, C).
    images: likewise, the originals.
    norm: 'linf', 'l2' or 'l1'.

  Returns:
    float32 (B,); 0 where an attack gave back the original.

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
    eps: its radius, a scalar or (B,); where it reaches beyond [0, 1]^d, that of `widest`.

  Returns:
    (B, ...).
  """
  shape = images.shape[1:]
  eps = jnp.minimum(per_image(eps, images), widest(norm, shape))
  if norm == 'linf':
    draw = draw_uniform(keys, shape)
  else:
    direction = (draw_normal if norm == 'l2' else draw_laplace)(keys, shape)
    # The d-th power of the distance from the centre is uniform.
    size = max(math.prod(shape), 1)
    radius = jnp.abs(draw_uniform(keys, (1,) * len(shape), skip=size)) ** (1 / size)
    draw = radius * normalize(direction, norm)
  return jnp.clip(eps * draw, -images, 1 - images)


# ---- Returned images keep to the ball and to [0, 1] exactly, whatever was rounded on the way.


def finish(adv: jax.Array, images: jax.Array, norm: Norm, eps: jax.Array | float) -> jax.Array:
  """Takes back what rounding added: in real numbers, |result - images| <= eps and 0 <= result <= 1.

  Linf is exact to the ulp. For L2 and L1 a perturbation within the rounding error of its norm's
  sum (some 1e-6 of eps for 32x32x3) of the surface is scaled to just inside. So an attack that
  evaluates what `finish` gave can return it as it is.

  Args:
    adv: float32 (B, ...), in the ball up to rounding.
    images: float32 (B, ...) in [0, 1].
    norm: of the ball.
    eps: its radius, a scalar or (B,); infinity for none.

  Returns:
    Like `adv`; `images` where the radius is 0.
  """
  eps = per_image(eps, adv)
  adv = jnp.clip(adv, 0.0, 1.0)
  delta = adv - images
  if norm == 'linf':
    shorter = jnp.clip(delta, -eps, eps)
    adv = jnp.where(jnp.abs(delta) < eps, adv, _add_towards_zero(images, shorter))
  else:
    margin = _ULP * (sum(adv.shape[1:]) + 8)
    ratio = _ratio(delta, norm, eps)
    scaled = _add_towards_zero(images, delta * ((1 - 2 * margin) / jnp.maximum(ratio, 0.5)))
    adv = jnp.where(ratio > 1 - margin, scaled, adv)
  return jnp.where(eps >= _TINY, adv, images)


def _ratio(delta: jax.Array, norm: Norm, eps: jax.Array) -> jax.Array:
  """Norm over eps, (B, 1, ...), with a relative error below `margin`.

  Axis after axis, so that no chain of additions is longer than a side. The maximum between them
  keeps the compiler from merging the sums into one.
  """
  size = jnp.abs(delta / jnp.maximum(eps, _TINY))
  size = jnp.square(size) if norm == 'l2' else size
  for axis in range(1, size.ndim):
    size = jnp.maximum(jnp.sum(size, axis=axis, keepdims=True), 1e-37)
  return jnp.sqrt(size) if norm == 'l2' else size


def _add_towards_zero(x: jax.Array, delta: jax.Array) -> jax.Array:
  """x + delta, rounded such that it is never further from x than delta is long."""
  added = x + delta
  # Knuth's two-sum: the exact sum is added + error.
  back = added - x
  error = (x - (added - back)) + (delta - back)
  return jnp.where(error * jnp.sign(delta) < 0, jnp.nextafter(added, x), added)


# ---- Which way and how far to step along a gradient.


def usable(gradient: jax.Array) -> jax.Array:
  """The gradient with 0 for what is NaN or infinite: no step goes there."""
  return jnp.where(jnp.isfinite(gradient), gradient, 0.0)


def ascent(gradient: jax.Array, norm: Norm, length: jax.Array | float) -> jax.Array:
  """A step uphill of norm `length`: along the sign (Linf) or the gradient (L2).

  L1: equal amounts along the signs of the largest 5 % of the gradient, as in Tramer & Boneh,
  "Adversarial training and robustness for multiple perturbations", 2019, section 4.

  Args:
    gradient: (B, ...).
    norm: which.
    length: a scalar or (B,).

  Returns:
    Like `gradient`; zeros for an image without gradient.
  """
  length = per_image(length, gradient)
  if norm == 'linf':
    return length * jnp.sign(gradient)
  if norm == 'l2':
    return length * normalize(gradient, 'l2')
  return length * sparse_sign(gradient, jnp.full(gradient.shape[:1], 0.05))


def sparse_sign(gradient: jax.Array, share: jax.Array) -> jax.Array:
  """The signs of the largest part of the gradient, scaled to L1 norm 1.

  Croce & Hein, "Mind the box", 2021, section 4.

  Args:
    gradient: (B, ...).
    share: of the values, from 0 to 1, (B,); equals of the smallest one taken are taken too.

  Returns:
    Like `gradient`.
  """
  size = jnp.abs(gradient).reshape(gradient.shape[0], -1)
  count = size.shape[1]
  rank = jnp.clip((1 - share) * count, 0, count - 1).astype(jnp.int32)
  least = per_image(kth_smallest(size, rank), gradient)
  chosen = jnp.where(jnp.abs(gradient) >= least, jnp.sign(gradient), 0.0)
  return chosen / jnp.maximum(total(jnp.abs(chosen)), 1.0)


# ---- Random draws for a batch of images, one key an image. The keys are JAX's; a hash of each
# value's place takes the place of Threefry, whose code takes XLA:CPU most of a second to compile in
# every program that draws an array (measured; this takes a tenth of it). It has the quality that a
# starting point needs, not more.


def draw_uniform(keys: jax.Array, shape: tuple[int, ...], skip: int = 0) -> jax.Array:
  """Values between -1 and 1, the ends excluded, after the first `skip`: (B, *shape), keys (B,)."""
  # 2^24 values at odd multiples of 2^-24, so symmetric about 0.
  steps = (_bits(keys, shape, skip) >> 8).astype(jnp.int32) * 2 + (1 - 2**24)
  return steps.astype(jnp.float32) * np.float32(2.0**-24)


def draw_normal(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Standard normal values: (B, *shape) for keys (B,)."""
  return np.float32(math.sqrt(2)) * lax.erf_inv(draw_uniform(keys, shape))


def draw_laplace(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Values of the standard Laplace distribution: (B, *shape) for keys (B,)."""
  x = draw_uniform(keys, shape)
  return -jnp.sign(x) * jnp.log1p(-jnp.abs(x))


def _bits(keys: jax.Array, shape: tuple[int, ...], skip: int) -> jax.Array:
  place = lax.iota(jnp.uint32, math.prod(shape)).reshape(1, *shape) + np.uint32(skip)
  for seed in jnp.moveaxis(jax.random.key_data(keys).astype(jnp.uint32), -1, 0)[:2]:
    place = _mix(place ^ seed.reshape(-1, *(1,) * len(shape)))
  return place


def _mix(x: jax.Array) -> jax.Array:
  """A bijection of 32 bits; the constants are the ones of C. Wellons' search, "lowbias32"."""
  x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
  return x ^ (x >> 16)
