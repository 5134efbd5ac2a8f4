"""The one check of images, of radii and their norms, of counts and choices, for every room."""

from __future__ import annotations

import fractions
import math
import numbers
import os
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rest_jax.errors import UserError

Norm = Literal['linf', 'l2', 'l1']
NORMS: tuple[str, ...] = get_args(Norm)

# What a resize or a normalisation and its inverse add in float32; narrower types round more.
_SLACK = 1e-5
_LEAST_SIDE = 5  # of a plane that is taken for one of images with the channels first
_LONGEST_PLANE = 4  # width over height of such a plane of one channel


def check_images(
  images: Any, *, what: str = 'images', empty: bool = True, dtype: Any = jnp.float32
) -> jax.Array:
  """Images as everything here takes them, or one line that says what to do.

  Args:
    images: floats (B, H, W, C) in [0, 1]. Values outside by no more than rounding (1e-5, of
      narrower types than float32 twice their precision) are moved to the end of the range. Under
      jit values cannot be looked at and are taken as they are.
    what: how the error calls them.
    empty: whether a batch of none will do.
    dtype: of the result; None for that of the images.

  Returns:
    (B, H, W, C) in [0, 1].

  Raises:
    UserError: integers, another rank, channels first, values outside of [0, 1] or not finite.
  """
  check_layout(images, what=what, empty=empty)
  if is_known(images) and images.size:
    low, high = _extremes(images, what)
    if low < 0 or high > 1:
      images = jnp.clip(jnp.asarray(images), 0, 1)
  return jnp.asarray(images, dtype)


def check_layout(images: Any, *, what: str = 'images', empty: bool = True) -> None:
  """Raises `UserError` unless these are floats (B, H, W, C); looks at no value.

  Args:
    images: anything.
    what: how the error calls them.
    empty: whether a batch of none will do.
  """
  if isinstance(images, tuple | list):
    raise UserError(
      f'{what} are one array (B, H, W, C), not a {type(images).__name__}{_held(images)}'
    )
  if isinstance(images, str | os.PathLike) or hasattr(images, 'getexif'):
    raise UserError(
      f'{what} are floats (B, H, W, C) in [0, 1], not {_picture(images)}; '
      'classifier.preprocess makes them of a Pillow image; explain.explain takes pictures too'
    )
  kind = getattr(images, 'dtype', None)
  if kind is None or not jnp.issubdtype(kind, jnp.floating):
    raise UserError(
      f'{what} are floats in [0, 1], got {kind or type(images).__name__}; pixels of 0 to 255 are '
      'divided by 255 first'
    )
  shape = tuple(images.shape)
  if len(shape) != 4 or 0 in shape[1:]:
    cure = '; a single image gets a leading axis: image[None]' if len(shape) == 3 else ''
    raise UserError(f'{what} are (B, H, W, C), got {shape}{cure}')
  if _channels_first(shape):
    raise UserError(
      f'{what} are (B, H, W, C), got {shape}, which has its channels first; '
      'jnp.moveaxis(images, 1, -1) puts them last'
    )
  if not empty and not shape[0]:
    raise UserError(f'there are no {what} in an array of shape {shape}')


def _picture(images: Any) -> str:
  is_file = isinstance(images, str | os.PathLike)
  return f'the file {os.fspath(images)!r:.80}' if is_file else 'a Pillow image'


def check_pair(first: Any, second: Any, names: tuple[str, str]) -> None:
  """Raises `UserError` unless two arrays have one shape; broadcasting would compare others.

  Args:
    first: array.
    second: likewise.
    names: of the two, for the error.
  """
  shapes = tuple(np.shape(first)), tuple(np.shape(second))
  if shapes[0] != shapes[1]:
    raise UserError(f'{names[0]} and {names[1]} have one shape, got {shapes[0]} and {shapes[1]}')


def radius(value: Any, norm: str, *, what: str = 'eps', infinite: bool = False) -> float:
  """A radius in units of [0, 1].

  Args:
    value: a number, or a text such as '0.03' or '8/255'.
    norm: of the ball: 'linf', 'l2' or 'l1'; in Linf 1 is the whole range.
    what: how the error calls it.
    infinite: whether there may be no limit, infinity.

  Returns:
    The number.

  Raises:
    UserError: no number, one under 0, or one beyond 1 in Linf.
  """
  number = _number(value)
  if number is None or math.isnan(number) or number < 0 or (number == math.inf and not infinite):
    raise UserError(
      f'{what} is a radius, a number from 0 in units of [0, 1], such as 0.03 or 8/255, '
      f'not {_shown(value)}'
    )
  if norm == 'linf' and 1 < number < math.inf:
    levels = number <= 255 and '/' not in str(value)
    hint = f', such as {number:g}/255' if levels else ''
    raise UserError(
      f'{what} is {_shown(value)}, beyond 1, the whole range; it is in units of [0, 1]{hint}'
    )
  return number


