"""Attacks of minimum norm beside FAB: DeepFool, and Carlini & Wagner's.

DeepFool: Moosavi-Dezfooli et al., "DeepFool: a simple and accurate method to fool deep neural
networks", 2016, algorithm 2, in L2 and Linf (section 3.3). Where it deviates: the image keeps to
[0, 1]. Pixels at an end of the range that would be pushed beyond it are left out of the linearised
problem, so that the others take their share.

Carlini & Wagner, in L2: "Towards evaluating the robustness of neural networks", 2017, section 6,
with the binary search and the early abort of the authors' code; every image by itself, with its own
constant c, its own Adam and its own abort. Where it deviates: the abort waits for an image that is
not fooled yet and whose pixels are still on their way from the ends of the range.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from rest_jax.attacks import losses
from rest_jax.attacks.algorithm import State, register_state, select
from rest_jax.attacks.ball import length_of, norm_of, normalize, per_image, usable
from rest_jax.attacks.driver import Given, IterativeAttack, Outcome, attack, keep_nearest
from rest_jax.attacks.queries import ask, fold_each, logits_of
from rest_jax.attacks.registry import face, register
from rest_jax.errors import UserError
from rest_jax.inputs import Norm, check_count

_INSIDE = 0.999999  # the tanh reaches the ends of the pixel range at infinity only
_NO_LIMIT = 1e10
_CHECKS = 10  # of progress in a round
_FLAT = 1e-3  # this near an end of the range the tanh has lost 99.6 % of its slope
_HELD_SHARE = 0.1  # of what drives the image away, as a slope (L2) by pixel


@register_state
@dataclasses.dataclass(frozen=True)
class DeepFoolState(State):
  """`algorithm.State`, and the way so far.

  Attributes:
    distance: of `adv`, infinity where there is none.
    moved: the sum of the perturbations, without overshoot.
    others: the classes to look at, (B, n).
  """

  distance: jax.Array
  moved: jax.Array
  others: jax.Array


@register('deepfool', 'the nearest one, quick and rough')
@dataclasses.dataclass(frozen=True, kw_only=True)
class DeepFool(IterativeAttack):
  """The attack; as `deepfool`.

  With `targeted` only the target will do; its boundary with the highest other class, whosever that
  is, is looked at.

  Attributes:
    steps: linearisations at most.
    overshoot: how much further than the linearised boundary, relative to the perturbation.
    num_classes: classes of the highest logits that are looked at, the label among them; 10 by
      default.
  """

  norms: ClassVar[tuple[str, ...]] = ('l2', 'linf')
  minimum_norm: ClassVar[bool] = True

  norm: Norm = 'l2'
  steps: int = 50
  overshoot: float = 0.02
  num_classes: int | None = None

  def __post_init__(self):
    check_count('steps', self.steps)
    if self.num_classes is not None:
      check_count('num_classes', self.num_classes, 2)
    if not 0 <= self.overshoot < float('inf'):
      raise UserError(f'overshoot is a number from 0, not {self.overshoot!r}')

  @property
  def length(self) -> int:
    """Queries: the image's and one a linearisation."""
    return self.steps + 1

  def carry_out(self, given: Given, key: Any) -> Outcome:
    """Refuses classes to look at beside targets."""
    if self.num_classes is not None and given.targets is not None:
      raise UserError('num_classes are looked at without targets only; leave one of them out')
    return super().carry_out(given, key)

  def init(self, model: Partial, images, labels, eps, keys, targets=None) -> DeepFoolState:
    """At the image; asks the model nothing but its number of classes."""
    shape = jax.eval_shape(lambda x, k: logits_of(model, x, k), images, keys)
    looked_at = 10 if self.num_classes is None else self.num_classes
    count = 1 if self.targeted else min(looked_at, shape.shape[1]) - 1
    no = jnp.zeros(labels.shape, bool)
    return DeepFoolState.begin(
      *(images, labels, eps, keys, targets),
      distance=jnp.where(no, 0.0, jnp.inf),
      moved=jnp.zeros_like(images),
      others=jnp.zeros((labels.shape[0], count), jnp.int32),
    )

  def step(self, model: Partial, state: DeepFoolState) -> DeepFoolState:
    """Asks at the current point; goes to the nearest of the linearised boundaries."""
    point = jnp.clip(state.images + (1 + self.overshoot) * state.moved, 0.0, 1.0)
    keys = fold_each(state.keys, state.iteration)
    logits, pull = jax.vjp(lambda x: logits_of(model, x, keys), point)
    hit = losses.fooled(logits, state.labels, state.targets, self.targeted)
    adv, distance = keep_nearest(point, hit, state.adv, state.distance, state.images, self.norm)
    others = select(state.iteration == 0, self._others(state, logits), state.others)
    rivals = state.labels
    if self.targeted:
      rivals = losses.highest_other(logits, state.targets)
    step = self._nearest(point, rivals, others, logits, pull)
    return dataclasses.replace(
      state,
      iteration=state.iteration + 1,
      adv=adv,
      distance=distance,
      success=(distance < jnp.inf) & (distance <= state.eps),
      moved=(point - state.images) / (1 + self.overshoot) + step,
      others=others,
    )

  def outcome(self, state: DeepFoolState) -> tuple[jax.Array, jax.Array]:
    """The adversarial image, the original where there is none."""
    return state.adv, -state.distance

  def _others(self, state: DeepFoolState, logits: jax.Array) -> jax.Array:
    if self.targeted:
      return state.targets[:, None]
    own = jnp.arange(logits.shape[1])[None] == state.labels[:, None]
    order = jnp.argsort(jnp.where(own, jnp.inf, logits), axis=1, descending=True, stable=True)
    return order[:, 1 : state.others.shape[1] + 1].astype(jnp.int32)

  def _nearest(self, point, rivals, others, logits, pull) -> jax.Array:
    """The shortest step onto one of the boundaries with the rivals (B,), class after class."""
    classes = jnp.arange(logits.shape[1])[None]
    own = (classes == rivals[:, None]).astype(logits.dtype)

    def look(index, found):
      other = (classes == others[:, index][:, None]).astype(logits.dtype)
      slope = _free(usable(pull(other - own)[0]), point)
      gap = jnp.sum(jnp.where(other - own != 0, (own - other) * logits, 0.0), axis=1)
      # The norm of the step is the gap over the dual norm of the slope.
      dual = length_of(slope, 'l1' if self.norm == 'linf' else 'l2')
      length = jnp.where(dual > 0, jnp.abs(gap) / jnp.where(dual > 0, dual, 1.0), jnp.inf)
      unit = jnp.sign(slope) if self.norm == 'linf' else normalize(slope, 'l2')
      way = jnp.where(per_image(dual, slope) > 0, unit * per_image(length, slope), 0.0)
      return select(length < found[1], (way, length), found)

    start = (jnp.zeros_like(point), jnp.full(rivals.shape, jnp.inf))
    return lax.fori_loop(0, others.shape[1], look, start)[0]


