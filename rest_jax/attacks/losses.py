"""Losses of attacks: of each image, to be maximised; logits (B, K), labels (B,) to (B,).

Attacks compare a loss's values and follow its gradient's direction, nothing else, so any rising
function of a loss is the same loss. They are written such that float32 keeps both at any scale of
the logits: the cross-entropy as log odds, of which it is a rising function, and ratios of logits
with their scale divided out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

from rest_jax.attacks.threat import Given, Inputs, check_radii, model_outputs
from rest_jax.callables import as_function
from rest_jax.errors import UserError
from rest_jax.inputs import Norm, check_choice, check_images, check_norm, is_known

# A name of `MIN_CLASSES` or `SIGMOID`'s, or a function of one's own of outputs and labels.
LossName = str | Callable[..., jax.Array]
# How many classes each needs.
MIN_CLASSES = {
  'ce': 2,
  'ce_targeted': 2,
  'margin': 2,
  'margin_targeted': 2,
  'dlr': 3,
  'dlr_targeted': 4,
}
# Of models whose outputs are decisions, each by itself, which a sigmoid turns into probabilities.
SIGMOID = {'ce': 'sigmoid_ce', 'margin': 'sigmoid_margin'}
# The cross-entropy of images whose target is their label, which stands for none, and the targeted
# DLR of others: with it two attacks of AutoAttack are one program, of which compiling takes long.
CE_OR_DLR = 'ce or dlr_targeted'
_SMALL = 0.5  # spread of logits below which the mean of their exponentials is taken less 1


def pick(logits: jax.Array, classes: jax.Array) -> jax.Array:
  """logits[i, classes[i]], (B,)."""
  # A comparison instead of a gather: its gradient is no scatter.
  chosen = jnp.arange(logits.shape[1])[None] == classes[:, None]
  return jnp.sum(jnp.where(chosen, logits, 0.0), axis=1)


def largest(logits: jax.Array, count: int) -> tuple[jax.Array, ...]:
  """The `count` largest of each row in falling order, (B,) each; equals count one by one."""
  found, rest = [], jax.lax.stop_gradient(logits)
  for _ in range(count):
    index = jnp.argmax(rest, axis=1)
    found.append(pick(logits, index))
    rest = jnp.where(jnp.arange(logits.shape[1])[None] == index[:, None], -jnp.inf, rest)
  return tuple(found)


def class_of_rank(logits: jax.Array, rank: jax.Array | int) -> jax.Array:
  """The class with the rank-th largest logit, 0 for the predicted one: int32 (B,).

  Args:
    logits: (B, K).
    rank: from 0 to K - 1, a scalar or (B,).
  """
  order = jnp.argsort(-logits, axis=1, stable=True)
  rank = jnp.broadcast_to(jnp.asarray(rank, jnp.int32), logits.shape[:1])
  return jnp.take_along_axis(order, rank[:, None], axis=1)[:, 0].astype(jnp.int32)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """-log softmax(logits)[label], nats; to be reported, `log_odds` is to be maximised."""
  return jax.nn.softplus(log_odds(logits, labels) + math.log(max(logits.shape[1] - 1, 1)))


def log_odds(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """log mean exp of the other logits less the label's, a rising function of the cross-entropy.

  The cross-entropy is log(1 + (K - 1) exp(this)). Its own value and gradient are 0 in float32 once
  the label is 104 ahead, and from 17 on the gradient has lost the label's part; here neither
  happens. Of two classes it is the difference of the logits.
  """
  own = jnp.arange(logits.shape[1])[None] == labels[:, None]
  ahead = jnp.where(own, -jnp.inf, logits - pick(logits, labels)[:, None])
  highest = jax.lax.stop_gradient(jnp.max(ahead, axis=1, keepdims=True))
  highest = jnp.where(jnp.isfinite(highest), highest, 0.0)
  others = max(logits.shape[1] - 1, 1)
  below = jnp.where(own, 0.0, ahead - highest)
  # Near 0 the mean of exp - 1 keeps what a sum near K - 1 would round away.
  small = jnp.min(below, axis=1, keepdims=True) > -_SMALL
  near = jnp.where(own | ~small, 0.0, below)
  near = jnp.log1p(jnp.sum(jnp.expm1(near), axis=1) / others)
  mean = jnp.sum(jnp.where(own, 0.0, jnp.exp(below)), axis=1) / others
  return highest[:, 0] + jnp.where(small[:, 0], near, jnp.log(mean))


def margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Largest logit of another class less the label's: positive where the image is misclassified."""
  own = jnp.arange(logits.shape[1])[None] == labels[:, None]
  return jnp.max(jnp.where(own, -jnp.inf, logits), axis=1) - pick(logits, labels)


