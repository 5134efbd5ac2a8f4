"""FAB, the Fast Adaptive Boundary attack: the nearest adversarial image, by projections.

Croce & Hein, "Minimally distorted Adversarial Examples with a Fast Adaptive Boundary Attack",
arXiv 1907.02044, algorithm 1, with the published code's constants. The targeted form (FAB-T of
AutoAttack, arXiv 2003.01690, section 5) takes one class's boundary instead of the nearest one, so
that its cost does not grow with the number of classes.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, Key

from rest_jax.attacks import losses
from rest_jax.attacks.algorithm import State, register_state, select
from rest_jax.attacks.ball import (
  draw_normal,
  draw_uniform,
  length_of,
  norm_of,
  normalize,
  per_image,
  usable,
)
from rest_jax.attacks.driver import (
  Given,
  IterativeAttack,
  Outcome,
  Runs,
  Target,
  attack_images,
  in_batches,
  make_target,
  program_of,
)
from rest_jax.attacks.losses import fooled, margin, pick
from rest_jax.attacks.queries import ask, fold_each, logits_of
from rest_jax.attacks.registry import face, register
from rest_jax.errors import UserError
from rest_jax.inputs import Norm, check_count
from rest_jax.ops.platform import jit

# ---- The nearest point of a hyperplane within the box [0, 1]^d, the step of FAB (section 3.1). In
# Linf and L2 the way to the plane is d(t) = -sign(w) min(t, limit), a piecewise linear equation in
# one unknown, and its left side is convex: Newton's method from 0 climbs to the exact solution in
# as many steps as there are distinct sets of coordinates that reached the box on the way, without
# sorting (a sort of the coordinates is what the paper uses, and is slow on XLA:CPU). In L1 the
# coordinates with the largest |w| go all the way first; the threshold among them comes from a
# bisection over float32 bit patterns.


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


# Where no radius is given, random starts are drawn in these balls (the published defaults).
START_RADIUS = {'linf': 0.3, 'l2': 1.0, 'l1': 5.0}


@register_state
@dataclasses.dataclass(frozen=True)
class FABState(State):
  """A batch under attack: `algorithm.State`, and

  Attributes:
    point: where the attack stands.
    distance: norm of the perturbation of `adv`, (B,); inf where there is none.
  """

  point: Float[Array, 'B H W C']
  distance: Float[Array, ' B']


@register('fab', 'how far is the nearest adversarial image')
@register('fab_t', 'the same, with one gradient a step', to_target=True)
@dataclasses.dataclass(frozen=True, kw_only=True)
class FAB(IterativeAttack):
  """The attack; as `fab`.

  Attributes:
    steps: iterations.
    restarts: runs; the first begins at the image, the others at random points.
    num_targets: runs towards this many classes, in place of a gradient for each class; 0 for none.
      9 by default with `to_target`, else none.
    to_target: steps lead to the boundary with the target class, one that is given or each of
      `num_targets`; to the nearest one otherwise, which takes a gradient for each class. Any
      `num_targets` make it so.
    random_start: whether to begin at a random point, half the radius away. `run` chooses it.
    alpha_max: largest weight of the projection of the original image.
    eta: overshooting of the boundary.
    beta: an adversarial point's distance is multiplied by this before the next step.
  """

  minimum_norm: ClassVar[bool] = True
  queries_per_step: ClassVar[int] = 2

  steps: int = 100
  restarts: int = 1
  num_targets: int | None = None
  to_target: bool = False
  random_start: bool = False
  alpha_max: float = 0.1
  eta: float = 1.05
  beta: float = 0.9

  def __post_init__(self):
    check_count('steps', self.steps)
    check_count('restarts', self.restarts)
    check_count('num_targets', self.num_targets or 0, 0)
    if self.num_targets is not None:
      object.__setattr__(self, 'to_target', self.num_targets > 0)

  def carry_out(self, given: Given, key: Any) -> Outcome:
    """From every image itself, then from random points; the nearest is kept."""
    if self.num_targets is not None and given.targets is not None:
      raise UserError('num_targets are chosen by fab where no targets are given; leave out one')
    inputs = given.checked(self.norm)
    target = make_target('fab', inputs, key, self.query_batch)
    which = target.still_right()
    found = attack_images(target, self._runs(target), which, stop_early=False)
    adv, queries = target.images.copy(), np.zeros(len(target.images), np.int64)
    adv[which], queries[which] = found.adv, found.steps * self.queries_per_step
    which = which[found.success]
    adv[which] = _search(target, adv, which)
    return Outcome(jnp.asarray(adv), queries)

  def _runs(self, target: Target) -> tuple[Runs, ...]:
    """One from each image itself, the others from random points."""
    wanted = (9 if self.to_target else 0) if self.num_targets is None else self.num_targets
    count = 0 if target.targeted else min(wanted, target.num_classes - 1)
    first = program_of(
      dataclasses.replace(
        self, targeted=target.targeted, to_target=target.targeted or count > 0, random_start=False
      )
    )
    if self.restarts == 1:
      return (Runs(first, num_targets=count),)
    again = dataclasses.replace(first, random_start=True)
    return Runs(first, num_targets=count), Runs(again, self.restarts - 1, count, number=1)

  def init(self, model: Partial, images, labels, eps, keys, targets=None) -> FABState:
    """The original images, or random points near them."""
    del model
    return FABState.begin(
      *(images, labels, eps, keys, targets),
      point=_random_start(self.norm, images, eps, keys) if self.random_start else images,
      distance=jnp.full(labels.shape, jnp.inf, jnp.float32),
    )

  def step(self, model: Partial, state: FABState) -> FABState:
    """One projection: a gradient (or one a class) and a forward pass."""
    keys = fold_each(state.keys, state.iteration)
    boundary = _to_target if self.to_target else _nearest
    gap, normal = boundary(self, model, state, keys)
    point = _next_point(self, state, gap, normal)
    wins = fooled(logits_of(model, point, keys), state.labels, state.targets, self.targeted)
    distance, error = _distance(point - state.images, self.norm)
    # Rounding must not let anything out of the ball.
    better = wins & (distance * (1 + error) <= state.eps) & (distance < state.distance)
    return dataclasses.replace(
      state,
      iteration=state.iteration + 1,
      adv=select(better, point, state.adv),
      success=state.success | better,
      point=select(wins, state.images + self.beta * (point - state.images), point),
      distance=jnp.where(better, distance, state.distance),
    )

  def outcome(self, state: FABState) -> tuple[jax.Array, jax.Array]:
    """The nearest adversarial image, the original where there is none."""
    return state.adv, -state.distance


def _distance(delta, norm: Norm) -> tuple[jax.Array, float]:
  """The norm of perturbations, (B,), and a bound on its relative error.

  Axis after axis, so that no chain of additions is longer than a side. The maximum between them
  keeps the compiler from merging the sums into one.
  """
  if norm == 'linf':
    return norm_of(delta, norm), 2.0**-22
  size = jnp.square(delta) if norm == 'l2' else jnp.abs(delta)
  for _ in delta.shape[1:]:
    size = jnp.maximum(jnp.sum(size, axis=1), 1e-37)
  return (jnp.sqrt(size) if norm == 'l2' else size), 2.0**-24 * (sum(delta.shape[1:]) + 8)


def _random_start(norm: Norm, images, eps, keys):
  radius = jnp.where(jnp.isfinite(eps), eps, START_RADIUS[norm])
  draw = (draw_uniform if norm == 'linf' else draw_normal)(keys, images.shape[1:])
  start = normalize(draw, norm) * per_image(0.5 * radius, images)
  return jnp.clip(images + start, 0.0, 1.0)


def _to_target(fab: FAB, model: Partial, state: FABState, keys):
  """How far the model is from the goal, below 0 before it, (B,), and its gradient.

  Where any wrong class will do it is the target's logit less the label's, as published; where the
  target is to be reached, its logit less the highest other one, which may be a third class's.
  """

  def gap(logits):
    if fab.targeted:
      return -margin(logits, state.targets)
    return pick(logits, state.targets) - pick(logits, state.labels)

  answer = ask(model, state.point, gap, keys)
  return answer.losses, usable(answer.gradient)


def _nearest(fab: FAB, model: Partial, state: FABState, keys):
  """As `_to_target`, for the class whose linearised boundary is nearest.

  Classes follow one after another, so that memory holds two gradients, not one a class.
  """
  logits, pull_back = jax.vjp(lambda x: logits_of(model, x, keys), state.point)
  gaps = logits - pick(logits, state.labels)[:, None]
  own = jax.nn.one_hot(state.labels, logits.shape[1], dtype=logits.dtype)

  def compare(best, kind):
    gap = jnp.take(gaps, kind, axis=1)
    one = jax.nn.one_hot(kind, logits.shape[1], dtype=logits.dtype)
    gradient = usable(pull_back(one[None] - own)[0])
    dual = length_of(gradient, _dual(fab.norm))
    length = jnp.where(dual > 0, jnp.abs(gap) / jnp.where(dual > 0, dual, 1.0), jnp.inf)
    length = jnp.where(state.labels == kind, jnp.inf, length)
    return select(length < best[0], (length, gap, gradient), best), None

  none = (jnp.full_like(state.distance, jnp.inf), gaps[:, 0], jnp.zeros_like(state.point))
  best, _ = lax.scan(compare, none, jnp.arange(logits.shape[1], dtype=jnp.int32))
  return best[1], best[2]


def _dual(norm: Norm) -> Norm:
  duals: dict[Norm, Norm] = {'linf': 'l1', 'l2': 'l2', 'l1': 'linf'}
  return duals[norm]


def _next_point(fab: FAB, state: FABState, gap, normal):
  """Equation 9: between the projections of the present point and of the original image."""
  away = (state.images - state.point).reshape(gap.shape[0], -1)
  normal = normal.reshape(away.shape)
  origin = state.images.reshape(away.shape)
  here = state.point.reshape(away.shape)
  # Both in one call: half the passes of the solver.
  offset = jnp.concatenate([gap, gap + jnp.sum(normal * away, axis=1)])
  ways = project_hyperplane(
    jnp.concatenate([here, origin]), jnp.concatenate([normal] * 2), offset, fab.norm
  )
  lengths = jnp.maximum(norm_of(ways, fab.norm), 1e-8)
  near, far = jnp.split(lengths, 2)
  alpha = jnp.minimum(near / (near + far), fab.alpha_max)[:, None]
  from_here, from_origin = jnp.split(ways, 2)
  point = (here + fab.eta * from_here) * (1 - alpha)
  point = point + (origin + fab.eta * from_origin) * alpha
  return jnp.clip(point, 0.0, 1.0).reshape(state.images.shape)


# How far beyond the estimated boundary, relative to the way there: far enough that other batch
# sizes and devices, which round differently, agree.
BEYOND = 2e-4


@functools.partial(jit, static_argnames=('targeted', 'steps'))
def final_search(
  model: Partial,
  images: Float[Array, 'B H W C'],
  adv: Float[Array, 'B H W C'],
  labels: Int[Array, ' B'],
  targets: Int[Array, ' B'],
  keys: Key[Array, ' B'],
  targeted: bool,
  steps: int = 10,
) -> Float[Array, 'B H W C']:
  """The nearest adversarial image on each line from an image to its adversarial one.

  The idea of Croce & Hein, arXiv 1907.02044, section 3.3: the secant of the logit margin, here in
  turn with bisection. On a linear model the first secant is the boundary.

  Args:
    model: images to logits.
    images: the originals.
    adv: adversarial images.
    labels: true classes.
    targets: classes to reach, if targeted.
    keys: PRNG keys, for a random model.
    targeted: whether the targets are wanted; any wrong class otherwise.
    steps: queries after the first two.

  Returns:
    Like `adv`, which it is where no nearer one was found.
  """

  def margin(x):
    logits = logits_of(model, x, keys)
    if targeted:
      return -losses.margin(logits, targets)
    return losses.margin(logits, labels)

  def at(share):
    return images + per_image(share, images) * (adv - images)

  def narrow(step, state):
    low, high, low_margin, high_margin, best = state
    rise = high_margin - low_margin
    secant = low - low_margin * (high - low) / jnp.where(rise > 0, rise, 1.0)
    middle = 0.5 * (low + high)
    share = jnp.where((step % 2 == 0) & (rise > 0), secant * (1 + BEYOND), middle)
    share = jnp.clip(share, low, high)
    tried = at(share)
    value = margin(tried)
    good = value >= least
    return (
      jnp.where(good, low, share),
      jnp.where(good, share, high),
      jnp.where(good, low_margin, value),
      jnp.where(good, value, high_margin),
      select(good & (share < high), tried, best),
    )

  none, all_ = jnp.zeros(labels.shape), jnp.ones(labels.shape)
  before = margin(images)
  # Half of what a point that far beyond the boundary of a linear model has.
  least = 0.5 * BEYOND * jnp.abs(before)
  start = (none, all_, before, margin(adv), adv)
  return lax.fori_loop(0, steps, narrow, start)[4]


@face(FAB)
def fab(
  logits_fn: Any,
  images: Any,
  labels: Any,
  *,
  key: Any,
  norm: Norm = 'linf',
  eps: Any = None,
  steps: int = 100,
  restarts: int = 1,
  targets: Any = None,
  num_targets: int | None = None,
  query_batch: int | None = None,
) -> jax.Array:
  """The nearest adversarial images that projections to the decision boundary find.

  Croce & Hein, "Minimally distorted Adversarial Examples with a Fast Adaptive Boundary Attack",
  arXiv 1907.02044, algorithm 1, with a final search along the line to each image found.

  Args:
    norm: 'linf', 'l2' or 'l1', what is kept small.
    eps: radius in units of [0, 1], a number or (B,), within which restarts begin and adversarial
      images count; by default all count, and restarts begin within 0.3, 1 and 5.
    steps: iterations.
    restarts: runs; the first begins at the image, the others at random points.
    num_targets: runs towards this many classes, those of the highest logits after the label's
      (FAB-T, one gradient a step), in place of a gradient for each class; 0, the default, for the
      latter. Not together with targets.
    query_batch: images in a batch, at most; 64 on a CPU and 256 elsewhere by default. Where few are
      left, smaller ones are compiled if they pay.

  Returns:
    float32 (B, H, W, C): the nearest adversarial image found, the original where there is none or
    where it is misclassified by itself. `distances` measures them.
  """
  ...


def _search(target: Target, adv: np.ndarray, which: np.ndarray) -> np.ndarray:
  def chunk(rows):
    image = which[rows]
    arrays = (target.images, adv, target.labels, target.targets)
    arrays = (*(array[image] for array in arrays), target.keys.take(image))
    return final_search(target.model, *arrays, target.targeted)

  return in_batches(chunk, len(which), target.slots, target.images[:0])