def radii(values: Any, norm: str, batch: int, *, what: str = 'eps') -> Any:
  """Radii of a batch of images.

  Args:
    values: as `radius` takes it, or (B,) numbers; under jit any array of that shape.
    norm: of the ball.
    batch: B.
    what: how the error calls them.

  Returns:
    Float64 on the host, or float32 under jit: a scalar or (B,).

  Raises:
    UserError: as `radius`, or another shape.
  """
  shape = tuple(np.shape(values))
  if shape not in ((), (batch,)):
    raise UserError(f'{what} is a number or ({batch},), one an image, got shape {shape}')
  if not is_known(values):
    return jnp.asarray(values, jnp.float32)
  if not shape:
    return np.float64(radius(values, norm, what=what, infinite=True))
  each = [radius(value, norm, what=what, infinite=True) for value in np.asarray(values)]
  return np.asarray(each, np.float64)


def widest(norm: str, shape: tuple[int, ...]) -> float:
  """The longest way within [0, 1]^d, d values an image of that shape: 1, sqrt(d) or d.

  A ball of any larger radius, infinity too, holds the same images. Attacks whose steps are in units
  of the radius take this one in its place, for 0 times infinity is not a number.
  """
  count = math.prod(shape)
  return {'linf': 1.0, 'l2': math.sqrt(count), 'l1': float(count)}[norm]


def is_known(*arrays: Any) -> bool:
  """Whether the values can be looked at: none is traced, all are on this host's devices."""
  return not any(
    isinstance(a, Tracer) or (isinstance(a, jax.Array) and not a.is_fully_addressable)
    for a in arrays
  )


def check_range(values: Any, what: str) -> None:
  """Raises `UserError` for numbers that are not finite or beyond [0, 1], but for rounding.

  Args:
    values: of any shape; under jit they cannot be looked at and are taken as they are.
    what: how the error calls them.
  """
  if is_known(values) and np.size(values):
    values = np.asarray(values)
    _extremes(values.reshape(1, 1, 1, -1), what)


def _extremes(images: Any, what: str) -> tuple[float, float]:
  """Least and greatest value, after the check of them."""
  values = np.asarray(images)
  info = jnp.finfo(values.dtype)
  if info.bits < 32:
    values = values.astype(np.float32)
  low, high = float(values.min()), float(values.max())
  if not (math.isfinite(low) and math.isfinite(high)):
    bad = int((~np.isfinite(values)).any(axis=(1, 2, 3)).sum())
    raise UserError(
      f'{what} are in [0, 1], got values that are not finite in {bad} of {len(values)}'
    )
  slack = max(_SLACK, 2 * float(info.eps) if info.bits < 32 else 0.0)
  if low < -slack or high > 1 + slack:
    raise UserError(
      f'{what} are in [0, 1], got values from {low:.6g} to {high:.6g}; {_cure(low, high)}'
    )
  return low, high


def _cure(low: float, high: float) -> str:
  if low >= -_SLACK and 2 < high <= 255.5:
    return 'divide pixels of 0 to 255 by 255'
  if low > -0.2 and high < 1.2:
    return 'jnp.clip(images, 0, 1) cuts what a filter or a resize overshoots'
  return 'a normalisation by mean and deviation belongs into the model'


def _channels_first(shape: tuple[int, ...]) -> bool:
  _, first, height, width = shape
  if first not in (1, 3, 4) or min(height, width) < _LEAST_SIDE:
    return False
  # One row of many channels is a signal.
  return first > 1 or max(height, width) <= _LONGEST_PLANE * min(height, width)


def _held(values: tuple | list) -> str:
  arrays = [value for value in values if hasattr(value, 'shape')]
  if not arrays:
    return ''
  if isinstance(values, tuple) and len(values) == 2:
    return '; of a pair (images, labels) give each by itself'
  return '; jnp.stack makes one of images of one shape'


def _number(value: Any) -> float | None:
  try:
    if isinstance(value, str):
      above, slash, below = value.partition('/')
      return float(fractions.Fraction(above) / fractions.Fraction(below if slash else 1))
    if isinstance(value, bool | np.bool_) or np.shape(value):
      return None
    if isinstance(value, numbers.Number | np.generic | np.ndarray | jax.Array):
      return float(value)  # pyright: ignore
  except (TypeError, ValueError, ZeroDivisionError, OverflowError):
    pass
  return None


def _shown(value: Any) -> str:
  return value if isinstance(value, str) else f'{value!r:.40}'


def check_norm(norm: object) -> None:
  """Raises `UserError` for a norm that is none of `NORMS`."""
  if norm not in NORMS:
    raise UserError(f'unknown norm {norm!r}; there are {", ".join(NORMS)}')


def check_count(name: str, value: object, least: int = 1) -> None:
  """Raises `UserError` unless `value` is a whole number from `least`."""
  if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
    raise UserError(f'{name} is a whole number from {least}, not {value!r}')


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
  """Raises `UserError` unless `value` is one of `choices`."""
  if value not in choices:
    raise UserError(f'unknown {name} {value!r}; there are {", ".join(choices)}')
