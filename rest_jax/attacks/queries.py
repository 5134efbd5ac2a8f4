"""How an attack asks a model: logits, and the gradient of a loss, of random models too.

A model is a `Partial` from images to logits. One whose function has the attribute `takes_key` is
random: it is called with a key for every image, so that what one image gets depends neither on
its place in the batch nor on the others (`attacks.eot` makes such a model). What it gives is taken
for logits; `output_form` says where that seems wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from rest_jax.attacks.losses import Loss
from rest_jax.errors import UserError
from rest_jax.ops.platform import jit
from rest_jax.ops.rewrite import fast_convolutions
from rest_jax.text import plural

_MOST = 1e30  # log odds are cut here, so that their differences are numbers
_NOTHING = -2e30

SOFTMAX_SLACK = 1e-5  # in float32; narrower types round more: `softmax_slack`
PROBABLE_SPREAD = 0.5  # outputs of which some are this far apart, and all of them in [0, 1]
FEW_OUTPUTS = 10  # so many may happen to lie in [0, 1]

Probe = Callable[[np.ndarray], np.ndarray]  # images (B, H, W, C) to outputs (n, K)
LossFn = Callable[[jax.Array], jax.Array]  # logits (B, K) to losses (B,)


class Answer(NamedTuple):
  """What a model says of a batch.

  Attributes:
    logits: float32 (B, K); of a loss of one's own, what the model gives.
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


def as_classes(logits: jax.Array) -> jax.Array:
  """Logits float32 (B, K) of two classes or more.

  One logit (B, 1) or (B,), of a sigmoid, is that of class 1 against a 0 of class 0: their softmax
  is the sigmoid.
  """
  logits = logits.astype(jnp.float32)
  if logits.ndim == 1:
    logits = logits[:, None]
  if logits.shape[1] == 1:
    return jnp.concatenate([jnp.zeros_like(logits), logits], axis=1)
  return logits


def outputs_of(
  model: Partial, images: jax.Array, keys: jax.Array | None = None, *, anew: bool = False
) -> Any:
  """What the model gives, for a loss of one's own; arguments as `logits_of`."""
  # Attacks differentiate in loops, where XLA's own convolutions are slow.
  quick = fast_convolutions(model, anew=anew)
  return quick(images, keys=keys) if is_random(model) else quick(images)


def logits_of(
  model: Partial, images: jax.Array, keys: jax.Array | None = None, *, anew: bool = False
) -> jax.Array:
  """Asks for logits.

  Args:
    model: the model.
    images: float32 (B, H, W, C) in [0, 1].
    keys: (B,), for a random model; None takes those it was made with.
    anew: trace the model, whatever has been traced of it.

  Returns:
    float32 (B, K), K from 2.
  """
  return as_classes(outputs_of(model, images, keys, anew=anew))


def operations(model: Partial, images: jax.Array | np.ndarray, keys: jax.Array) -> float:
  """Floating-point operations of asking for a batch, by XLA's count; 0 where it does not count.

  The program is traced, not compiled.
  """
  found = outputs_once.lower(model, images, keys).cost_analysis()
  return float(found.get('flops', 0.0)) if isinstance(found, dict) else 0.0


@jit
def outputs_once(model: Partial, images: jax.Array, keys: jax.Array) -> Any:
  """What the model gives, one program; of a random model, what the keys (B,) give."""
  return outputs_of(model, images, keys)


def _logits(anew: bool) -> Any:
  def logits(model: Partial, images: jax.Array, keys: jax.Array) -> jax.Array:
    return logits_of(model, images, keys, anew=anew)

  return jit(logits)


_logits_once = _logits(anew=False)


def logits_once(model: Partial, images: Any, keys: jax.Array) -> jax.Array:
  """Logits (B, K) in float32, one program; of a random model, those that the keys (B,) give."""
  return _logits_once(model, images, keys)


