"""Projected gradient ascent of fixed step rules: FGSM, PGD, BIM, MI-FGSM, and the inner step of
adversarial training."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from rest_jax.attacks import ball, losses
from rest_jax.attacks.algorithm import Algorithm, in_chunks, register_state, select
from rest_jax.attacks.ball import ascent, finish, furthest, normalize, project, random_start, usable
from rest_jax.attacks.driver import attack
from rest_jax.attacks.losses import LossName, loss_inputs, loss_name
from rest_jax.attacks.queries import ask, count_queries, fold_each, image_keys
from rest_jax.attacks.threat import Norm, check_choice, check_count, check_key
from rest_jax.errors import UserError
from rest_jax.inputs import is_known, radius

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
class PGD(Algorithm):
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
    logits_fn: float32 images (B, H, W, C) in [0, 1] to logits (B, K), or a `Classifier`.
    images: floats (B, H, W, C) in [0, 1].
    labels: integers (B,).
    key: PRNG key; only random models need one.
    norm: 'linf', 'l2' or 'l1'.
    eps: radius in units of [0, 1], a number or (B,).
    targets: classes to reach, (B,); any wrong one by default.
    loss: 'ce', 'dlr' or 'margin', or a targeted one; or a function of your own, as in `pgd`.
    output: as in `pgd`.
    query_batch: images at a time; None for all.

  Returns:
    float32 (B, H, W, C), in the ball and in [0, 1].

  Raises:
    UserError: bad input.
  """
  loss = loss_name(loss, targets, output)
  inputs = loss_inputs(logits_fn, images, labels, loss, norm, eps, targets)
  if not len(inputs.images):
    return inputs.images
  key = check_key(jax.random.key(0) if key is None else key)
  keys = image_keys(key, inputs.images.shape[0])
  arrays = (inputs.images, inputs.labels, inputs.eps, keys, inputs.targets)
  count_queries(1)
  return in_chunks(lambda a: _fgsm(inputs.model, *a, norm, loss), arrays, query_batch)


@functools.partial(jax.jit, static_argnames=('norm', 'loss'))
def _fgsm(model: Partial, images, labels, eps, keys, targets, norm: Norm, loss: LossName):
  answer = ask(model, images, losses.Loss(loss, labels, targets, targets is not None), keys)
  delta = furthest(usable(answer.gradient), images, norm, eps)
  return finish(images + delta, images, norm, eps)


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
    logits_fn: float32 images (B, H, W, C) in [0, 1] to logits (B, K), or a `Classifier`.
    images: floats (B, H, W, C) in [0, 1].
    labels: integers (B,).
    key: PRNG key; image i uses `fold_in(key, i)`.
    norm: 'linf', 'l2' or 'l1'.
    eps: radius in units of [0, 1], a number or (B,).
    steps: gradient steps.
    step_size: length of a step in units of [0, 1]; a part of what is compiled.
    rel_step: the same in units of the radius; 2.5 / steps where neither is given.
    schedule: 'constant', 'linear' or 'cosine' lengths, the latter two falling to 0.
    random_start: begin at a point drawn uniformly from the ball; at the image otherwise.
    restarts: runs from different starts.
    targets: classes to reach, (B,); any wrong one by default.
    loss: 'ce', 'dlr' or 'margin', or a targeted one. Or a function `(outputs, labels) -> (B,)` of
      your own, to be maximised, of models of any kind: outputs are what `logits_fn` gives, labels
      any arrays (B, ...). It knows no success: the point of its highest value is returned.
    output: 'sigmoid' where the K outputs are decisions, each by itself: labels are then (B, K) of
      0 and 1, any wrong decision is a success, and the loss is 'ce' or 'margin'. One logit alone
      needs no word: labels (B,) are then 0 and 1.
    stop_early: leave an image alone once it is adversarial, one misclassified from the start
      too; otherwise the point of highest loss that is adversarial is sought in all steps.
    query_batch: images at a time; None for all.

  Returns:
    float32 (B, H, W, C), in the ball and in [0, 1].

  Raises:
    UserError: bad input.
  """
  rel_step = _relative(step_size, rel_step, eps, norm, 2.5 / max(steps, 1))
  algorithm = _algorithm(norm, steps, rel_step, schedule, random_start, 0.0, loss, targets, output)
  return _attack(
    algorithm, logits_fn, images, labels, key, eps, targets, restarts, stop_early, query_batch
  )


def bim(logits_fn: Any, images: Any, labels: Any, *, key: Any = None, **options) -> jax.Array:
  """Basic iterative method: Kurakin et al., 2017. `pgd` from the image itself; same arguments."""
  key = jax.random.key(0) if key is None else key
  return pgd(logits_fn, images, labels, key=key, random_start=False, **options)


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

  Its perturbations transfer better between models than those of `pgd`. Arguments, result and
  errors are those of `pgd`, and:

  Args:
    logits_fn: as in `pgd`.
    images: as in `pgd`.
    labels: as in `pgd`.
    key: only random models need one.
    norm: 'linf', 'l2' or 'l1'.
    eps: as in `pgd`.
    steps: gradient steps.
    step_size: as in `pgd`.
    rel_step: as in `pgd`; 1 / steps where neither is given.
    decay: of the accumulated gradient, mu in equation 6.
    targets: as in `pgd`.
    loss: as in `pgd`.
    output: as in `pgd`.
    stop_early: as in `pgd`; off by default, because more loss transfers better.
    query_batch: as in `pgd`.

  Returns:
    As `pgd`.
  """
  key = jax.random.key(0) if key is None else key
  rel_step = _relative(step_size, rel_step, eps, norm, 1 / max(steps, 1))
  algorithm = _algorithm(norm, steps, rel_step, 'constant', False, decay, loss, targets, output)
  return _attack(
    algorithm, logits_fn, images, labels, key, eps, targets, 1, stop_early, query_batch
  )


def _algorithm(norm, steps, rel_step, schedule, random_start, decay, loss, targets, output) -> PGD:
  check_count('steps', steps)
  check_choice('schedule', schedule, SCHEDULES)
  if not 0 <= decay < math.inf:
    raise UserError(f'decay is a number from 0, not {decay!r}')
  name, targeted = loss_name(loss, targets, output), targets is not None
  return PGD(norm, int(steps), rel_step, schedule, bool(random_start), decay, name, targeted)


def _attack(algorithm, logits_fn, images, labels, key, eps, targets, restarts, early, batch):
  inputs = loss_inputs(logits_fn, images, labels, algorithm.loss, algorithm.norm, eps, targets)
  return attack(algorithm, inputs, key, restarts=restarts, stop_early=early, query_batch=batch)


def _relative(step_size: Any, rel_step: Any, eps: Any, norm: Norm, default: float) -> float:
  if step_size is not None and rel_step is not None:
    raise UserError('give step_size or rel_step, not both')
  value = default if rel_step is None else rel_step
  if step_size is not None:
    if np.shape(eps) or not is_known(eps):
      raise UserError('step_size needs one number as eps; give rel_step, in units of the radius')
    whole = radius(eps, norm, infinite=True)
    # Rounded, so that an equal ratio is an equal program.
    value = float(f'{step_size / whole:.6g}') if whole > 0 else 0.0
  if not 0 <= value < math.inf:
    raise UserError(f'the length of a step is a number from 0, not {value!r}')
  return float(value)


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
