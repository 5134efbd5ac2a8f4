"""What the gradient attacks make of `loss`: a name, or a function of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

from rest_jax.attacks import losses
from rest_jax.attacks.checks import (
  Inputs,
  check_choice,
  check_inputs,
  check_radii,
  model_outputs,
)
from rest_jax.attacks.losses import LossName
from rest_jax.attacks.threat import Norm, check_norm
from rest_jax.callables import as_function
from rest_jax.errors import UserError
from rest_jax.inputs import check_images, is_known

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
  check_choice('loss', loss, tuple(losses.MIN_CLASSES))
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
  check_choice("loss of output='sigmoid'", loss, tuple(losses.SIGMOID))
  return losses.SIGMOID[str(loss)]


def loss_inputs(
  logits_fn: Any,
  images: Any,
  labels: Any,
  loss: LossName,
  norm: Norm,
  eps: Any,
  targets: Any,
  fall_back: bool = False,
) -> Inputs:
  """As `checks.check_inputs`, with what the loss asks for.

  Args:
    logits_fn: the model; for a loss of one's own a function of images to anything.
    images: floats (B, H, W, C) in [0, 1].
    labels: integers (B,); for a loss of one's own, what it takes: a pytree of arrays (B, ...).
    loss: from `loss_name`.
    norm: of the ball.
    eps: its radius.
    targets: classes, or None.
    fall_back: whether the DLR may do with fewer classes, because the attack then takes the margin.

  Returns:
    The inputs, converted.

  Raises:
    UserError: one of them is wrong.
  """
  if is_own(loss):
    return _own_inputs(logits_fn, images, labels, loss, norm, eps)
  if loss in losses.SIGMOID.values():
    return _sigmoid_inputs(logits_fn, images, labels, norm, eps)
  least = 2 if fall_back else losses.MIN_CLASSES[str(loss)]
  return check_inputs(
    logits_fn, images, labels, norm=norm, eps=eps, targets=targets, min_classes=least
  )


def _own_inputs(logits_fn: Any, images: Any, labels: Any, loss: Any, norm: Norm, eps: Any):
  check_norm(norm)
  model, images = as_function(logits_fn), check_images(images)
  labels = jax.tree.map(jnp.asarray, labels)
  for leaf in jax.tree.leaves(labels):
    if leaf.shape[:1] != images.shape[:1]:
      raise UserError(
        f'labels have the batch as first axis, {images.shape[0]} here, got {tuple(leaf.shape)}'
      )
  if len(images):
    outputs = model_outputs(model, images)
    try:
      jax.eval_shape(lambda o, y: losses.own_loss(loss, o, y), outputs, labels)
    except (TypeError, ValueError, KeyError, IndexError) as error:
      if isinstance(error, UserError):
        raise
      raise UserError(
        'the loss is called as loss(outputs, labels), with what the model gives; '
        f'it ends in {type(error).__name__}: {" ".join(str(error).split())[:200]}'
      ) from error
  return Inputs(model, images, labels, check_radii(eps, norm, images.shape[0]), None, 0)


def _sigmoid_inputs(logits_fn: Any, images: Any, labels: Any, norm: Norm, eps: Any) -> Inputs:
  check_norm(norm)
  model, images = as_function(logits_fn), check_images(images)
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
  radii = check_radii(eps, norm, images.shape[0])
  return Inputs(model, images, labels, radii, None, wanted[1])