def logits_traced_anew(model: Partial, images: jax.Array, keys: jax.Array) -> jax.Array:
  """As `logits_once`, from another trace of the model.

  Chance outside JAX (NumPy's, Python's) is drawn when a function is traced and is then part of the
  program; only another trace shows it. Where that is the same program, nothing is compiled.
  """
  given = (model, images, keys)
  anew = _logits(anew=True)
  same = anew.lower(*given).as_text() == _logits_once.lower(*given).as_text()
  return (_logits_once if same else anew)(*given)


def ask(
  model: Partial, images: jax.Array, loss_fn: LossFn, keys: jax.Array | None = None
) -> Answer:
  """Asks for logits, losses and gradients, one forward and one backward pass.

  Of a random model with `average='loss'`, losses and gradients are means over its draws
  (Athalye et al., "Synthesizing robust adversarial examples", 2018, equation 1), draw after draw.

  Args:
    model: the model.
    images: float32 (B, H, W, C) in [0, 1].
    loss_fn: logits (B, K) to losses (B,), one an image; a `Loss` `of_outputs` gets what the model
      gives, in place of logits of classes.
    keys: (B,), for a random model.

  Returns:
    The answer. Of a cross-entropy, which `Loss` gives as log odds, the gradient's direction alone
    is that of the loss.
  """
  if isinstance(loss_fn, Loss) and loss_fn.of_outputs:
    return _answer(lambda x: outputs_of(model, x, keys), images, loss_fn)
  if is_random(model) and getattr(model.func, 'average', None) == 'loss':
    return _mean_over_draws(model, images, loss_fn, keys)

  return _answer(lambda x: logits_of(model, x, keys), images, loss_fn)


def _answer(logits_fn: Callable[[jax.Array], Any], images: jax.Array, loss_fn: LossFn):
  def total(x):
    logits = logits_fn(x)
    losses = loss_fn(logits)
    return jnp.sum(losses), (logits, losses)

  (_, (logits, losses)), gradient = jax.value_and_grad(total, has_aux=True)(images)
  return Answer(logits, losses, gradient)


def _mean_over_draws(
  model: Partial, images: jax.Array, loss_fn: LossFn, keys: jax.Array | None
) -> Answer:
  sign = _entropy_sign(loss_fn)

  def one(index: jax.Array | int) -> tuple[Answer, jax.Array]:
    draw = model.func.draw
    answer = _answer(lambda x: draw(*model.args, x, keys, index), images, loss_fn)
    values, weights = _of_draw(answer.losses, answer.logits.shape[1], sign)
    logits = jax.nn.softmax(answer.logits, axis=1)
    return Answer(logits, values, answer.gradient), weights

  def add(index, carry):
    (logits, values, gradient), scale = carry
    new, weight = one(index)
    # Gradients in units of the largest weight so far: those of confident draws would all be 0.
    top = jnp.maximum(scale, weight)
    gradient = _times(gradient, jnp.exp(scale - top)) + _times(new.gradient, jnp.exp(weight - top))
    values = jnp.logaddexp(values, new.losses) if sign else values + new.losses
    return Answer(logits + new.logits, values, gradient), top

  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(lambda: one(0)))
  nothing = jnp.full_like(zeros[1], _NOTHING)
  start = zeros[0]._replace(losses=nothing if sign else zeros[0].losses)
  samples = model.func.samples
  found, _ = lax.fori_loop(0, samples, add, (start, nothing))
  mean = found.losses - math.log(samples) if sign else found.losses / samples
  # The prediction is that of the mean probabilities.
  logits = jnp.log(jnp.maximum(found.logits / samples, 1e-37))
  return Answer(logits, sign * mean if sign else mean, found.gradient / samples)


def _entropy_sign(loss_fn: LossFn) -> int:
  """1 for the cross-entropy, -1 for that of a target, which is to fall, 0 for other losses."""
  name = loss_fn.name if isinstance(loss_fn, Loss) else None
  return {'ce': 1, 'ce_targeted': -1}.get(name, 0) if isinstance(name, str) else 0


