"""DeepFool: Moosavi-Dezfooli et al., "DeepFool: a simple and accurate method to fool deep neural
networks", 2016, algorithm 2, in L2 and Linf (section 3.3).

Where it deviates: the image keeps to [0, 1]. Pixels at an end of the range that would be pushed
beyond it are left out of the linearised problem, so that the others take their share.
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
from rest_jax.attacks.ball import length_of, normalize, per_image, usable
from rest_jax.attacks.driver import IterativeAttack, Outcome, keep_nearest
from rest_jax.attacks.queries import fold_each, logits_of
from rest_jax.attacks.registry import face, register
from rest_jax.attacks.threat import Norm, check_count
from rest_jax.errors import UserError


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
    """Attacks images; see `deepfool`."""
    if self.num_classes is not None and targets is not None:
      raise UserError('num_classes are looked at without targets only; leave one of them out')
    return super().run(logits_fn, images, labels, key=key, eps=eps, targets=targets)

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
