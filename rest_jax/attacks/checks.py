"""Checks of what attacks are given, one clear error each."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import Partial

from rest_jax.attacks.threat import NORMS, Norm, check_norm
from rest_jax.callables import as_function
from rest_jax.errors import UserError


class Inputs(NamedTuple):
  """Checked inputs of an attack.

  Attributes:
    model: a `Partial` from images (B, H, W, C) to logits (B, K).
    images: float32 (B, H, W, C) in [0, 1].
    labels: int32 (B,) from 0 to K - 1.
    eps: float32 (B,), not larger than what was given; infinity where nothing was.
    targets: int32 (B,), or None.
    num_classes: K.
  """

  model: Partial
  images: jax.Array
  labels: jax.Array
  eps: jax.Array
  targets: jax.Array | None
  num_classes: int


def check_inputs(
  logits_fn: Any,
  images: Any,
  labels: Any,
  *,
  norm: Norm = 'linf',
  eps: Any = None,
  targets: Any = None,
  min_classes: int = 2,
  norms: tuple[str, ...] = NORMS,
) -> Inputs:
  """Checks and converts the inputs of an attack; values are checked outside jit only.

  Args:
    logits_fn: images (B, H, W, C) to logits (B, K): a `Classifier` or any function.
    images: floats (B, H, W, C) in [0, 1], of any float dtype.
    labels: integers (B,), of any integer dtype.
    norm: one of `norms`.
    eps: radius from 0, a scalar or (B,); None for attacks of minimum norm.
    targets: classes to reach, integers (B,) other than the labels; None for any wrong class.
    min_classes: how many classes the attack's loss needs.
    norms: what the attack knows.

  Returns:
    The inputs, converted.

  Raises:
    UserError: one of them is wrong.
  """
  check_norm(norm)
  if norm not in norms:
    raise UserError(f'this attack has no norm {norm!r}; it has {", ".join(norms)}')
  model = as_function(logits_fn)
  images = _check_images(images)
  num_classes = check_model(model, images)
  if num_classes < min_classes:
    raise UserError(f'this loss needs {min_classes} classes or more; the model has {num_classes}')
  labels = _check_classes('labels', labels, images.shape[0], num_classes)
  if targets is not None:
    targets = _check_classes('targets', targets, images.shape[0], num_classes)
    if _is_known(targets, labels) and bool(np.any(np.asarray(targets) == np.asarray(labels))):
      raise UserError('a target is the label of its image; a target is a class to be reached')
  return Inputs(model, images, labels, _check_eps(eps, images.shape[0]), targets, num_classes)


def check_model(model: Partial, images: jax.Array) -> int:
  """Returns the number of classes; raises `UserError` unless the model gives logits (B, K)."""
  # Models need not take a batch of none.
  images = images if len(images) else jnp.zeros((1, *images.shape[1:]))
  try:
    logits = _logits.eval_shape(model, images)
  except (TypeError, ValueError) as error:
    if isinstance(error, UserError):
      raise
    text = str(error).strip().splitlines()
    raise UserError(
      f'the model does not take images {tuple(images.shape)}: {text[0] if text else error!r}'
    ) from error
  if not hasattr(logits, 'shape'):
    raise UserError(f'logits_fn gives one array (B, classes), got {type(logits).__name__}')
  shape = tuple(logits.shape)
  if not jnp.issubdtype(logits.dtype, jnp.floating) or len(shape) != 2 or shape[0] != len(images):
    raise UserError(
      f'logits_fn gives floats (B, classes), ({len(images)}, K) here, got {logits.dtype} {shape}'
    )
  return shape[1]


@jax.jit
def _logits(model: Partial, images: jax.Array):
  # Under jit only so that the shapes are found once, not on every call.
  return model(images)


def check_count(name: str, value: object, least: int = 1) -> None:
  """Raises `UserError` unless `value` is a whole number from `least`."""
  if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
    raise UserError(f'{name} is a whole number from {least}, not {value!r}')


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
  """Raises `UserError` unless `value` is one of `choices`."""
  if value not in choices:
    raise UserError(f'unknown {name} {value!r}; there are {", ".join(choices)}')


def check_key(key: Any) -> jax.Array:
  """Returns the key, or one key an image (B,), typed; raises `UserError` for what is neither."""
  dtype = getattr(key, 'dtype', None)
  if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and key.ndim < 2:
    return key
  if dtype == jnp.uint32 and key.shape == (2,):
    return jax.random.wrap_key_data(key)
  raise UserError(f'key is one PRNG key, as jax.random.key(0), not {key!r:.60}')


def _check_images(images: Any) -> jax.Array:
  shape, dtype = tuple(np.shape(images)), getattr(images, 'dtype', None)
  if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
    raise UserError(
      f'images are an array of floats in [0, 1], got {dtype or type(images).__name__}; pixels of '
      '0 to 255 are divided by 255 first'
    )
  if len(shape) != 4 or 0 in shape[1:]:
    raise UserError(
      f'images are (B, H, W, C), got {shape}; a single image gets a leading axis: image[None]'
    )
  if _is_known(images) and shape[0]:
    # Before the conversion: 1 + 1e-12 in float64 is outside, and NaN fails every comparison.
    least, most = np.min(np.asarray(images)), np.max(np.asarray(images))
    if not (least >= 0 and most <= 1):
      raise UserError(f'images are in [0, 1], got values from {least:.6g} to {most:.6g}')
  return jnp.asarray(images, jnp.float32)


def _check_classes(name: str, values: Any, batch: int, num_classes: int) -> jax.Array:
  dtype = getattr(values, 'dtype', None)
  array = values if dtype is not None else np.asarray(values)
  if not jnp.issubdtype(array.dtype, jnp.integer):
    raise UserError(f'{name} are integers, got {array.dtype}')
  if array.shape != (batch,):
    raise UserError(f'{name} are ({batch},), one an image, got {tuple(array.shape)}')
  if _is_known(array) and batch:
    least, most = int(np.min(np.asarray(array))), int(np.max(np.asarray(array)))
    if least < 0 or most >= num_classes:
      raise UserError(f'{name} are from 0 to {num_classes - 1}, got {least} to {most}')
  # NumPy converts any integer dtype, without a warning for 64 bits.
  return jnp.asarray(np.asarray(array).astype(np.int32) if _is_known(array) else array, jnp.int32)


def _check_eps(eps: Any, batch: int) -> jax.Array:
  if eps is None:
    return jnp.full((batch,), jnp.inf, jnp.float32)
  if not _is_known(eps):
    return jnp.broadcast_to(jnp.asarray(eps, jnp.float32), (batch,))
  try:
    wide = np.asarray(eps, np.float64)
  except (TypeError, ValueError):
    wide = np.full((), np.nan)
  if wide.shape not in ((), (batch,)):
    raise UserError(f'eps is a number or ({batch},), one an image, got shape {wide.shape}')
  if not np.all(wide >= 0):
    raise UserError(f'a radius eps is a number from 0, in units of [0, 1], got {eps!r:.60}')
  return jnp.asarray(np.broadcast_to(_round_down(wide), (batch,)))


def _round_down(wide: np.ndarray) -> np.ndarray:
  """The nearest float32 that is not larger, so that nobody's comparison finds the ball left."""
  with np.errstate(over='ignore', under='ignore'):
    narrow = wide.astype(np.float32)
    return np.where(narrow > wide, np.nextafter(narrow, np.float32(0)), narrow)


def _is_known(*arrays: Any) -> bool:
  return not any(isinstance(array, Tracer) for array in arrays)