def _of_draw(values: jax.Array, classes: int, sign: int) -> tuple[jax.Array, jax.Array]:
  """Of a draw's log odds: the logarithm of its cross-entropy, and that of its gradient's weight.

  The cross-entropy is log(1 + exp(v)), its gradient sigmoid(v) times that of v.
  """
  if not sign:
    return values, jnp.zeros_like(values)
  odds = jnp.clip(sign * values + math.log(classes - 1), -_MOST, _MOST)
  entropy = jnp.where(odds > -15, jnp.log(jax.nn.softplus(jnp.maximum(odds, -15.0))), odds)
  return entropy, -jax.nn.softplus(-odds)


def _times(gradient: jax.Array, weight: jax.Array) -> jax.Array:
  return gradient * weight.reshape(weight.shape + (1,) * (gradient.ndim - 1))


# ---- What outputs look like: logits, or what a softmax or a sigmoid has made of them.


class OutputForm(NamedTuple):
  """What outputs look like.

  Attributes:
    softmax: those of each image sum to 1.
    probabilities: one alone, or several that do not sum to 1, look like probabilities.
    sums: evidence of the former.
    values: of the latter.
  """

  softmax: bool
  probabilities: bool
  sums: str
  values: str


def output_form(probe: Probe, images: np.ndarray, outputs: np.ndarray) -> OutputForm:
  """Looks at a model's outputs for images, and for others that are far from them.

  Args:
    probe: gives the outputs for a batch of that shape, of those of its images that count.
    images: float32 (B, H, W, C) in [0, 1].
    outputs: (n, K), what it gives for them; of one output alone with a 0 before it, which is the
      other class's logit.

  Returns:
    The form.
  """
  one = outputs.shape[1] == 2 and not outputs[:, 0].any()
  outputs, far, plain = (x[:, int(one) :] for x in (outputs, *_far_outputs(probe, images)))
  varied, found = np.concatenate([outputs, far]), np.concatenate([outputs, far, plain])
  slack = softmax_slack(outputs.shape[1])
  softmax = not one and (_sum_to_one(outputs, SOFTMAX_SLACK) or _sum_to_one(found, slack))
  # A linear model may say exactly 0 of black, so what counts as saturated is not of plain images.
  ends = int(((varied == 0) | (varied == 1)).sum())
  probable = not softmax and len(found) >= FEW_OUTPUTS and _in_range(found, SOFTMAX_SLACK)
  return OutputForm(
    softmax=softmax,
    probabilities=probable and bool(ends > 0 or np.ptp(found) >= PROBABLE_SPREAD),
    sums=f'{_span(outputs)}, sums from {_least_and_most(outputs.sum(axis=1), 6)}',
    values=f'{_span(found)} of {plural(len(found), "image")}, {ends} exactly 0 or 1',
  )


def softmax_slack(classes: int) -> float:
  """How far from 1 the sum of a softmax over so many classes may be, computed in bfloat16.

  Exponentials, their sum and the quotients are each rounded by half of eps, and the sum is of log2
  K additions. The values do not tell the type: a model may give another one than it computed in,
  and compilers leave roundings out. No logits of any type are so near a sum of 1 everywhere.
  """
  return float(jnp.finfo(jnp.bfloat16).eps) * (1.5 + 0.5 * float(np.log2(classes)))


def _far_outputs(probe: Probe, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """What a model says far from the images: of varied ones and of plain ones, (n, K) each."""
  noise = np.random.default_rng(0).random(images.shape, np.float32)
  varied = [1 - images, (images > 0.5).astype(np.float32), noise]
  grey = np.asarray([0, 0.5, 1], np.float32)[np.arange(len(images)) % 3]
  plain = np.broadcast_to(grey[:, None, None, None], images.shape)
  return np.concatenate([probe(one) for one in varied]), probe(plain)


def _in_range(outputs: np.ndarray, slack: float) -> bool:
  return bool(outputs.min() >= -slack and outputs.max() <= 1 + slack)


def _sum_to_one(outputs: np.ndarray, slack: float) -> bool:
  return _in_range(outputs, slack) and bool(np.abs(outputs.sum(axis=1) - 1).max() <= slack)


def _span(outputs: np.ndarray) -> str:
  return f'outputs from {_least_and_most(outputs, 4)}'


def _least_and_most(values: np.ndarray, digits: int) -> str:
  return f'{values.min():.{digits}g} to {values.max():.{digits}g}'
