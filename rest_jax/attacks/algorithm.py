"""What an iterative attack is, and the plain way to run one.

An algorithm is a frozen, hashable value of hyperparameters with two pure functions on a batch:
`init` asks the model nothing, `step` asks it once (or as the attack says). Each image of a batch
is by itself: it has its own radius, key and iteration, so that a scheduler may put a new image in
the place of a finished one without compiling anew, and no result depends on its neighbours.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from typing import Any, ClassVar, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from rest_jax.inputs import NORMS, Norm
from rest_jax.ops.platform import jit

S = TypeVar('S', bound='State')


def register_state(cls: type[S]) -> type[S]:
  """Makes a dataclass of arrays a pytree."""
  return jax.tree_util.register_dataclass(cls)


@register_state
@dataclasses.dataclass(frozen=True)
class State:
  """What every algorithm's state has; each leaf of it has the batch as its first axis.

  Attributes:
    images: float32 (B, H, W, C), the originals.
    labels: int32 (B,); of a loss of one's own, whatever it takes.
    targets: int32 (B,); the labels where there are none.
    eps: float32 (B,).
    keys: PRNG keys (B,).
    iteration: int32 (B,), the number of the step to come; an algorithm may leave some out.
    steps: int32 (B,), how many were taken.
    adv: the adversarial image to return, `images` where none was found.
    success: bool (B,), whether `adv` is one within eps.
  """

  images: jax.Array
  labels: Any
  targets: Any
  eps: jax.Array
  keys: jax.Array
  iteration: jax.Array
  steps: jax.Array
  adv: jax.Array
  success: jax.Array

  @classmethod
  def begin(cls, images, labels, eps, keys, targets=None, **more: Any) -> Self:
    """The state before the first step, with what a state of an algorithm has `more`."""
    return cls(
      images=images,
      labels=labels,
      targets=labels if targets is None else targets,
      eps=eps,
      keys=keys,
      iteration=jnp.zeros(eps.shape, jnp.int32),
      steps=jnp.zeros(eps.shape, jnp.int32),
      adv=images,
      success=jnp.zeros(eps.shape, bool),
      **more,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Algorithm(abc.ABC):
  """An iterative attack as a value, whose fields are its settings.

  Attributes:
    norms: what it can do.
    gradients: whether a step asks for gradients of the model.
    minimum_norm: whether it looks for the nearest adversarial image, not for one within a radius.
    queries_per_step: forward passes of a step.
    norm: of the ball, or of what is kept small.
    targeted: whether success is to reach the target; any wrong class is one otherwise.
    query_batch: images at a time, None for the attack's own choice; no part of the algorithm.
  """

  norms: ClassVar[tuple[str, ...]] = NORMS
  gradients: ClassVar[bool] = True
  minimum_norm: ClassVar[bool] = False
  queries_per_step: ClassVar[int] = 1

  norm: Norm = 'linf'
  targeted: bool = False
  query_batch: int | None = None

  @property
  def length(self) -> int:
    """How many steps a run takes at most; by default the field `steps`."""
    return int(getattr(self, 'steps'))  # noqa: B009

  @abc.abstractmethod
  def init(
    self,
    model: Partial,
    images: jax.Array,
    labels: jax.Array,
    eps: jax.Array,
    keys: jax.Array,
    targets: jax.Array | None = None,
  ) -> Any:
    """The state before the first step; asks the model nothing."""

  @abc.abstractmethod
  def step(self, model: Partial, state: Any) -> Any:
    """The state after one more step; raises each iteration by 1 (or to a later one)."""

  def outcome(self, state: Any) -> tuple[jax.Array, jax.Array]:
    """The image to return (B, H, W, C) and how good it is (B,), higher is better.

    By default the adversarial image, the original where there is none, and all alike.
    """
    return state.adv, jnp.zeros(state.success.shape)


def select(mask: jax.Array, new: Any, old: Any) -> Any:
  """Takes images of `new` where mask (B,) is true, of `old` elsewhere; over whole pytrees."""

  def pick(a, b):
    return jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - 1)), a, b)

  return jax.tree.map(pick, new, old)


def finished(algorithm: Algorithm, state: State, stop_early: bool) -> jax.Array:
  """Which images are done, (B,): out of steps or, with `stop_early`, successful."""
  done = state.iteration >= algorithm.length
  return done | state.success if stop_early else done


def advance(algorithm: Algorithm, model: Partial, state: Any, stop_early: bool) -> Any:
  """One step of the images that are not finished; the others keep their state.

  What an attack calls adversarial is none where it is not finite: it is no image, and that a model
  gives no numbers for it says nothing.
  """
  active = ~finished(algorithm, state, stop_early)
  new = algorithm.step(model, state)
  sound = jnp.all(jnp.isfinite(new.adv), axis=tuple(range(1, new.adv.ndim)))
  adv, success = select(sound, (new.adv, new.success), (state.adv, state.success))
  new = dataclasses.replace(new, adv=adv, success=success, steps=state.steps + 1)
  return select(active, new, state)


def run(
  algorithm: Algorithm,
  model: Partial,
  images: jax.Array,
  labels: jax.Array,
  eps: jax.Array,
  keys: jax.Array,
  targets: jax.Array | None = None,
  *,
  stop_early: bool = True,
) -> Any:
  """Runs an algorithm on a whole batch, until each image is finished.

  Compiled once an algorithm, a model's code and shapes; weights, images and radii are data.

  Args:
    algorithm: what to run.
    model: a `Partial` of images to logits.
    images: float32 (B, H, W, C) in [0, 1].
    labels: int32 (B,).
    eps: float32 (B,).
    keys: PRNG keys (B,), one an image.
    targets: int32 (B,), for targeted attacks and losses.
    stop_early: leave images alone once they are adversarial.

  Returns:
    The final state.
  """
  return _run(algorithm, model, images, labels, eps, keys, targets, stop_early)


@functools.partial(jit, static_argnames=('algorithm', 'stop_early'))
def _run(algorithm, model, images, labels, eps, keys, targets, stop_early):
  state = algorithm.init(model, images, labels, eps, keys, targets)
  return run_from(algorithm, model, state, stop_early)


def run_from(algorithm: Algorithm, model: Partial, state: Any, stop_early: bool) -> Any:
  """Steps from a state until each image is finished; for use inside jit."""
  return lax.while_loop(
    lambda state: jnp.any(~finished(algorithm, state, stop_early)),
    lambda state: advance(algorithm, model, state, stop_early),
    state,
  )


def in_chunks(function: Any, arrays: Any, size: int | None) -> Any:
  """Calls `function` on `size` images at a time, so that memory is bounded.

  The last chunk is filled up with copies of its first image: all chunks share one compiled form.

  Args:
    function: of the arrays, all with the batch as first axis; gives such arrays.
    arrays: a pytree of them.
    size: images at a time; None or a whole batch or more means one call.

  Returns:
    What `function` gives, for all images.
  """
  count = jax.tree.leaves(arrays)[0].shape[0]
  if size is None or count <= size:
    return function(arrays)
  parts = []
  for first in range(0, count, size):
    rows = np.arange(first, first + size)
    rows = np.where(rows < count, rows, first)
    parts.append(function(jax.tree.map(lambda x, rows=rows: x[rows], arrays)))
  return jax.tree.map(lambda *p: jnp.concatenate(p)[:count], *parts)
