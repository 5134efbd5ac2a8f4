"""Runs an algorithm with restarts, in chunks: what the public attack functions are made of."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from rest_jax.attacks import losses
from rest_jax.attacks.algorithm import Algorithm, in_chunks, run_from, select
from rest_jax.attacks.checks import Inputs, check_count, check_key
from rest_jax.attacks.counting import count_queries
from rest_jax.attacks.judge import check_defined, undefined_logits
from rest_jax.attacks.queries import fold_each, image_keys, logits_of, outputs_of
from rest_jax.inputs import is_known

_CLEAN = 0x7FFFFFFF  # folded into the keys for the first question, beside restarts 0, 1, ...


class Ranked(Algorithm, Protocol):
  """An algorithm that also gives something for images on which it did not succeed.

  Attributes:
    targeted: whether success is to reach the target.
  """

  @property
  def targeted(self) -> bool: ...

  def outcome(self, state: Any) -> tuple[jax.Array, jax.Array]:
    """The image to return (B, H, W, C) and how good it is (B,), higher is better."""
    ...


def attack(
  algorithm: Ranked,
  inputs: Inputs,
  key: Any,
  *,
  restarts: int = 1,
  stop_early: bool = True,
  keep_clean: bool | None = None,
  query_batch: int | None = None,
) -> jax.Array:
  """Attacks every image.

  Args:
    algorithm: what to run.
    inputs: from `check_inputs`.
    key: PRNG key; image i gets `fold_in(key, i)`, whatever the chunks.
    restarts: runs; the best outcome is kept, a success before any other.
    stop_early: leave an image alone once it is adversarial.
    keep_clean: return an image that is misclassified from the start as it is; by default with
      `stop_early`.
    query_batch: images at a time; None for all.

  Returns:
    float32 (B, H, W, C): the outcomes.

  Raises:
    UserError: no key, a number of restarts or a query_batch below 1, or a model whose logits are
      not numbers before any attack.
  """
  check_count('restarts', restarts)
  if query_batch is not None:
    check_count('query_batch', query_batch)
  if not len(inputs.images):
    return inputs.images
  loss = cast(losses.LossName, getattr(algorithm, 'loss', 'margin'))
  if callable(loss):  # it knows no success
    stop_early = keep_clean = False
  keep_clean = stop_early if keep_clean is None else keep_clean
  keys = image_keys(check_key(key), inputs.images.shape[0])

  def chunk(arrays):
    (images, labels, _, chunk_keys, targets), numbers = arrays
    done = jnp.zeros(images.shape[:1], bool)
    if keep_clean:
      logits = clean_logits(inputs.model, images, chunk_keys, losses.takes_outputs(loss))
      if is_known(logits):
        check_defined(undefined_logits(np.asarray(logits)), logits.shape[1], numbers)
      done = _success(loss, logits, labels, _of_restart(targets, 0), algorithm.targeted)
      if is_known(done) and done.all():
        return images, jnp.zeros(images.shape[:1], jnp.int32)
    return _restarts(algorithm, inputs.model, *arrays[0], done, restarts, stop_early)

  arrays = (inputs.images, inputs.labels, inputs.eps, keys, inputs.targets)
  numbers = np.arange(inputs.images.shape[0])
  adv, queries = in_chunks(chunk, (arrays, numbers), query_batch)
  count_queries(queries)
  return adv


@functools.partial(jax.jit, static_argnames='outputs')
def clean_logits(
  model: Partial, images: jax.Array, keys: jax.Array, outputs: bool = False
) -> jax.Array:
  """Logits of the originals (B, K); a program of its own, which all attacks share.

  Args:
    model: what is attacked.
    images: (B, H, W, C).
    keys: (B,).
    outputs: what the model gives, and not logits of classes.
  """
  of = outputs_of if outputs else logits_of
  return of(model, images, fold_each(keys, _CLEAN)).astype(jnp.float32)


@functools.partial(jax.jit, static_argnames=('algorithm', 'restarts', 'stop_early'))
def _restarts(
  algorithm: Ranked,
  model: Partial,
  images: jax.Array,
  labels: jax.Array,
  eps: jax.Array,
  keys: jax.Array,
  targets: jax.Array | None,
  done: jax.Array,
  restarts: int,
  stop_early: bool,
):
  def once(kept, index):
    _, score, success = kept
    goals = _of_restart(targets, index)
    state = algorithm.init(model, images, labels, eps, fold_each(keys, index), goals)
    settled = success if stop_early else score == jnp.inf
    state = select(settled, _spent(algorithm, state), state)
    state = run_from(algorithm, model, state, stop_early)
    image, new = algorithm.outcome(state)
    better = jnp.where(state.success == success, new > score, state.success) & ~settled
    asked = jnp.where(settled, 0, state.iteration)
    return select(better, (image, new, state.success), kept), asked

  # Nothing is better than an image that fools by itself.
  score = jnp.where(done, jnp.inf, -jnp.inf)
  (best, _, _), asked = lax.scan(once, (images, score, done), jnp.arange(restarts))
  return best, jnp.sum(asked, axis=0)


_success = jax.jit(losses.success_of, static_argnums=(0, 4))


def _of_restart(targets: jax.Array | None, index: jax.Array | int) -> jax.Array | None:
  """Targets (B,) serve every restart; of (B, n) the restarts take one column after the other."""
  if targets is None or targets.ndim == 1:
    return targets
  return jnp.take(targets, index % targets.shape[1], axis=1)


def _spent(algorithm: Algorithm, state: Any) -> Any:
  return dataclasses.replace(state, iteration=jnp.full_like(state.iteration, algorithm.steps))
