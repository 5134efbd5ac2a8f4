"""Denoisers: images in, images out, by a transform, a compression of it and its inverse.

F-IF ("On the limitations of denoising strategies as adversarial defenses", 2012.09384): a defence
is a denoising transform F and a reconstruction, inverse F. That F is made of a lossless transform
and a compression, and that one strength from 0 to 1 steers it, is our reading: the paper's body
could not be read.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.tree_util import Partial

from rest_jax.attacks.queries import image_keys
from rest_jax.attacks.threat import check_key
from rest_jax.errors import UserError
from rest_jax.inputs import check_images, check_layout


@dataclasses.dataclass(frozen=True)
class Denoiser:
  """inverse(compress(forward(images))): a pytree, so that strengths and weights are data.

  Attributes:
    name: of the registry.
    random: it draws anew at every call, and needs a key.
    differentiable: its gradient says how its output changes; where not, `surrogate` or the
      identity stands in for it in an attack.
    strength: float32 scalar, from 0 (the images come back bit for bit) to 1.
    forward: `forward(images) -> z`, F: float32 (B, H, W, C) to any pytree.
    compress: `compress(z, strength) -> z`, or `compress(z, strength, keys) -> z`, with one key an
      image (B,), where it is random.
    inverse: `inverse(z, shape) -> images` of the static shape (B, H, W, C).
    surrogate: `surrogate(images, strength) -> images`, differentiable and near the denoiser, for
      the backward pass of an attack; None where there is none.
  """

  name: str
  strength: jax.Array
  forward: Partial
  compress: Partial
  inverse: Partial
  surrogate: Partial | None = None
  random: bool = False
  differentiable: bool = True

  def __call__(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """Denoises.

    Args:
      images: floats (B, H, W, C) in [0, 1], of any float type.
      key: PRNG key of a random denoiser, or one an image (B,); image i draws with
        `fold_in(key, i)`. Others ignore it.

    Returns:
      As `images`.

    Raises:
      UserError: no images (B, H, W, C) in [0, 1], or no key for a random denoiser.
    """
    images = check_images(images, dtype=None)
    return _denoise(self, images, _keys(self, images, key)) if len(images) else images

  def with_strength(self, strength: float | jax.Array) -> Denoiser:
    """The same denoiser at another strength: nothing is compiled anew.

    Raises:
      UserError: the strength is not a number in [0, 1].
    """
    return dataclasses.replace(self, strength=check_strength(self.name, strength))

  def near(self) -> Partial:
    """A differentiable function of images alone for BPDA: the surrogate, or the identity."""
    if self.surrogate is None:
      return Partial(_same)
    return Partial(_near, self.strength, self.surrogate)


jax.tree_util.register_dataclass(
  Denoiser,
  data_fields=['strength', 'forward', 'compress', 'inverse', 'surrogate'],
  meta_fields=['name', 'random', 'differentiable'],
)


def noise_only(denoiser: Denoiser, delta: jax.Array, key: jax.Array | None = None) -> jax.Array:
  """What a denoiser leaves of a perturbation: IF(F(delta)), as if all of the noise were known.

  Our reading: D(1/2 + delta) - D(1/2). For a linear denoiser this is D(delta), up to rounding; of
  those made for pixels (JPEG, bit depth, median) the perturbation is seen on mid grey, where no
  picture hides it and nothing is clipped. A random denoiser draws the same for both.

  Args:
    denoiser: any.
    delta: floats (B, H, W, C), adversarial minus clean images.
    key: as `Denoiser` takes it.

  Returns:
    As `delta`; at strength 0 its very bits.

  Raises:
    UserError: as `Denoiser`.
  """
  check_layout(delta, what='perturbations')
  delta = jnp.asarray(delta)
  return _noise_only(denoiser, delta, _keys(denoiser, delta, key)) if len(delta) else delta


def step(function: Callable[..., Any], *leaves: Any, **options: Any) -> Partial:
  """A part of a denoiser: `function(*leaves, *arguments, **options)`.

  Args:
    function: of a module, not a closure: it is part of the compiled program.
    *leaves: arrays, data of the compiled program.
    **options: hashable settings, part of the compiled program. Two steps of equal function and
      options share their compilation.
  """
  return Partial(_With(function, tuple(sorted(options.items()))), *leaves)


@dataclasses.dataclass(frozen=True)
class _With:
  """A function with settings that compares by value, as `functools.partial` does not."""

  function: Callable[..., Any]
  options: tuple[tuple[str, Any], ...]

  def __call__(self, *args: Any) -> Any:
    return self.function(*args, **dict(self.options))


def in_pixels(name: str, strength: Any, compress: Partial, **fields: Any) -> Denoiser:
  """A denoiser without a transform: `compress` works on the pixels."""
  inverse = Partial(_same)
  return Denoiser(name, check_strength(name, strength), Partial(_same), compress, inverse, **fields)


def check_strength(name: str, strength: Any) -> jax.Array:
  """Returns the strength as a float32 scalar; `UserError` unless it is a number in [0, 1]."""
  if isinstance(strength, Tracer):
    return jnp.asarray(strength, jnp.float32)
  try:
    value = float(strength)
  except (TypeError, ValueError):
    value = float('nan')
  if not 0 <= value <= 1:
    raise UserError(
      f'the strength of {name} is a number from 0 (identity) to 1, not {strength!r:.40}'
    )
  return jnp.asarray(value, jnp.float32)


def check_positive(option: str, value: Any) -> None:
  """Raises `UserError` unless an option's value is a finite number above 0."""
  if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
    raise UserError(f'{option} is a number above 0, not {value!r:.40}')


def _keys(denoiser: Denoiser, images: Any, key: Any) -> jax.Array | None:
  if not denoiser.random:
    return None
  if key is None:
    raise UserError(f'{denoiser.name} is random and needs a key, as jax.random.key(0)')
  return image_keys(check_key(key), images.shape[0])


@jax.jit
def _denoise(denoiser: Denoiser, images: jax.Array, keys: jax.Array | None) -> jax.Array:
  out = _transform(denoiser, images.astype(jnp.float32), keys).astype(images.dtype)
  return jnp.where(denoiser.strength == 0, images, out)


@jax.jit
def _noise_only(denoiser: Denoiser, delta: jax.Array, keys: jax.Array | None) -> jax.Array:
  wide = delta.astype(jnp.float32)
  # Without draws one grey image does for all.
  grey = jnp.full_like(wide if denoiser.random else wide[:1], 0.5)
  left = _transform(denoiser, 0.5 + wide, keys) - _transform(denoiser, grey, keys)
  return jnp.where(denoiser.strength == 0, delta, left.astype(delta.dtype))


def _transform(denoiser: Denoiser, images: jax.Array, keys: jax.Array | None) -> jax.Array:
  draws = () if keys is None else (keys,)
  z = denoiser.compress(denoiser.forward(images), denoiser.strength, *draws)
  return denoiser.inverse(z, images.shape)


def _same(z: Any, shape: tuple[int, ...] | None = None) -> Any:
  del shape
  return z


def _near(strength: jax.Array, surrogate: Partial, images: jax.Array) -> jax.Array:
  return jnp.where(strength == 0, images, surrogate(images, strength))