def _free(slope: jax.Array, point: jax.Array) -> jax.Array:
  """The slope without pixels that stand at the end of the range it points to."""
  stuck = ((point <= 0) & (slope < 0)) | ((point >= 1) & (slope > 0))
  return jnp.where(stuck, 0.0, slope)


@face(DeepFool)
def deepfool(
  logits_fn: Any,
  images: Any,
  labels: Any,
  *,
  key: Any = None,
  norm: Norm = 'l2',
  steps: int = 50,
  overshoot: float = 0.02,
  num_classes: int | None = None,
  targets: Any = None,
  query_batch: int | None = None,
) -> jax.Array:
  """DeepFool, a quick attack of small norm: Moosavi-Dezfooli et al., 2016, algorithm 2.

  Args:
    norm: 'l2' or 'linf'.
    steps: linearisations at most.
    overshoot: how much further than the linearised boundary, relative to the perturbation.
    num_classes: classes of the highest logits that are looked at, the label among them, from 2; 10
      by default. With targets there is nothing to choose.

  Returns:
    float32 (B, H, W, C) in [0, 1]: the adversarial image, the original where none was found or
    where it is one already. `attacks.distances` measures how far.
  """
  ...


@register_state
@dataclasses.dataclass(frozen=True)
class CWState(State):
  """`algorithm.State`, and what the search remembers of each image.

  Attributes:
    distance: of `adv`, infinity where there is none.
    scale: of the margins: that of the image, so that c has the same effect at any scale of logits.
    weight: c, between `low` (failed) and `high` (succeeded).
    offset: the variable of the optimisation, in tanh space; `mean` and `power` are Adam's.
    checked_loss: the objective at the last check of progress.
    reached: whether this round found an adversarial image.
  """

  distance: jax.Array
  scale: jax.Array
  weight: jax.Array
  low: jax.Array
  high: jax.Array
  offset: jax.Array
  mean: jax.Array
  power: jax.Array
  checked_loss: jax.Array
  reached: jax.Array


