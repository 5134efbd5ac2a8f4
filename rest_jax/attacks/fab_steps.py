"""FAB, the Fast Adaptive Boundary attack: the nearest adversarial image, by projections.

Croce & Hein, "Minimally distorted Adversarial Examples with a Fast Adaptive Boundary Attack",
arXiv 1907.02044, algorithm 1, with the published code's constants. The targeted form (FAB-T of
AutoAttack, arXiv 2003.01690, section 5) takes one class's boundary instead of the nearest one, so
that its cost does not grow with the number of classes.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, Key

from rest_jax.attacks import draws
from rest_jax.attacks.algorithm import register_state, select
from rest_jax.attacks.directions import usable
from rest_jax.attacks.fab_projections import project_hyperplane
from rest_jax.attacks.losses import fooled, margin, pick
from rest_jax.attacks.projections import length_of, norm_of, normalize, per_image
from rest_jax.attacks.queries import ask, fold_each, logits_of
from rest_jax.attacks.threat import Norm

# Where no radius is given, random starts are drawn in these balls (the published defaults).
START_RADIUS = {'linf': 0.3, 'l2': 1.0, 'l1': 5.0}


@register_state
@dataclasses.dataclass(frozen=True)
class FABState:
  """A batch under attack: `algorithm.State`, and

  Attributes:
    point: where the attack stands.
    distance: norm of the perturbation of `adv`, (B,); inf where there is none.
  """

  images: Float[Array, 'B H W C']
  labels: Int[Array, ' B']
  targets: Int[Array, ' B']
  eps: Float[Array, ' B']
  keys: Key[Array, ' B']
  iteration: Int[Array, ' B']
  adv: Float[Array, 'B H W C']
  success: Bool[Array, ' B']
  point: Float[Array, 'B H W C']
  distance: Float[Array, ' B']


@dataclasses.dataclass(frozen=True)
class FAB:
  """The algorithm and its settings, in the protocol `algorithm.Algorithm`.

  Attributes:
    norm: 'linf', 'l2' or 'l1'.
    targeted: whether only the target class is a success; any wrong class is one otherwise.
    to_target: steps lead to the boundary with the target class; to the nearest one otherwise,
      which takes a gradient for each class.
    steps: iterations.
    random_start: whether to begin at a random point, half the radius away.
    alpha_max: largest weight of the projection of the original image.
    eta: overshooting of the boundary.
    beta: an adversarial point's distance is multiplied by this before the next step.
  """

  norm: Norm
  targeted: bool = False
  to_target: bool = False
  steps: int = 100
  random_start: bool = False
  alpha_max: float = 0.1
  eta: float = 1.05
  beta: float = 0.9

  queries_per_step: ClassVar[int] = 2

  def init(self, model: Partial, images, labels, eps, keys, targets=None) -> FABState:
    """The original images, or random points near them."""
    del model
    return FABState(
      images=images,
      labels=labels,
      targets=labels if targets is None else targets,
      eps=eps,
      keys=keys,
      iteration=jnp.zeros_like(labels),
      adv=images,
      success=jnp.zeros(labels.shape, bool),
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
  draw = (draws.uniform if norm == 'linf' else draws.normal)(keys, images.shape[1:])
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
