"""How an attack asks a model: logits, and the gradient of a loss, of random models too.

A model is a `Partial` from images to logits. One whose function has the attribute `takes_key` is
random: it is called with a key for every image, so that what one image gets depends neither on
its place in the batch nor on the others (`attacks.eot` makes such a model).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from rest_jax.errors import UserError

LossFn = Callable[[jax.Array], jax.Array]  # logits (B, K) to losses (B,)


class Answer(NamedTuple):
  """What a model says of a batch.

  Attributes:
    logits: float32 (B, K).
    losses: float32 (B,).
    gradient: of each image's loss with respect to it, float32, like the images.
  """

  logits: jax.Array
  losses: jax.Array
  gradient: jax.Array


def is_random(model: Partial) -> bool:
  """Whether the model takes keys."""
  return bool(getattr(model.func, 'takes_key', False))


def image_keys(key: jax.Array, count: int, first: int | jax.Array = 0) -> jax.Array:
  """One key for each image, (count,): that of image i is `fold_in(key, first + i)`.

  Keys (count,) are given back: who attacks part of a data set gives each image its own key.

  Raises:
    UserError: another number of keys.
  """
  if key.ndim:
    if key.shape != (count,):
      raise UserError(f'key is one PRNG key or ({count},), one an image, got shape {key.shape}')
    return key
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(count))


def fold_each(keys: jax.Array, data: jax.Array | int) -> jax.Array:
  """Folds a number, or one an image, into the keys (B,)."""
  return jax.vmap(jax.random.fold_in)(keys, jnp.broadcast_to(jnp.asarray(data), keys.shape))


def logits_of(model: Partial, images: jax.Array, keys: jax.Array | None = None) -> jax.Array:
  """Asks for logits.

  Args:
    model: the model.
    images: float32 (B, H, W, C) in [0, 1].
    keys: (B,), for a random model; None takes those it was made with.

  Returns:
    float32 (B, K).
  """
  logits = model(images, keys=keys) if is_random(model) else model(images)
  return logits.astype(jnp.float32)


def ask(
  model: Partial, images: jax.Array, loss_fn: LossFn, keys: jax.Array | None = None
) -> Answer:
  """Asks for logits, losses and gradients, one forward and one backward pass.

  Of a random model with `average='loss'`, losses and gradients are means over its draws
  (Athalye et al., "Synthesizing robust adversarial examples", 2018, equation 1), draw after draw.

  Args:
    model: the model.
    images: float32 (B, H, W, C) in [0, 1].
    loss_fn: logits (B, K) to losses (B,), one an image.
    keys: (B,), for a random model.

  Returns:
    The answer.
  """
  if is_random(model) and getattr(model.func, 'average', None) == 'loss':
    return _mean_over_draws(model, images, loss_fn, keys)

  return _answer(lambda x: logits_of(model, x, keys), images, loss_fn)


def _answer(logits_fn: Callable[[jax.Array], jax.Array], images: jax.Array, loss_fn: LossFn):
  def total(x):
    logits = logits_fn(x)
    losses = loss_fn(logits)
    return jnp.sum(losses), (logits, losses)

  (_, (logits, losses)), gradient = jax.value_and_grad(total, has_aux=True)(images)
  return Answer(logits, losses, gradient)


def _mean_over_draws(
  model: Partial, images: jax.Array, loss_fn: LossFn, keys: jax.Array | None
) -> Answer:
  def one(index: jax.Array | int) -> Answer:
    draw = functools.partial(model.func.draw, *model.args, keys=keys, index=index)
    answer = _answer(lambda x: draw(images=x), images, loss_fn)
    return answer._replace(logits=jax.nn.softmax(answer.logits, axis=1))

  def add(index, added):
    return jax.tree.map(jnp.add, added, one(index))

  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(lambda: one(0)))
  added = lax.fori_loop(0, model.func.samples, add, zeros)
  mean = jax.tree.map(lambda x: x / model.func.samples, added)
  # The prediction is that of the mean probabilities.
  return mean._replace(logits=jnp.log(jnp.maximum(mean.logits, 1e-37)))
