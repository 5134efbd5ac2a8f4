"""Projected gradient ascent with fixed step rules, as an algorithm."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from rest_jax.attacks import losses
from rest_jax.attacks.algorithm import register_state, select
from rest_jax.attacks.directions import ascent, usable
from rest_jax.attacks.projections import normalize, project, random_start
from rest_jax.attacks.queries import ask, fold_each
from rest_jax.attacks.rounding import finish
from rest_jax.attacks.threat import Norm

SCHEDULES = ('constant', 'linear', 'cosine')


@register_state
@dataclasses.dataclass(frozen=True)
class PGDState:
  """`algorithm.State`, and the current point, its velocity, and the point of highest loss."""

  images: jax.Array
  labels: jax.Array
  targets: jax.Array
  eps: jax.Array
  keys: jax.Array
  iteration: jax.Array
  adv: jax.Array
  success: jax.Array
  point: jax.Array
  velocity: jax.Array
  best: jax.Array
  best_loss: jax.Array


@dataclasses.dataclass(frozen=True)
class PGD:
  """Projected gradient ascent, with momentum on request.

  Attributes:
    norm: of the ball.
    iterations: gradient steps.
    rel_step: length of a step in units of the radius.
    schedule: of the lengths: 'constant', or falling to 0 ('linear', 'cosine').
    random_start: begin at a point drawn uniformly from the ball.
    decay: of the momentum (0 for none): Dong et al., 2018, equation 6.
    loss: a name of `losses.MIN_CLASSES`, or a function of one's own, which knows no success.
    targeted: whether success is to reach the target.
  """

  norm: Norm
  iterations: int
  rel_step: float
  schedule: str = 'constant'
  random_start: bool = True
  decay: float = 0.0
  loss: losses.LossName = 'ce'
  targeted: bool = False

  @property
  def steps(self) -> int:
    """Queries: the starting point's and one a step."""
    return self.iterations + 1

  def init(self, model: Partial, images, labels, eps, keys, targets=None) -> PGDState:
    """At the image or at a random point; asks the model nothing."""
    del model
    point = images
    if self.random_start:
      point = finish(images + random_start(keys, images, self.norm, eps), images, self.norm, eps)
    return PGDState(
      images=images,
      labels=labels,
      targets=labels if targets is None else targets,
      eps=eps,
      keys=keys,
      iteration=jnp.zeros(eps.shape, jnp.int32),
      adv=images,
      success=jnp.zeros(eps.shape, bool),
      point=point,
      velocity=jnp.zeros_like(images) if self.decay else jnp.zeros_like(images[:, :1, :1, :1]),
      best=point,
      best_loss=jnp.full(eps.shape, -jnp.inf),
    )

  def step(self, model: Partial, state: PGDState) -> PGDState:
    """Asks at the current point, keeps it if it is good, and moves on."""
    keys = fold_each(state.keys, state.iteration)
    answer = ask(
      model,
      state.point,
      losses.Loss(self.loss, state.labels, state.targets, self.targeted),
      keys,
    )
    hit = losses.success_of(self.loss, answer.logits, state.labels, state.targets, self.targeted)
    higher = answer.losses > state.best_loss
    point, velocity = self._move(state, usable(answer.gradient))
    return dataclasses.replace(
      state,
      iteration=state.iteration + 1,
      adv=select(hit & (higher | ~state.success), state.point, state.adv),
      success=state.success | hit,
      point=point,
      velocity=velocity,
      best=select(higher, state.point, state.best),
      best_loss=jnp.where(higher, answer.losses, state.best_loss),
    )

  def outcome(self, state: PGDState) -> tuple[jax.Array, jax.Array]:
    """The adversarial image, else the one of highest loss."""
    return select(state.success, state.adv, state.best), state.best_loss

  def _move(self, state: PGDState, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    velocity = state.velocity
    if self.decay:
      gradient = velocity = self.decay * velocity + normalize(gradient, 'l1')
    lengths = jnp.asarray(self._lengths())
    length = state.eps * lengths[jnp.minimum(state.iteration, self.iterations - 1)]
    delta = state.point + ascent(gradient, self.norm, length) - state.images
    delta = project(delta, state.images, self.norm, state.eps)
    return finish(state.images + delta, state.images, self.norm, state.eps), velocity

  def _lengths(self) -> np.ndarray:
    t = np.arange(self.iterations) / self.iterations
    shape = {'constant': np.ones_like(t), 'linear': 1 - t, 'cosine': (1 + np.cos(np.pi * t)) / 2}
    return (self.rel_step * shape[self.schedule]).astype(np.float32)
