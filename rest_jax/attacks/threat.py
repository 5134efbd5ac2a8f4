"""The threat model, and the checks of what attacks are given, one clear error each."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from rest_jax.callables import as_function
from rest_jax.errors import UserError
from rest_jax.inputs import (
  NORMS,
  Norm,
  check_images,
  check_norm,
  is_known,
  radii,
  radius,
  widest,
)
from rest_jax.ops.platform import is_traced, jit
from rest_jax.text import plural


@dataclasses.dataclass(frozen=True)
class Threat:
  """A ball around each image; it is always intersected with the pixel range [0, 1].

  Attributes:
    norm: 'linf', 'l2' or 'l1', over all pixels and channels of an image.
    eps: radius, at least 0, in pixel values of [0, 1], a number or a text such as '8/255', which
      becomes one; infinity for attacks of minimum norm, and for no limit but [0, 1].
    targeted: whether the attacker wants a given class; any wrong one otherwise.

  Raises:
    UserError: an unknown norm, or a radius that is negative, no number, or beyond 1 in Linf.
  """

  norm: Norm
  eps: float
  targeted: bool = False

  def __post_init__(self):
    check_norm(self.norm)
    object.__setattr__(self, 'eps', radius(self.eps, self.norm, infinite=True))


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

  def within_range(self, norm: Norm) -> Inputs:
    """With radii no larger than images in [0, 1] can be apart: no limit is a number too."""
    most = np.float32(widest(norm, self.images.shape[1:]))
    return self._replace(eps=jnp.minimum(self.eps, most))


class Given(NamedTuple):
  """What an attack is called with, as the caller gave it; see `check_inputs`."""

  logits_fn: Any
  images: Any
  labels: Any
  eps: Any
  targets: Any

  def checked(self, norm: Norm, **options: Any) -> Inputs:
    """Looked at and converted; options are those of `check_inputs`."""
    return check_inputs(
      self.logits_fn,
      self.images,
      self.labels,
      norm=norm,
      eps=self.eps,
      targets=self.targets,
      **options,
    )


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
    images: floats (B, H, W, C) in [0, 1], of any float dtype, as `inputs.check_images` takes them.
    labels: integers (B,), of any integer dtype.
    norm: one of `norms`.
    eps: radius, a number or (B,), as `inputs.radii` takes them; None for attacks of minimum norm.
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
  images = check_images(images)
  num_classes = check_model(model, images)
  if num_classes < min_classes:
    raise UserError(
      f'this loss needs {min_classes} classes or more; the model has {num_classes}; '
      "loss='margin' and loss='ce' need two"
    )
  labels = _check_classes('labels', labels, images.shape[0], num_classes)
  if targets is not None:
    targets = _check_classes('targets', targets, images.shape[0], num_classes)
    if is_known(targets, labels) and bool(np.any(np.asarray(targets) == np.asarray(labels))):
      raise UserError('a target is the label of its image; a target is a class to be reached')
  eps = check_radii(eps, norm, images.shape[0])
  return Inputs(model, images, labels, eps, targets, num_classes)


def check_model(model: Partial, images: jax.Array) -> int:
  """The number of classes, 2 for one logit; `UserError` unless the model gives logits (B, K)."""
  logits = model_outputs(model, images)
  shape, batch = _logits_shape(logits), max(len(images), 1)
  if len(shape) not in (1, 2) or shape[0] != batch or 0 in shape:
    raise UserError(
      f'logits_fn gives floats (B, classes), ({batch}, K) here, or one logit of a sigmoid, (B,); '
      f'got {logits.dtype} {shape}{_of_pixels(shape)}'
    )
  return 2 if shape[1:] in ((), (1,)) else shape[1]


def _of_pixels(shape: tuple[int, ...]) -> str:
  """What to do with logits of pixels."""
  ask = '; of a Segmenter attack what it says of some pixels: segmenter.question(picture, label)'
  return ask if len(shape) == 4 else ''


def model_outputs(model: Partial, images: jax.Array) -> Any:
  """Shapes of what the model gives for the images; `UserError` where it does not take them."""
  # Models need not take a batch of none.
  images = images if len(images) else jnp.zeros((1, *images.shape[1:]))
  try:
    return _outputs.eval_shape(model, images)
  except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
    raise UserError(
      'the model cannot be traced by JAX: it needs the value of an array while it is compiled '
      f'({_first_line(error)}); arrays become jnp, what decides is a Python number'
    ) from error
  except (TypeError, ValueError) as error:
    if isinstance(error, UserError):
      raise
    raise UserError(
      f'the model does not take images {tuple(images.shape)}: {_first_line(error)}'
    ) from error


def _first_line(error: Exception) -> str:
  text = str(error).strip().splitlines()
  return text[0] if text else repr(error)


def _logits_shape(logits: Any) -> tuple[int, ...]:
  """The shape; `UserError` for what is no array of floats, with the line that makes it one."""
  if not hasattr(logits, 'shape'):
    got, cure = type(logits).__name__, ''
    if 'boxes' in (logits if isinstance(logits, dict) else dir(logits)):
      got = 'what a detector finds'
      cure = '; attack what it says of one object: detector.question(picture, found, 0)'
    elif isinstance(logits, dict) and logits:
      names = list(logits)
      name = 'logits' if 'logits' in logits else names[0]
      got = f'a dict of {", ".join(map(repr, names))}'
      cure = f'; lambda images: model(images)[{name!r}] gives one of them'
    elif isinstance(logits, tuple | list) and logits:
      got = f'a {type(logits).__name__} of {len(logits)}'
      cure = '; lambda images: model(images)[0] gives the first of them'
    raise UserError(f'logits_fn gives one array (B, classes), got {got}{cure}')
  if not jnp.issubdtype(logits.dtype, jnp.floating):
    raise UserError(f'logits_fn gives floats (B, classes), got {logits.dtype} {logits.shape}')
  return tuple(logits.shape)


def check_host(name: str, *values: Any) -> None:
  """Raises `UserError` where an attack that works on the host is called inside jit.

  Args:
    name: of the attack.
    *values: its arguments, pytrees.
  """
  if is_traced(values):
    raise UserError(
      f'{name} works on the host and cannot be traced; call it outside of jit, vmap and grad, or '
      'take fgsm, pgd, mi_fgsm, apgd, cw or deepfool there'
    )


@jit
def _outputs(model: Partial, images: jax.Array):
  # Under jit only so that the shapes are found once, not on every call.
  return model(images)


def check_key(key: Any) -> jax.Array:
  """Returns the key, or one key an image (B,), typed; raises `UserError` for what is neither."""
  dtype = getattr(key, 'dtype', None)
  if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and key.ndim < 2:
    return key
  if dtype == jnp.uint32 and key.shape == (2,):
    return jax.random.wrap_key_data(key)
  raise UserError(f'key is one PRNG key, as jax.random.key(0), not {key!r:.60}')


def _check_classes(name: str, values: Any, batch: int, num_classes: int) -> jax.Array:
  dtype = getattr(values, 'dtype', None)
  array = values if dtype is not None else np.asarray(values)
  if not jnp.issubdtype(array.dtype, jnp.integer):
    raise UserError(f'{name} are integers, got {array.dtype}')
  if array.shape != (batch,):
    raise UserError(f'{name} are ({batch},), one an image, got {tuple(array.shape)}')
  if is_known(array) and batch:
    least, most = int(np.min(np.asarray(array))), int(np.max(np.asarray(array)))
    if least < 0 or most >= num_classes:
      raise UserError(
        f'{name} are from 0 to {num_classes - 1} for {plural(num_classes, "class")}, got {least} '
        f'to {most}'
      )
  # NumPy converts any integer dtype, without a warning for 64 bits.
  return jnp.asarray(np.asarray(array).astype(np.int32) if is_known(array) else array, jnp.int32)


def check_given(eps: Any) -> None:
  """Raises `UserError` where an attack within a radius has none."""
  if eps is None:
    raise UserError('the radius is missing: give eps, or infinity (math.inf) for no limit')


def check_radii(eps: Any, norm: str, batch: int) -> jax.Array:
  """Radii float32 (B,), none larger than what was given; infinity where that is None."""
  if eps is None:
    return jnp.full((batch,), jnp.inf, jnp.float32)
  wide = radii(eps, norm, batch)
  if not is_known(wide):
    return jnp.broadcast_to(wide, (batch,))
  return jnp.asarray(np.broadcast_to(_round_down(wide), (batch,)))


def _round_down(wide: np.ndarray) -> np.ndarray:
  """The nearest float32 that is not larger, so that nobody's comparison finds the ball left."""
  with np.errstate(over='ignore', under='ignore'):
    narrow = wide.astype(np.float32)
    return np.where(narrow > wide, np.nextafter(narrow, np.float32(0)), narrow)