def highest_other(logits: jax.Array, classes: jax.Array) -> jax.Array:
  """The class of the highest logit but for `classes` (B,): int32 (B,)."""
  own = jnp.arange(logits.shape[1])[None] == classes[:, None]
  return jnp.argmax(jnp.where(own, -jnp.inf, logits), axis=1).astype(jnp.int32)


def dlr(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Difference of logits ratio: Croce & Hein, AutoAttack (2020), equation 6."""
  first, second, third = largest(logits, 3)
  other = jnp.where(jnp.argmax(logits, axis=1) == labels, second, first)
  return _ratio(other - pick(logits, labels), first - third)


def dlr_targeted(logits: jax.Array, labels: jax.Array, targets: jax.Array) -> jax.Array:
  """Targeted difference of logits ratio: Croce & Hein, AutoAttack (2020), equation 7.

  It heads for the target's boundary with the label, beyond which any wrong class will do.
  """
  first, _, third, fourth = largest(logits, 4)
  return _ratio(pick(logits, targets) - pick(logits, labels), first - 0.5 * (third + fourth))


def dlr_reaching(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Equation 7 where the target itself is wanted: over the highest other logit, whosever it is."""
  first, _, third, fourth = largest(logits, 4)
  return _ratio(-margin(logits, targets), first - 0.5 * (third + fourth))


def ce_or_dlr(logits: jax.Array, labels: jax.Array, targets: jax.Array) -> jax.Array:
  """`log_odds` of the images whose target is their label, `dlr_targeted` of the others."""
  plain = targets == labels
  # Each is given logits that it is harmless on where it is not meant: 0 times its gradient is 0.
  harmless = jnp.broadcast_to(jnp.arange(logits.shape[1], dtype=logits.dtype), logits.shape)
  entropy = log_odds(jnp.where(plain[:, None], logits, harmless), labels)
  ratio = dlr_targeted(jnp.where(plain[:, None], harmless, logits), labels, targets)
  return jnp.where(plain, entropy, ratio)


def sigmoid_margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Of K decisions by the sign of their logits, labels (B, K) of 0 and 1: the worst one's."""
  return jnp.max(_against(logits, labels), axis=1)


def sigmoid_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """The logarithm of the sum of the decisions' cross-entropies, which keeps those near 0 apart."""
  against = _against(logits, labels)
  # log softplus(a) is a to the last bit of float32 below -17.
  near = jnp.log(jax.nn.softplus(jnp.maximum(against, -15.0)))
  return jax.nn.logsumexp(jnp.where(against > -15, near, against), axis=1)


def _against(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """How far each decision is on the wrong side, (B, K)."""
  return jnp.where(labels > 0, -logits, logits)


def _ratio(above: jax.Array, below: jax.Array) -> jax.Array:
  """above / below for below >= 0; where that is 0, all being equal, `above` itself.

  Both in units of `below`, which changes neither value nor gradient: its square is in the
  gradient, and that may be 0 or infinite in float32.
  """
  scale = jax.lax.stop_gradient(jnp.where(below > 0, below, 1.0))
  return (above / scale) / jnp.where(below > 0, below / scale, 1.0)


@dataclasses.dataclass(frozen=True)
class Loss:
  """What an attack maximises, a function of logits.

  Attributes:
    name: one of `MIN_CLASSES`, or a function `(outputs, labels) -> (B,)` of one's own.
    labels: int32 (B,); of a loss of one's own, whatever it takes.
    targets: int32 (B,), or None.
    targeted: whether success is to reach the target; 'dlr_targeted' alone may be otherwise.
  """

  name: LossName
  labels: Any
  targets: jax.Array | None = None
  targeted: bool = False

  @property
  def of_outputs(self) -> bool:
    """Whether it is a function of what the model gives, and not of logits of classes."""
    return takes_outputs(self.name)

  def __call__(self, logits: Any) -> jax.Array:
    """The loss (B,), or a rising function of it."""
    return loss_of(self.name, logits, self.labels, self.targets, self.targeted)


def zero_of(name: LossName, labels: Any, targets: Any) -> jax.Array | float:
  """What stands for a published loss of 0 among the values of `loss_of`, one or (B,)."""
  if name == CE_OR_DLR:
    return jnp.where(targets == labels, -jnp.inf, 0.0)
  return {'ce': -math.inf, 'ce_targeted': math.inf}.get(name, 0.0) if isinstance(name, str) else 0.0


def loss_of(
  name: LossName,
  logits: jax.Array,
  labels: jax.Array,
  targets: jax.Array | None,
  targeted: bool = True,
) -> jax.Array:
  """One of `MIN_CLASSES` by its name; the targeted ones rise as the target does.

  Args:
    name: which; or a function of one's own of logits and labels.
    logits: float32 (B, K).
    labels: int32 (B,).
    targets: int32 (B,), for the targeted losses.
    targeted: whether the target is to be reached, and not any wrong class on the way to it; it
      makes a difference to 'dlr_targeted' alone.

  Returns:
    float32 (B,): the loss, or a rising function of it.

  Raises:
    UserError: an unknown name, or no targets for a targeted loss.
  """
  if callable(name):
    return own_loss(name, logits, labels)
  plain = {
    'ce': log_odds,
    'margin': margin,
    'dlr': dlr,
    'sigmoid_ce': sigmoid_cross_entropy,
    'sigmoid_margin': sigmoid_margin,
  }
  if name in plain:
    return plain[name](logits, labels)
  if name not in (*MIN_CLASSES, CE_OR_DLR):
    raise UserError(f'unknown loss {name!r}; there are {", ".join(MIN_CLASSES)}')
  if targets is None:
    raise UserError(f'the loss {name!r} needs targets, one class an image')
  if name == CE_OR_DLR:
    return ce_or_dlr(logits, labels, targets)
  if name == 'ce_targeted':
    return -log_odds(logits, targets)
  if name == 'margin_targeted':
    return -margin(logits, targets)
  return dlr_reaching(logits, targets) if targeted else dlr_targeted(logits, labels, targets)


def takes_outputs(name: LossName) -> bool:
  """Whether a loss is one of a model's outputs as they are: of one's own, or of decisions."""
  return callable(name) or name in SIGMOID.values()


def own_loss(function: Callable[..., jax.Array], outputs: Any, labels: Any) -> jax.Array:
  """A loss of the user's own, (B,); raises `UserError` unless it is one number an image."""
  values = jnp.asarray(function(outputs, labels))
  batch = jax.tree.leaves(outputs)[0].shape[0]
  if values.shape != (batch,) or not jnp.issubdtype(values.dtype, jnp.floating):
    raise UserError(
      f'a loss of your own gives floats (B,), ({batch},) here, one an image, not '
      f'{values.dtype} {tuple(values.shape)}; leave the mean over the batch out'
    )
  return values.astype(jnp.float32)


def undefined_count(logits: jax.Array) -> jax.Array:
  """How many of each image's logits (B, K) are not numbers, (B,) int32.

  -inf is a logit, of a class that is ruled out, unless it is that of all classes.
  """
  bad = jnp.sum((jnp.isnan(logits) | (logits == jnp.inf)).astype(jnp.int32), axis=1)
  return jnp.where(jnp.all(logits == -jnp.inf, axis=1), logits.shape[1], bad)


def undefined(logits: jax.Array) -> jax.Array:
  """Which images have logits (B, K) that are not numbers, (B,) bool."""
  return undefined_count(logits) > 0


def fooled(
  logits: jax.Array, labels: jax.Array, targets: jax.Array | None, targeted: bool
) -> jax.Array:
  """Whether each image is an attacker's success: (B,) bool.

  Logits that are not numbers are one whatever was wanted: they classify nothing.
  """
  prediction = jnp.argmax(logits, axis=1)
  reached = prediction == targets if targeted else prediction != labels
  return reached | undefined(logits)


def success_of(
  name: LossName,
  outputs: Any,
  labels: Any,
  targets: jax.Array | None,
  targeted: bool,
) -> jax.Array:
  """As `fooled`, (B,); of decisions any wrong one, and a loss of one's own knows no success."""
  if callable(name):
    return jnp.zeros(jax.tree.leaves(outputs)[0].shape[:1], bool)
  if name in SIGMOID.values():
    wrong = jnp.any((outputs > 0) != (labels > 0), axis=1)
    return wrong | jnp.any(jnp.isnan(outputs), axis=1)
  return fooled(outputs, labels, targets, targeted)


# ---- What the gradient attacks make of `loss`: a name, or a function of the user's own.

OUTPUTS = ('softmax', 'sigmoid')


def is_own(loss: LossName) -> TypeGuard[Callable[..., jax.Array]]:
  """Whether it is a function of the user's own."""
  return callable(loss)


def loss_name(loss: LossName, targets: Any, output: str = 'softmax') -> LossName:
  """The loss that rises towards the attacker's goal; raises `UserError` for an unknown one."""
  check_choice('output', output, OUTPUTS)
  if output == 'sigmoid':
    return _sigmoid_name(loss, targets)
  if is_own(loss):
    if targets is not None:
      raise UserError('a loss of your own knows what it wants: leave out targets, or give a name')
    return loss
  check_choice('loss', loss, tuple(MIN_CLASSES))
  if targets is None:
    if loss.endswith('_targeted'):
      raise UserError(f'the loss {loss!r} needs targets, one class an image')
    return loss
  return loss if loss.endswith('_targeted') else f'{loss}_targeted'


def _sigmoid_name(loss: LossName, targets: Any) -> LossName:
  if is_own(loss):
    raise UserError("a loss of your own reads the outputs itself: leave out output='sigmoid'")
  if targets is not None:
    raise UserError("output='sigmoid' has labels (B, K) of 0 and 1 and no targets")
  check_choice("loss of output='sigmoid'", loss, tuple(SIGMOID))
  return SIGMOID[str(loss)]


def loss_inputs(given: Given, loss: LossName, norm: Norm, fall_back: bool = False) -> Inputs:
  """As `Given.checked`, with what the loss asks for.

  Args:
    given: what the attack is called with; for a loss of one's own the model is a function of images
      to anything, and labels are what the loss takes: a pytree of arrays (B, ...).
    loss: from `loss_name`.
    norm: of the ball.
    fall_back: whether the DLR may do with fewer classes, because the attack then takes the margin.

  Returns:
    The inputs, converted.

  Raises:
    UserError: one of them is wrong.
  """
  if is_own(loss):
    return _own_inputs(given, loss, norm)
  if loss in SIGMOID.values():
    return _sigmoid_inputs(given, norm)
  return given.checked(norm, min_classes=2 if fall_back else MIN_CLASSES[str(loss)])


def _own_inputs(given: Given, loss: Any, norm: Norm) -> Inputs:
  check_norm(norm)
  model, images = as_function(given.logits_fn), check_images(given.images)
  labels = jax.tree.map(jnp.asarray, given.labels)
  for leaf in jax.tree.leaves(labels):
    if leaf.shape[:1] != images.shape[:1]:
      raise UserError(
        f'labels have the batch as first axis, {images.shape[0]} here, got {tuple(leaf.shape)}'
      )
  if len(images):
    outputs = model_outputs(model, images)
    try:
      jax.eval_shape(lambda o, y: own_loss(loss, o, y), outputs, labels)
    except (TypeError, ValueError, KeyError, IndexError) as error:
      if isinstance(error, UserError):
        raise
      raise UserError(
        'the loss is called as loss(outputs, labels), with what the model gives; '
        f'it ends in {type(error).__name__}: {" ".join(str(error).split())[:200]}'
      ) from error
  return Inputs(model, images, labels, check_radii(given.eps, norm, images.shape[0]), None, 0)


def _sigmoid_inputs(given: Given, norm: Norm) -> Inputs:
  check_norm(norm)
  model, images, labels = as_function(given.logits_fn), check_images(given.images), given.labels
  outputs, shape = model_outputs(model, images), tuple(np.shape(labels))
  wanted = tuple(getattr(outputs, 'shape', ()))
  if len(wanted) != 2 or shape[1:] != wanted[1:] or shape[:1] != images.shape[:1]:
    raise UserError(
      f"output='sigmoid' has labels (B, K) of 0 and 1, one a decision of the model's {wanted}, got "
      f'{shape}'
    )
  if is_known(labels) and not np.isin(np.asarray(labels), (0, 1)).all():
    raise UserError("the labels of output='sigmoid' are 0 and 1, one a decision")
  labels = jnp.asarray(labels).astype(jnp.int32)
  radii = check_radii(given.eps, norm, images.shape[0])
  return Inputs(model, images, labels, radii, None, wanted[1])
