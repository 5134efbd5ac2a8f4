"""Low-, high- and band-pass filters as denoisers.

The radius of a frequency is its share of the largest there is, `rest_jax.ops.bands`: 0 the mean,
1 the finest checkerboard. Filters are ideal: a coefficient stays as it is or becomes 0.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rest_jax.defend.denoise.denoisers import Denoiser, check_strength, register, step
from rest_jax.errors import UserError
from rest_jax.ops.bands import TRANSFORMS, inverse2, radii, transform2


@register(
  'low_pass',
  family='frequency',
  strength='radius above which frequencies are removed, from 1 down to 0.25',
  source='Zhang et al., "Adversarial defense by suppressing high-frequency components", 2019',
)
def low_pass(strength: float, cutoff: float = 0.25, transform: str = 'dct') -> Denoiser:
  """Removes frequencies of a radius above 1 - strength * (1 - cutoff).

  Args:
    strength: from 0 to 1.
    cutoff: radius at strength 1, in [0, 1).
    transform: 'dct', whose borders are mirrored, or 'fft', whose borders are periodic.

  Raises:
    UserError: an option out of range.
  """
  return _filter('low_pass', strength, transform, lowest=0.0, highest=cutoff)


@register(
  'high_pass',
  family='frequency',
  strength='radius below which frequencies are removed, up to 0.25; the mean stays',
  source='Yin et al., "A Fourier perspective on model robustness in computer vision", 2019',
)
def high_pass(strength: float, cutoff: float = 0.25, transform: str = 'dct') -> Denoiser:
  """Removes frequencies of a radius under strength * cutoff, but for the mean.

  The mean of each channel stays, so that what comes out is an image still.

  Args:
    strength: from 0 to 1.
    cutoff: radius at strength 1, in (0, 1].
    transform: 'dct' or 'fft'.

  Raises:
    UserError: an option out of range.
  """
  return _filter('high_pass', strength, transform, lowest=cutoff, highest=1.0)


@register(
  'band_pass',
  family='frequency',
  strength='removes radii outside a band that narrows from [0, 1] to [0.05, 0.5]; the mean stays',
  source='Yin et al., "A Fourier perspective on model robustness in computer vision", 2019',
)
def band_pass(
  strength: float, low: float = 0.05, high: float = 0.5, transform: str = 'dct'
) -> Denoiser:
  """Removes radii under strength * low and above 1 - strength * (1 - high), but for the mean.

  Args:
    strength: from 0 to 1.
    low: least radius that stays at strength 1.
    high: largest radius that stays at strength 1.
    transform: 'dct' or 'fft'.

  Raises:
    UserError: an option out of range, or no band between the two.
  """
  return _filter('band_pass', strength, transform, lowest=low, highest=high)


def _filter(name: str, strength: Any, transform: str, *, lowest: Any, highest: Any) -> Denoiser:
  if transform not in TRANSFORMS:
    raise UserError(f'the transform of {name} is {" or ".join(TRANSFORMS)}, not {transform!r}')
  numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (lowest, highest))
  if not numbers or not 0 <= lowest < highest <= 1:
    raise UserError(
      f'{name} keeps a band of radii in [0, 1], not those from {lowest!r} to {highest!r}'
    )
  return Denoiser(
    name,
    check_strength(name, strength),
    forward=step(_forward, transform=transform),
    compress=step(_keep, lowest=float(lowest), highest=float(highest)),
    inverse=step(_inverse, transform=transform),
  )


def _forward(images: jax.Array, *, transform: str) -> tuple[jax.Array, jax.Array]:
  """The coefficients, and the radius of each."""
  radius = jnp.asarray(radii(images.shape[1], images.shape[2], transform), jnp.float32)
  return transform2(images, transform), radius[None, :, :, None]


def _keep(z: tuple[jax.Array, jax.Array], strength: jax.Array, *, lowest: float, highest: float):
  coefficients, radius = z
  kept = (radius >= strength * lowest) & (radius <= 1 - strength * (1 - highest))
  mask = jnp.broadcast_to(kept | (radius == 0), coefficients.shape)
  return jnp.where(mask, coefficients, jnp.zeros_like(coefficients)), radius


def _inverse(
  z: tuple[jax.Array, jax.Array], shape: tuple[int, ...], *, transform: str
) -> jax.Array:
  return inverse2(z[0], transform, shape)
