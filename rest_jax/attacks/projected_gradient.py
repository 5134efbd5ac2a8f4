"""Projected gradient ascent of fixed step rules: FGSM, PGD, BIM, MI-FGSM, and the inner step of
adversarial training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from rest_jax.attacks import ball, losses
from rest_jax.attacks.algorithm import State, register_state, select
from rest_jax.attacks.ball import ascent, finish, furthest, normalize, project, random_start, usable
from rest_jax.attacks.driver import Given, IterativeAttack, Outcome, attack
from rest_jax.attacks.losses import LossName, loss_inputs, loss_name
from rest_jax.attacks.queries import ask, fold_each, image_keys
from rest_jax.attacks.registry import face, register
from rest_jax.errors import UserError
from rest_jax.inputs import Norm, check_choice, check_count, is_known, radius, widest

SCHEDULES = ('constant', 'linear', 'cosine')


@register_state
@dataclasses.dataclass(frozen=True)
class PGDState(State):
  """`algorithm.State`, and the current point, its velocity, and the point of highest loss."""

  point: jax.Array
  velocity: jax.Array
  best: jax.Array
  best_loss: jax.Array


@register('fgsm', 'one gradient step: a first look, and training')
@dataclasses.dataclass(frozen=True, kw_only=True)
class FGSM(IterativeAttack):
  """One step to the point of the ball where the linearised loss is highest; as `fgsm`.

  Attributes:
    loss: a name of `losses.MIN_CLASSES`, or a function of one's own, which knows no success.
    output: 'sigmoid' where the outputs are decisions, each by itself.
  """

  loss: LossName = 'ce'
  output: str = 'softmax'

  @property
  def length(self) -> int:
    """One step."""
    return 1

  def init(self, model: Partial, images, labels, eps, keys, targets=None) -> State:
    """At the image; asks the model nothing."""
    del model
    return State.begin(images, labels, eps, keys, targets)

  def step(self, model: Partial, state: State) -> State:
    """Asks at the image and goes; where it went is not evaluated."""
    loss = losses.Loss(self.loss, state.labels, state.targets, self.targeted)
    gradient = usable(ask(model, state.images, loss, state.keys).gradient)
    adv = state.images + furthest(gradient, state.images, self.norm, state.eps)
    adv = finish(adv, state.images, self.norm, state.eps)
    return dataclasses.replace(state, adv=adv, iteration=state.iteration + 1)

  def carry_out(self, given: Given, key: Any) -> Outcome:
    """Attacks those images too that are misclassified."""
    loss = loss_name(self.loss, given.targets, self.output)
    inputs = loss_inputs(given, loss, self.norm)
    algorithm = dataclasses.replace(self, loss=loss, targeted=given.targets is not None)
    return attack(algorithm, inputs, key, stop_early=False, query_batch=self.query_batch)


@register('pgd', 'the plain baseline; its step size matters')
@dataclasses.dataclass(frozen=True, kw_only=True)
class PGD(IterativeAttack):
  """Projected gradient ascent, with momentum on request; as `pgd`.

  Attributes:
    steps: gradient steps.
    step_size: length of a step in units of [0, 1].
    rel_step: the same in units of the radius; 2.5 / steps where neither is given.
    schedule: of the lengths: 'constant', or falling to 0 ('linear', 'cosine').
    random_start: begin at a point drawn uniformly from the ball.
    decay: of the momentum (0 for none): Dong et al., 2018, equation 6.
    restarts: runs from different starts.
    loss: a name of `losses.MIN_CLASSES`, or a function of one's own, which knows no success.
    output: 'sigmoid' where the outputs are decisions, each by itself.
    stop_early: leave an image alone once it is adversarial.
  """

  whole: ClassVar[float] = 2.5  # of all steps, in units of the radius, where no length is given

  steps: int = 40
  step_size: float | None = None
  rel_step: float | None = None
  schedule: str = 'constant'
  random_start: bool = True
  decay: float = 0.0
  restarts: int = 1
  loss: LossName = 'ce'
  output: str = 'softmax'
  stop_early: bool = True

  def __post_init__(self):
    check_count('steps', self.steps)
    check_choice('schedule', self.schedule, SCHEDULES)
    if not 0 <= self.decay < math.inf:
      raise UserError(f'decay is a number from 0, not {self.decay!r}')
    if self.step_size is not None and self.rel_step is not None:
      raise UserError('give step_size or rel_step, not both')

  @property
  def length(self) -> int:
    """Queries: the starting point's and one a step."""
    return self.steps + 1

  def carry_out(self, given: Given, key: Any) -> Outcome:
    """With steps in units of the radius, and a loss that fits the outputs."""
    loss = loss_name(self.loss, given.targets, self.output)
    inputs = loss_inputs(given, loss, self.norm)
    length = self._relative(given.eps, widest(self.norm, inputs.images.shape[1:]))
    algorithm = dataclasses.replace(
      self, loss=loss, step_size=None, rel_step=length, targeted=given.targets is not None
    )
    return attack(
      algorithm,
      inputs,
      key,
      restarts=self.restarts,
      stop_early=self.stop_early,
      query_batch=self.query_batch,
    )

  def init(self, model: Partial, images, labels, eps, keys, targets=None) -> PGDState:
    """At the image or at a random point; asks the model nothing."""
    del model
    point = images
    if self.random_start:
      point = finish(images + random_start(keys, images, self.norm, eps), images, self.norm, eps)
    return PGDState.begin(
      *(images, labels, eps, keys, targets),
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
    length = state.eps * lengths[jnp.minimum(state.iteration, self.steps - 1)]
    delta = state.point + ascent(gradient, self.norm, length) - state.images
    delta = project(delta, state.images, self.norm, state.eps)
    return finish(state.images + delta, state.images, self.norm, state.eps), velocity

  def _lengths(self) -> np.ndarray:
    rel_step = self.whole / self.steps if self.rel_step is None else self.rel_step
    t = np.arange(self.steps) / self.steps
    shape = {'constant': np.ones_like(t), 'linear': 1 - t, 'cosine': (1 + np.cos(np.pi * t)) / 2}
    return (rel_step * shape[self.schedule]).astype(np.float32)

  def _relative(self, eps: Any, most: float) -> float:
    """The length of a step in units of the radius: eps, or `most` where that is larger."""
    value = self.whole / self.steps if self.rel_step is None else self.rel_step
    if self.step_size is not None:
      if np.shape(eps) or not is_known(eps):
        raise UserError('step_size needs one number as eps; give rel_step, in units of the radius')
      whole = min(radius(eps, self.norm, infinite=True), most)
      # Rounded, so that an equal ratio is an equal program.
      value = float(f'{self.step_size / whole:.6g}') if whole > 0 else 0.0
    if not 0 <= value < math.inf:
      raise UserError(f'the length of a step is a number from 0, not {value!r}')
    return float(value)


@register('mi_fgsm', 'momentum: perturbations that transfer')
@dataclasses.dataclass(frozen=True, kw_only=True)
class MIFGSM(PGD):
  """Projected gradient ascent with momentum from the image itself; as `mi_fgsm`."""

  whole: ClassVar[float] = 1.0

  steps: int = 10
  random_start: bool = False
  decay: float = 1.0
  stop_early: bool = False


@face(FGSM)
def fgsm(
  logits_fn: Any,
  images: Any,
  labels: Any,
  *,
  key: Any = None,
  norm: Norm = 'linf',
  eps: Any,
  targets: Any = None,
  loss: LossName = 'ce',
  output: str = 'softmax',
  query_batch: int | None = None,
) -> jax.Array:
  """Fast gradient sign method: Goodfellow et al., "Explaining and harnessing", 2015, section 4.

  In L2 and L1 too it goes to the point of the ball within [0, 1] where the linearised loss is
  highest; in Linf that is images + eps sign(gradient), clipped.

  Args:
    loss: 'ce', 'dlr' or 'margin', or a targeted one; or a function `(outputs, labels) -> (B,)` of
      your own, to be maximised.
  """
  ...


@face(PGD)
def pgd(
  logits_fn: Any,
  images: Any,
  labels: Any,
  *,
  key: Any,
  norm: Norm = 'linf',
  eps: Any,
  steps: int = 40,
  step_size: float | None = None,
  rel_step: float | None = None,
  schedule: str = 'constant',
  random_start: bool = True,
  restarts: int = 1,
  targets: Any = None,
  loss: LossName = 'ce',
  output: str = 'softmax',
  stop_early: bool = True,
  query_batch: int | None = None,
) -> jax.Array:
  """Projected gradient descent: Madry et al., "Towards deep learning models resistant", 2018.

  Steps along the sign (Linf), the gradient (L2) or the signs of its largest 5 % (L1), each
  followed by the projection onto ball and [0, 1]. Every point is evaluated, the last one too: of
  an image that was fooled an adversarial point is returned, of another the one of highest loss.

  Args:
    rel_step: the same in units of the radius; 2.5 / steps where neither is given.
    schedule: 'constant', 'linear' or 'cosine' lengths, the latter two falling to 0.
    random_start: begin at a point drawn uniformly from the ball; at the image otherwise.
    loss: 'ce', 'dlr' or 'margin', or a targeted one. Or a function `(outputs, labels) -> (B,)` of
      your own, to be maximised, of models of any kind: outputs are what `logits_fn` gives, labels
      any arrays (B, ...). It knows no success: the point of its highest value is returned.
    output: 'sigmoid' where the K outputs are decisions, each by itself: labels are then (B, K) of
      0 and 1, any wrong decision is a success, and the loss is 'ce' or 'margin'. One logit alone
      needs no word: labels (B,) are then 0 and 1.
    stop_early: leave an image alone once it is adversarial, one misclassified from the start
      too; otherwise the point of highest loss that is adversarial is sought in all steps.
  """
  ...


@face(PGD, random_start=False)
def bim(
  logits_fn: Any,
  images: Any,
  labels: Any,
  *,
  key: Any = None,
  norm: Norm = 'linf',
  eps: Any,
  steps: int = 40,
  step_size: float | None = None,
  rel_step: float | None = None,
  schedule: str = 'constant',
  targets: Any = None,
  loss: LossName = 'ce',
  output: str = 'softmax',
  stop_early: bool = True,
  query_batch: int | None = None,
) -> jax.Array:
  """Basic iterative method: Kurakin et al., "Adversarial examples in the physical world", 2017.

  It is `pgd` from the image itself, in one run.

  Args:
    rel_step: the same in units of the radius; 2.5 / steps where neither is given.
    schedule: 'constant', 'linear' or 'cosine' lengths, the latter two falling to 0.
    loss: 'ce', 'dlr' or 'margin', or a targeted one; or a function `(outputs, labels) -> (B,)` of
      your own, of which the point of highest value is returned.
    stop_early: leave an image alone once it is adversarial, one misclassified from the start too.
  """
  ...


@face(MIFGSM)
def mi_fgsm(
  logits_fn: Any,
  images: Any,
  labels: Any,
  *,
  key: Any = None,
  norm: Norm = 'linf',
  eps: Any,
  steps: int = 10,
  step_size: float | None = None,
  rel_step: float | None = None,
  decay: float = 1.0,
  targets: Any = None,
  loss: LossName = 'ce',
  output: str = 'softmax',
  stop_early: bool = False,
  query_batch: int | None = None,
) -> jax.Array:
  """Momentum iterative FGSM: Dong et al., "Boosting adversarial attacks with momentum", 2018.

  Its perturbations transfer better between models than those of `pgd`.

  Args:
    rel_step: the same in units of the radius; 1 / steps where neither is given.
    decay: of the accumulated gradient, mu in equation 6.
    loss: 'ce', 'dlr' or 'margin', or a targeted one; or a function `(outputs, labels) -> (B,)` of
      your own, of which the point of highest value is returned.
    stop_early: leave an image alone once it is adversarial; off by default, because more loss
      transfers better.

  Returns:
    float32 (B, H, W, C), in the ball and in [0, 1]: of an image that was fooled an adversarial
    point, of another the one of highest loss.
  """
  ...


def pgd_delta(
  loss_fn: Callable[[jax.Array], jax.Array],
  images: jax.Array,
  key: jax.Array,
  norm: Norm,
  eps: jax.Array | float,
  step_size: jax.Array | float,
  steps: int,
  random_start: bool = True,
  start: jax.Array | None = None,
) -> jax.Array:
  """Projected gradient ascent on a loss.

  Madry et al., "Towards deep learning models resistant to adversarial attacks", 2018, section 2.1.
  With steps = 1, a random start and step_size = 1.25 eps it is the fast training of Wong et al.,
  "Fast is better than free", 2020. No gradient flows through the result. Inside `shard_map`, fold
  the device's index into the key first.

  Args:
    loss_fn: images (B, ...) to the loss of each (B,), to be maximised.
    images: float32 (B, ...) in [0, 1].
    key: PRNG key; image i uses `fold_in(key, i)`.
    norm: 'linf', 'l2' or 'l1'.
    eps: radius, a scalar or (B,).
    step_size: length of a step in the norm, a scalar or (B,).
    steps: gradients, at least 0.
    random_start: begin at a point drawn uniformly from the ball, at the images otherwise.
    start: a perturbation (B, ...) to begin with instead; it is projected first.

  Returns:
    The perturbation (B, ...): in the ball and such that images + it is in [0, 1], to rounding.
  """
  images = lax.stop_gradient(images)
  delta = jnp.zeros_like(images)
  if start is not None:
    delta = ball.project(lax.stop_gradient(start), images, norm, eps)
  elif random_start:
    keys = image_keys(key, images.shape[0])
    delta = ball.random_start(keys, images, norm, eps)

  def climb(_, delta):
    gradient = usable(jax.grad(lambda d: jnp.sum(loss_fn(images + d)))(delta))
    return ball.project(delta + ascent(gradient, norm, step_size), images, norm, eps)

  return lax.stop_gradient(lax.fori_loop(0, steps, climb, delta))