@register('cw', 'the nearest one in L2, slower and by another way than fab')
@dataclasses.dataclass(frozen=True, kw_only=True)
class CW(IterativeAttack):
  """The attack; as `cw`.

  Attributes:
    steps: Adam's iterations in a round.
    search_steps: rounds of the binary search over c.
    learning_rate: Adam's, in tanh space.
    initial_const: the first c, with margins in units of the image's own.
    confidence: by how much the margin must be exceeded, kappa, in logits.
    abort_early: end a round whose objective no longer falls, unless pixels at the ends of the range
      are all that keeps it from falling and the round has fooled nothing.
  """

  norms: ClassVar[tuple[str, ...]] = ('l2',)
  minimum_norm: ClassVar[bool] = True

  norm: Norm = 'l2'
  steps: int = 1000
  search_steps: int = 9
  learning_rate: float = 0.01
  initial_const: float = 1e-3
  confidence: float = 0.0
  abort_early: bool = True

  def __post_init__(self):
    check_count('steps', self.steps)
    check_count('search_steps', self.search_steps)
    for name in ('learning_rate', 'initial_const'):
      if not 0 < getattr(self, name) < float('inf'):
        raise UserError(f'{name} is a number above 0, not {getattr(self, name)!r}')
    if not 0 <= self.confidence < float('inf'):
      raise UserError(f'confidence is a number from 0, not {self.confidence!r}')

  @property
  def length(self) -> int:
    """Queries."""
    return self.search_steps * self.steps

  def carry_out(self, given: Given, key: Any) -> Outcome:
    """Goes on after a success: a nearer one may follow."""
    inputs = given.checked(self.norm, norms=self.norms)
    algorithm = dataclasses.replace(self, targeted=given.targets is not None)
    driving = {'stop_early': False, 'keep_clean': True, 'query_batch': self.query_batch}
    return attack(algorithm, inputs, key, **driving)

  def init(self, model: Partial, images, labels, eps, keys, targets=None) -> CWState:
    """At the image; asks the model nothing."""
    del model
    ones = jnp.ones(labels.shape)
    zeros = jnp.zeros_like(images)
    return CWState.begin(
      *(images, labels, eps, keys, targets),
      distance=jnp.inf * ones,
      scale=ones,
      weight=self.initial_const * ones,
      low=0 * ones,
      high=_NO_LIMIT * ones,
      offset=zeros,
      mean=zeros,
      power=zeros,
      checked_loss=jnp.inf * ones,
      reached=ones < 0,
    )

  def step(self, model: Partial, state: CWState) -> CWState:
    """Asks once, keeps what is nearer, takes a step of Adam; the round's last one chooses c."""
    at = state.iteration % self.steps
    state, point, objective, answer, gradient, held = self._objective(model, state)
    hit = losses.fooled(answer.logits, state.labels, state.targets, self.targeted)
    hit &= (answer.losses >= self.confidence) | losses.undefined(answer.logits)
    adv, distance = keep_nearest(point, hit, state.adv, state.distance, state.images, 'l2')
    state = dataclasses.replace(
      state,
      adv=adv,
      distance=distance,
      success=(distance < jnp.inf) & (distance <= state.eps),
      reached=state.reached | hit,
    )
    state = self._adam(state, gradient, at)
    stuck, state = self._progress(state, objective, held, at)
    last = (at == self.steps - 1) | stuck
    ended = (state.iteration // self.steps + 1) * self.steps
    state = dataclasses.replace(state, iteration=jnp.where(last, ended, state.iteration + 1))
    return select(last, self._next_round(state), state)

  def outcome(self, state: CWState) -> tuple[jax.Array, jax.Array]:
    """The nearest adversarial image, the original where there is none."""
    return state.adv, -state.distance

  def _objective(self, model: Partial, state: CWState):
    """Equation of section 6: distance^2 + c max(-margin, -kappa), with its gradient by offset.

    The margin is that of the image's goal: z_t - max of the others, or max of the others - z_y.
    Last comes whether pixels at the ends of the range keep it from falling.
    """
    centre = jnp.arctanh((2 * state.images - 1) * _INSIDE)
    point, pull = jax.vjp(lambda w: (jnp.tanh(w + centre) + 1) / 2, state.offset)
    name = 'margin_targeted' if self.targeted else 'margin'

    def lack(logits):
      return losses.loss_of(name, logits, state.labels, state.targets)

    answer = ask(model, point, lack, fold_each(state.keys, state.iteration))
    # The published distance is from the image as tanh gives it back.
    delta = point - (jnp.tanh(centre) + 1) / 2
    state = dataclasses.replace(state, scale=_scale(state, answer.losses))
    far = answer.losses < self.confidence
    weight = per_image(jnp.where(far, state.weight, 0.0), delta)
    pull_away = weight * (usable(answer.gradient) / per_image(state.scale, delta))
    slope = 2 * delta - pull_away
    lacking = jnp.maximum(self.confidence - answer.losses, 0.0) / state.scale
    objective = jnp.square(norm_of(delta, 'l2')) + state.weight * lacking
    return state, point, objective, answer, pull(slope)[0], _held(point, slope, pull_away)

  def _adam(self, state: CWState, gradient: jax.Array, at: jax.Array) -> CWState:
    time = per_image((at + 1).astype(jnp.float32), gradient)
    mean = 0.9 * state.mean + 0.1 * gradient
    power = 0.999 * state.power + 0.001 * jnp.square(gradient)
    rate = self.learning_rate * jnp.sqrt(1 - 0.999**time) / (1 - 0.9**time)
    offset = state.offset - rate * mean / (jnp.sqrt(power) + 1e-8)
    return dataclasses.replace(state, offset=offset, mean=mean, power=power)

  def _progress(self, state: CWState, objective: jax.Array, held: jax.Array, at: jax.Array):
    due = at % max(self.steps // _CHECKS, 1) == 0
    stuck = due & (objective > 0.9999 * state.checked_loss) & self.abort_early
    stuck &= state.reached | ~held
    checked = jnp.where(due, objective, state.checked_loss)
    return stuck, dataclasses.replace(state, checked_loss=checked)

  def _next_round(self, state: CWState) -> CWState:
    """Bisection once c succeeded, ten times as much before; the search starts at the image."""
    high = jnp.where(state.reached, jnp.minimum(state.high, state.weight), state.high)
    low = jnp.where(state.reached, state.low, jnp.maximum(state.low, state.weight))
    weight = jnp.where(high < _NO_LIMIT, (low + high) / 2, state.weight * 10)
    # The published search tries the largest c in its last round if all before failed.
    before_last = state.iteration == (self.search_steps - 1) * self.steps
    weight = jnp.where(before_last & (self.search_steps >= 10), high, weight)
    zeros = jnp.zeros_like(state.offset)
    return dataclasses.replace(
      state,
      low=low,
      high=high,
      weight=weight,
      offset=zeros,
      mean=zeros,
      power=zeros,
      checked_loss=jnp.full_like(state.checked_loss, jnp.inf),
      reached=jnp.zeros_like(state.reached),
    )


def _held(point: jax.Array, slope: jax.Array, drive: jax.Array) -> jax.Array:
  """Which images are on their way from the ends of the pixel range, (B,) bool.

  The tanh is flat there: hundreds of steps pass before such a pixel, and with it the objective,
  moves at all, and the published early abort takes that for the end. What holds an image is the
  part of the objective's slope (by pixel) that leads from an end inside.
  """
  at_end = jnp.where(slope < 0, point, 1 - point) < _FLAT
  held = norm_of(jnp.where(at_end, slope, 0.0), 'l2')
  return held > _HELD_SHARE * norm_of(drive, 'l2')


def _scale(state: CWState, margin: jax.Array) -> jax.Array:
  """The size of the margin at the image, where the search begins."""
  size = jnp.abs(margin)
  first = (state.iteration == 0) & (size > 0) & (size < jnp.inf)
  return jnp.where(first, size, state.scale)


@face(CW)
def cw(
  logits_fn: Any,
  images: Any,
  labels: Any,
  *,
  key: Any = None,
  steps: int = 1000,
  search_steps: int = 9,
  learning_rate: float = 0.01,
  initial_const: float = 1e-3,
  confidence: float = 0.0,
  abort_early: bool = True,
  targets: Any = None,
  query_batch: int | None = None,
) -> jax.Array:
  """Carlini & Wagner's attack of minimum L2 norm: "Towards evaluating the robustness", 2017.

  Args:
    steps: Adam's iterations in each of the rounds.
    search_steps: rounds of the binary search over the constant c.
    learning_rate: Adam's, in tanh space.
    initial_const: the first c, above 0, for margins in units of the image's own, so that logits of
      any scale give the same images.
    confidence: margin of logits by which an image must be misclassified, from 0.
    abort_early: end a round of an image whose objective no longer falls, unless it is not fooled
      yet and pixels at the ends of the range, where the tanh is flat, have still to move.

  Returns:
    float32 (B, H, W, C) in [0, 1]: the nearest adversarial image found, the original where there
    is none or where it is one already. `attacks.distances` measures how far.
  """
  ...
