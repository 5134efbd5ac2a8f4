"""Auto-PGD as an algorithm.

Croce & Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks", 2020, section 3; in L1 "Mind the box", 2021, section 4.

Step by step the published code (github.com/fra31/auto-attack), each image at its own iteration.
Where it deviates: after each step `finish` takes rounding back, so that what was evaluated can be
returned.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from rest_jax.attacks import losses
from rest_jax.attacks.algorithm import State, in_chunks, register_state, select
from rest_jax.attacks.ball import (
  draw_normal,
  draw_uniform,
  finish,
  into_ball,
  normalize,
  per_image,
  sparse_sign,
  total,
  usable,
)
from rest_jax.attacks.driver import IterativeAttack, Outcome, attack, clean_logits
from rest_jax.attacks.losses import LossName, is_own, loss_inputs, loss_name
from rest_jax.attacks.queries import Answer, ask, fold_each, image_keys
from rest_jax.attacks.registry import face, register
from rest_jax.attacks.threat import Given, Inputs, check_key
from rest_jax.errors import UserError
from rest_jax.inputs import Norm, check_count
from rest_jax.ops.platform import jit


class Turn(NamedTuple):
  """What each image does at its own step, (B,) each; as `Schedule`."""

  radius: jax.Array
  start: jax.Array
  window: jax.Array


class Schedule(NamedTuple):
  """What a run does at each of its steps, (steps,) each.

  Attributes:
    radius: of the ball, in units of eps: over 1 in the early stages of the L1 schedule.
    start: whether a stage begins here: the point is evaluated without a move.
    window: moves since the last checkpoint where one is due after this step, else 0.
  """

  radius: np.ndarray
  start: np.ndarray
  window: np.ndarray

  def at(self, iteration: jax.Array) -> Turn:
    """What is due at steps (B,)."""
    return Turn(*(jnp.asarray(column)[iteration] for column in self))


@functools.lru_cache
def make_table(norm: Norm, iterations: int, large_radii: bool) -> Schedule:
  """What a run does at each of its steps.

  Args:
    norm: of the ball; L1 has checkpoints of its own.
    iterations: gradient steps.
    large_radii: whether three and two times the radius come first, with 30 % of the steps each.

  Returns:
    The schedule, an entry a step and one for the start of each stage.
  """
  stages = [(1.0, iterations)]
  if large_radii:
    early = math.ceil(0.3 * iterations)
    stages = [(3.0, early), (2.0, early), (1.0, max(iterations - 2 * early, 0))]
  rows = [
    (radius, at == 0, window)
    for radius, count in stages
    for at, window in enumerate([0, *_windows(norm, iterations, count)])
  ]
  radius, start, window = (np.array(column) for column in zip(*rows, strict=True))
  return Schedule(radius.astype(np.float32), start, window.astype(np.float32))


def _windows(norm: Norm, iterations: int, count: int) -> list[int]:
  """For each of `count` moves the window of the checkpoint after it, 0 where there is none.

  Linf and L2: 22 % of all iterations first, each later one 3 % shorter down to 6 %. L1: 4 % of
  the stage's.
  """
  window, least, less = (max(int(share * iterations), 1) for share in (0.22, 0.06, 0.03))
  if norm == 'l1':
    window, less = max(int(0.04 * count), 1), 0
    least = window
  windows, since = [0] * count, 0
  for i in range(count):
    since += 1
    if since == window:
      windows[i], since = window, 0
      window = max(window - less, least)
  return windows


_L1_CUT = 1.5  # divides the sparsity and the step size at a checkpoint, in L1
_L1_LEAST_STEP = 0.1  # in units of the radius


@register_state
@dataclasses.dataclass(frozen=True)
class APGDState(State):
  """`algorithm.State`, and what the step rule remembers of each image.

  Attributes:
    point: the current point; `gradient` is the loss's there.
    before: the point before, for the momentum.
    best: the point of highest loss; `best_gradient` and `best_loss` are those there.
    step_size: in units of the current radius.
    last_loss: of the step before.
    rises: steps since the checkpoint at which the loss rose.
    checked_loss: the highest loss at the last checkpoint.
    reduced: whether the step size was halved there.
    fresh: whether no move was made since the stage's start.
    share: of the pixels that move (L1).
    support: pixels that `best` had changed at the last checkpoint (L1).
  """

  point: jax.Array
  before: jax.Array
  gradient: jax.Array
  best: jax.Array
  best_gradient: jax.Array
  best_loss: jax.Array
  step_size: jax.Array
  last_loss: jax.Array
  rises: jax.Array
  checked_loss: jax.Array
  reduced: jax.Array
  fresh: jax.Array
  share: jax.Array
  support: jax.Array


@register('apgd_ce', 'PGD that sets its own steps: the first choice', loss='ce')
@register('apgd_dlr', 'where the scale of the logits hides gradients', loss='dlr')
@register('apgd_t', 'one run a target: strongest and slowest', loss='dlr_targeted')
@dataclasses.dataclass(frozen=True, kw_only=True)
class APGD(IterativeAttack):
  """Auto-PGD; as `apgd`.

  Attributes:
    steps: gradient steps.
    loss: a name of `losses.MIN_CLASSES`, or a function of one's own, which knows no success.
      'dlr_targeted' without `targeted` wants any wrong class and heads for the target, in turn for
      each of those that follow in the logits.
    output: 'sigmoid' where the outputs are decisions, each by itself.
    restarts: runs from different starts.
    num_targets: how many classes 'dlr_targeted' tries, 9 by default; all others where there are
      fewer.
    large_radii: begin with three and two times the radius, 30 % of the steps each (L1).
    stop_early: leave an image alone once it is adversarial.
    rho: share of rising steps below which the step size is halved.
  """

  steps: int = 100
  loss: LossName = 'ce'
  output: str = 'softmax'
  restarts: int = 1
  num_targets: int | None = None
  large_radii: bool = False
  stop_early: bool = True
  rho: float = 0.75

  def __post_init__(self):
    check_count('steps', self.steps)
    if self.num_targets is not None:
      check_count('num_targets', self.num_targets)

  @property
  def length(self) -> int:
    """Queries: one a step, and one for the start of each stage."""
    return len(self._table().start)

  def carry_out(self, given: Given, key: Any) -> Outcome:
    """Towards each of several targets in turn, where the loss asks for that."""
    each = self.loss == 'dlr_targeted' and given.targets is None and self.output == 'softmax'
    if self.num_targets is not None and not each:
      raise UserError(
        "num_targets are those of loss='dlr_targeted' without targets; leave them out"
      )
    loss = self.loss if each else loss_name(self.loss, given.targets, self.output)
    inputs = loss_inputs(given, loss, self.norm, fall_back=True)
    restarts = self.restarts
    if each:
      count = min(9 if self.num_targets is None else self.num_targets, inputs.num_classes - 1)
      restarts *= count
      if len(inputs.images):
        inputs = _with_targets(inputs, count, key, self.query_batch)
    if not is_own(loss) and inputs.num_classes < losses.MIN_CLASSES.get(str(loss), 0):
      loss = str(loss).replace('dlr', 'margin')
    algorithm = dataclasses.replace(self, loss=loss, targeted=given.targets is not None)
    driving = {'stop_early': self.stop_early, 'query_batch': self.query_batch}
    return attack(algorithm, inputs, key, restarts=restarts, **driving)

  def init(self, model: Partial, images, labels, eps, keys, targets=None) -> APGDState:
    """At a random point; asks the model nothing."""
    del model
    zeros, ones = jnp.zeros(eps.shape), jnp.ones(eps.shape)
    radius = eps * self._table().radius[0]
    point = finish(images + self._start(keys, images, radius), images, self.norm, radius)
    return APGDState.begin(
      *(images, labels, eps, keys, targets),
      point=point,
      before=point,
      gradient=jnp.zeros_like(images),
      best=point,
      best_gradient=jnp.zeros_like(images),
      best_loss=-jnp.inf * ones,
      step_size=ones,
      last_loss=zeros,
      rises=zeros,
      checked_loss=zeros,
      reduced=ones > 0,
      fresh=ones > 0,
      share=ones,
      support=ones,
    )

  def step(self, model: Partial, state: APGDState) -> APGDState:
    """Moves, asks at the new point, and adapts the step size where a checkpoint is due."""
    table = self._table().at(state.iteration)
    radius = state.eps * table.radius
    state = select(table.start, self._begin(state, radius), self._move(state, radius))
    answer = ask(
      model,
      state.point,
      losses.Loss(self.loss, state.labels, state.targets, self.targeted),
      fold_each(state.keys, state.iteration),
    )
    state = self._note(state, answer, table)
    check = self._check_l1 if self.norm == 'l1' else self._check
    state = select(table.window > 0, check(state, table.window), state)
    return dataclasses.replace(state, iteration=state.iteration + 1)

  def outcome(self, state: APGDState) -> tuple[jax.Array, jax.Array]:
    """The adversarial image, else the one of highest loss."""
    return select(state.success, state.adv, state.best), state.best_loss

  def _start(self, keys: jax.Array, images: jax.Array, eps: jax.Array) -> jax.Array:
    shape = images.shape[1:]
    draw = (draw_uniform if self.norm == 'linf' else draw_normal)(keys, shape)
    if self.norm != 'l1':
      draw = per_image(eps, images) * normalize(draw, self.norm)
    return into_ball(draw, images, self.norm, eps)

  def _begin(self, state: APGDState, radius: jax.Array) -> APGDState:
    """The first question of a stage is put where the stage before found the highest loss."""
    if self.large_radii:
      delta = into_ball(state.best - state.images, state.images, self.norm, radius)
      moved = finish(state.images + delta, state.images, self.norm, radius)
      changed = _count(moved - state.images)
      share, support = changed / math.prod(state.images.shape[1:]) / _L1_CUT, changed
    else:
      moved = state.point
      share = jnp.full(radius.shape, 0.2)
      support = jnp.full(radius.shape, float(math.prod(state.images.shape[1:])))
    return dataclasses.replace(
      state,
      point=moved,
      before=moved,
      step_size=jnp.full(radius.shape, 1.0 if self.norm == 'l1' else 2.0),
      share=share,
      support=support,
    )

  def _move(self, state: APGDState, radius: jax.Array) -> APGDState:
    length = per_image(state.step_size * radius, state.point)
    momentum = state.point - state.before
    # The first move of a stage has none.
    weight = per_image(jnp.where(state.fresh, 1.0, 0.75), state.point)

    def inside(point):
      return state.images + into_ball(point - state.images, state.images, self.norm, radius)

    if self.norm == 'l1':
      new = inside(state.point + length * sparse_sign(state.gradient, state.share))
    else:
      way = jnp.sign(state.gradient)
      way = way if self.norm == 'linf' else normalize(state.gradient, 'l2')
      plain = inside(state.point + length * way)
      new = inside(state.point + (plain - state.point) * weight + momentum * (1 - weight))
    new = finish(new, state.images, self.norm, radius)
    return dataclasses.replace(state, point=new, before=state.point)

  def _note(self, state: APGDState, answer: Answer, table: Turn) -> APGDState:
    gradient = usable(answer.gradient)
    higher = table.start | (answer.losses > state.best_loss)
    hit = losses.success_of(self.loss, answer.logits, state.labels, state.targets, self.targeted)
    hit &= table.radius == 1
    best_loss = jnp.where(higher, answer.losses, state.best_loss)
    # The published count compares the first move's loss with a 0, not with the start's.
    zero = losses.zero_of(self.loss, state.labels, state.targets)
    rises = state.rises + (answer.losses > state.last_loss).astype(jnp.float32)
    return dataclasses.replace(
      state,
      adv=select(hit, state.point, state.adv),
      success=state.success | hit,
      gradient=gradient,
      best=select(higher, state.point, state.best),
      best_gradient=select(higher, gradient, state.best_gradient),
      best_loss=best_loss,
      last_loss=jnp.where(table.start, zero, answer.losses),
      rises=jnp.where(table.start, 0.0, rises),
      checked_loss=jnp.where(table.start, best_loss, state.checked_loss),
      reduced=table.start | state.reduced,
      fresh=table.start,
    )

  def _check(self, state: APGDState, window: jax.Array) -> APGDState:
    """Halves the step size and goes back to the best point: conditions 1 and 2 of section 3.1."""
    seldom = state.rises <= window * self.rho
    stuck = ~state.reduced & (state.checked_loss >= state.best_loss)
    reduce = seldom | stuck
    return dataclasses.replace(
      state,
      step_size=jnp.where(reduce, state.step_size / 2, state.step_size),
      point=select(reduce, state.best, state.point),
      gradient=select(reduce, state.best_gradient, state.gradient),
      rises=jnp.zeros_like(state.rises),
      checked_loss=state.best_loss,
      reduced=reduce,
    )

  def _check_l1(self, state: APGDState, window: jax.Array) -> APGDState:
    """Adapts the sparsity; a step size that did not make the best point sparser is cut."""
    del window
    support = _count(state.best - state.images)
    sparser = support < 0.95 * state.support
    size = jnp.where(sparser, 1.0, jnp.maximum(state.step_size / _L1_CUT, _L1_LEAST_STEP))
    return dataclasses.replace(
      state,
      step_size=size,
      share=support / math.prod(state.images.shape[1:]) / _L1_CUT,
      support=support,
      point=select(sparser, state.best, state.point),
      gradient=select(sparser, state.best_gradient, state.gradient),
    )

  def _table(self) -> Schedule:
    return make_table(self.norm, self.steps, self.large_radii)


def _count(delta: jax.Array) -> jax.Array:
  """Values that are not 0, of each image (B,)."""
  return total((delta != 0).astype(jnp.float32)).reshape(-1)


@face(APGD)
def apgd(
  logits_fn: Any,
  images: Any,
  labels: Any,
  *,
  key: Any,
  norm: Norm = 'linf',
  eps: Any,
  steps: int = 100,
  loss: LossName = 'ce',
  output: str = 'softmax',
  restarts: int = 1,
  targets: Any = None,
  num_targets: int | None = None,
  large_radii: bool = False,
  stop_early: bool = True,
  query_batch: int | None = None,
) -> jax.Array:
  """Auto-PGD: a gradient attack that sets its own step sizes.

  Croce & Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
  parameter-free attacks", 2020, section 3; in L1 "Mind the box! l1-APGD for sparse adversarial
  attacks on image classifiers", 2021, section 4.

  Args:
    loss: 'ce', 'dlr', 'margin' or 'dlr_targeted'. The last without `targets` is APGD-T of
      AutoAttack: any wrong class counts, and each restart is run towards each of the classes
      that follow in the logits of the image. Where a model has too few classes for the DLR, three
      and four, these two follow the margin instead, as in `auto_attack`. Or a function
      `(outputs, labels) -> (B,)` of your own, to be maximised, which knows no success.
    targets: classes to reach, (B,); any wrong one by default. With 'dlr' its ratio is that of the
      target's logit and the highest other one.
    num_targets: how many classes APGD-T tries, 9 by default; all others where there are fewer.
    large_radii: begin with three and two times the radius, as AutoAttack does in L1.
    stop_early: leave an image alone once it is adversarial, one misclassified from the start
      too.

  Returns:
    float32 (B, H, W, C), in the ball and in [0, 1]: of an image that was fooled an adversarial
    point, of another the one of highest loss.
  """
  ...


def _with_targets(inputs: Inputs, count: int, key: Any, query_batch: int | None) -> Inputs:
  keys = image_keys(check_key(key), len(inputs.images))

  def chunk(arrays):
    images, labels, chunk_keys = arrays
    return _next_classes(clean_logits(inputs.model, images, chunk_keys), labels, count)

  arrays = (inputs.images, inputs.labels, keys)
  return inputs._replace(targets=in_chunks(chunk, arrays, query_batch))


@functools.partial(jit, static_argnames='count')
def _next_classes(logits: jax.Array, labels: jax.Array, count: int) -> jax.Array:
  """The classes of the highest logits other than the label, (B, count)."""
  own = jnp.arange(logits.shape[1])[None] == labels[:, None]
  order = jnp.argsort(jnp.where(own, jnp.inf, logits), axis=1, descending=True, stable=True)
  return order[:, 1 : count + 1].astype(jnp.int32)
