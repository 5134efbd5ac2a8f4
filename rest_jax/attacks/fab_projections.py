"""The nearest point of a hyperplane within the box [0, 1]^d, in Linf, L2 and L1.

The step of FAB (Croce & Hein, "Minimally distorted Adversarial Examples with a Fast Adaptive
Boundary Attack", arXiv 1907.02044, section 3.1). In Linf and L2 the way to the plane is
d(t) = -sign(w) min(t, limit), a piecewise linear equation in one unknown, and its left side is
convex: Newton's method from 0 climbs to the exact solution in as many steps as there are distinct
sets of coordinates that reached the box on the way, without sorting (a sort of the coordinates is
what the paper uses, and is slow on XLA:CPU). In L1 the coordinates with the largest |w| go all
the way first; the threshold among them comes from a bisection over float32 bit patterns.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int


def project_hyperplane(
  points: Float[Array, 'B d'], normal: Float[Array, 'B d'], offset: Float[Array, ' B'], norm: str
) -> Float[Array, 'B d']:
  """The least way, in `norm`, from each point to its hyperplane, within [0, 1]^d.

  Args:
    points: float32 in [0, 1].
    normal: w of the plane; of any scale. Where it is all zeros the answer is 0.
    offset: w . point - b at the point, for the plane w . z = b: the point's signed distance from
      the plane times |w|.
    norm: 'linf', 'l2' or 'l1'.

  Returns:
    d with point + d on the plane and in the box, |d| least. Where plane and box do not meet, d
    leads to the corner of the box that is nearest to the plane.
  """
  scale = jnp.max(jnp.abs(normal), axis=1, keepdims=True)
  scale = jnp.where(scale > 0, scale, 1.0)
  normal = jnp.where(offset[:, None] < 0, -normal, normal) / scale  # the way is against it
  need = jnp.abs(offset) / scale[:, 0]
  slope = jnp.abs(normal)
  room = jnp.where(normal > 0, points, jnp.where(normal < 0, 1.0 - points, 0.0))
  length = {'linf': _linf, 'l2': _l2, 'l1': _l1}[norm](need, slope, room)
  return -jnp.sign(normal) * length


def _linf(need, slope, room):
  """All coordinates go the same way, or as far as the box lets them."""
  reach = solve_threshold(need, slope, room, slope * room)
  return jnp.minimum(reach[:, None], room)


def _l2(need, slope, room):
  """Each coordinate goes in proportion to |w|, or as far as the box lets it."""
  limit = jnp.where(slope > 0, room / jnp.where(slope > 0, slope, 1.0), 0.0)
  reach = solve_threshold(need, slope * slope, limit, slope * room)
  # Without its own branch an unreachable plane would give inf * 0.
  return jnp.where(reach[:, None] < limit, reach[:, None] * slope, room)


def solve_threshold(
  need: Float[Array, ' B'],
  slope: Float[Array, 'B d'],
  limit: Float[Array, 'B d'],
  full: Float[Array, 'B d'],
) -> Float[Array, ' B']:
  """Solves sum_i slope_i min(t, limit_i) = need for t >= 0, for each row.

  Args:
    need: at least 0.
    slope: at least 0.
    limit: at least 0.
    full: slope * limit, from the caller who may know it with less rounding.

  Returns:
    t, or inf where even the limits together do not give `need`.
  """

  def climb(state):
    t, count, _ = state
    held = t[:, None] >= limit
    free_slope, held_sum, held_count = _sums(
      jnp.where(held, 0.0, slope), jnp.where(held, full, 0.0), held.astype(jnp.int32)
    )
    open_ = free_slope > 0
    new = (need - held_sum) / jnp.where(open_, free_slope, 1.0)
    unreachable = jnp.where(need > held_sum, jnp.inf, t)
    new = jnp.where(open_, jnp.maximum(new, t), unreachable)
    return new, held_count, held_count != count

  zeros = jnp.zeros_like(need)
  start = (zeros, jnp.full(need.shape, -1, jnp.int32), jnp.ones(need.shape, bool))
  return lax.while_loop(lambda state: jnp.any(state[2]), climb, start)[0]


def _sums(
  first: Float[Array, 'B d'], second: Float[Array, 'B d'], third: Int[Array, 'B d']
) -> tuple[Float[Array, ' B'], Float[Array, ' B'], Int[Array, ' B']]:
  """Row sums of three matrices in one pass."""

  def add(left, right):
    return tuple(a + b for a, b in zip(left, right, strict=True))

  zeros = (jnp.float32(0), jnp.float32(0), jnp.int32(0))
  return tuple(lax.reduce((first, second, third), zeros, add, (1,)))


def _l1(need, slope, room):
  """The steepest coordinates go to the box; those at the threshold share what is left."""
  full = slope * room
  bits = lax.bitcast_convert_type(slope, jnp.int32)  # orders as the floats do, from 0 on

  def halve(_, bracket):
    low, high = bracket  # from `low` on the steeper ones are enough, from `high` on they are not
    middle = low + (high - low) // 2
    enough = jnp.sum(jnp.where(bits >= middle[:, None], full, 0.0), axis=1) >= need
    return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

  above_one = lax.bitcast_convert_type(jnp.float32(1), jnp.int32) + 1
  bracket = (jnp.zeros(need.shape, jnp.int32), jnp.full(need.shape, above_one, jnp.int32))
  threshold = lax.fori_loop(0, 30, halve, bracket)[0][:, None]
  steeper, tied = bits > threshold, bits == threshold
  left = need - jnp.sum(jnp.where(steeper, full, 0.0), axis=1)
  shared = jnp.sum(jnp.where(tied, full, 0.0), axis=1)
  share = jnp.clip(left / jnp.where(shared > 0, shared, 1.0), 0.0, 1.0)
  return jnp.where(steeper, room, jnp.where(tied, share[:, None] * room, 0.0))
