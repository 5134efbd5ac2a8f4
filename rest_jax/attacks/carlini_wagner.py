"""Carlini & Wagner's L2 attack as an algorithm.

"Towards evaluating the robustness of neural networks", 2017, section 6, with the binary search
and the early abort of the authors' code; every image by itself, with its own constant c, its own
Adam and its own abort.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from rest_jax.attacks import losses
from rest_jax.attacks.algorithm import State, register_state, select
from rest_jax.attacks.ball import norm_of, per_image, usable
from rest_jax.attacks.driver import IterativeAttack, Outcome, attack, keep_nearest
from rest_jax.attacks.queries import ask, fold_each
from rest_jax.attacks.registry import face, register
from rest_jax.attacks.threat import Norm, check_count, check_inputs
from rest_jax.errors import UserError

_INSIDE = 0.999999  # the tanh reaches the ends of the pixel range at infinity only
_NO_LIMIT = 1e10
_CHECKS = 10  # of progress in a round


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
    abort_early: end a round whose objective no longer falls.
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

  def run(
    self,
    logits_fn: Any,
    images: Any,
    labels: Any,
    *,
    key: Any,
    eps: Any = None,
    targets: Any = None,
  ) -> Outcome:
    """Attacks images; see `cw`."""
    inputs = check_inputs(
      logits_fn, images, labels, norm=self.norm, eps=eps, targets=targets, norms=self.norms
    )
    algorithm = dataclasses.replace(self, targeted=targets is not None)
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
    state, point, objective, answer, gradient = self._objective(model, state)
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
    stuck, state = self._progress(state, objective, at)
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
    slope = 2 * delta - weight * (usable(answer.gradient) / per_image(state.scale, delta))
    lacking = jnp.maximum(self.confidence - answer.losses, 0.0) / state.scale
    objective = jnp.square(norm_of(delta, 'l2')) + state.weight * lacking
    return state, point, objective, answer, pull(slope)[0]

  def _adam(self, state: CWState, gradient: jax.Array, at: jax.Array) -> CWState:
    time = per_image((at + 1).astype(jnp.float32), gradient)
    mean = 0.9 * state.mean + 0.1 * gradient
    power = 0.999 * state.power + 0.001 * jnp.square(gradient)
    rate = self.learning_rate * jnp.sqrt(1 - 0.999**time) / (1 - 0.9**time)
    offset = state.offset - rate * mean / (jnp.sqrt(power) + 1e-8)
    return dataclasses.replace(state, offset=offset, mean=mean, power=power)

  def _progress(self, state: CWState, objective: jax.Array, at: jax.Array):
    due = at % max(self.steps // _CHECKS, 1) == 0
    stuck = due & (objective > 0.9999 * state.checked_loss) & self.abort_early
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
    abort_early: end a round of an image whose objective no longer falls.

  Returns:
    float32 (B, H, W, C) in [0, 1]: the nearest adversarial image found, the original where there
    is none or where it is one already. `attacks.distances` measures how far.
  """
  ...
