"""What is looked at before maps go out: that they are numbers, and that their gradient is not 0."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rest_jax.errors import UserError
from rest_jax.explain.maps import constant_maps
from rest_jax.explain.outputs import PROBABLE
from rest_jax.explain.queries import layer_gradient, logits_once, target_gradients
from rest_jax.explain.taps import Tap
from rest_jax.ops.platform import jit

COMPLETE = 0.05  # Sundararajan et al. 2017, section 5: steps are added until the sum is within 5 %


class EmptyMaps(UserWarning):
  """All maps of a batch are empty because the score does not depend on what was looked at."""


class ProbabilityOutputs(UserWarning):
  """The model seems to end in a softmax, and explanations apply another."""


class Incomplete(UserWarning):
  """Integrated gradients whose sum is not the score's difference."""


def has_rows(option: Any) -> bool:
  """Whether an option has a row an image: a batch (B, H, W, C), or keys (B,)."""
  is_keys = isinstance(option, jax.Array) and jnp.issubdtype(option.dtype, jax.dtypes.prng_key)
  return not isinstance(option, str) and np.ndim(option) == (1 if is_keys else 4)


def check_rows(options: dict[str, Any], count: int) -> None:
  """Raises `UserError` where options with a row an image are not of so many images."""
  for name, option in options.items():
    if len(option) not in (1, count):
      raise UserError(
        f'{name} has {len(option)} rows for {count} images; give one a picture, or one for all'
      )


def check_finite(name: str, maps: Any, point: Tap, images: jax.Array) -> None:
  """Raises `UserError` for maps that are not numbers, and says why; nothing inside jit.

  Args:
    name: of the method.
    maps: (B, H, W).
    point: of the model.
    images: float32 (B, H, W, C).
  """
  if isinstance(maps, Tracer):
    return
  wrong = np.flatnonzero(~np.isfinite(np.asarray(maps)).all((1, 2)))
  if not len(wrong):
    return
  logits = np.asarray(logits_once(point, images[wrong]))
  what = 'scores' if point.score is not None else 'logits'
  count = int((~np.isfinite(logits)).sum())
  if count:
    reason = f'{count} of {logits.size} {what} there are nan or inf'
  else:
    reason = f'its {what} are, so a gradient, or an output for a changed image, is nan or inf'
  raise UserError(
    f'{name}: no finite map of {_which(wrong, len(maps))}: {reason}; look at the weights, and at '
    'what overflows'
  )


def warn_if_empty(
  name: str, needs_layer: bool, maps: Any, point: Tap, images: jax.Array, targets: Any
) -> None:
  """Warns in one line where all maps are 0 because the gradient that makes them is.

  Args:
    name: of the method.
    needs_layer: whether it looks at a layer's gradient, otherwise at that of the pixels.
    maps: (B, H, W).
    point: of the model.
    images: float32 (B, H, W, C).
    targets: int32 (B,), or None for the predicted classes.
  """
  if isinstance(maps, Tracer) or not bool(constant_maps(maps).all()):
    return
  if bool(np.any(np.asarray(_gradient(point, images, targets, needs_layer)))):
    return
  where = f'layer {point.resolve(images.shape)}' if needs_layer else 'every pixel'
  cure = (
    'the score does not depend on the map there (behind the last attention only the class token '
    'reaches it); name an earlier one, explain.list_layers knows them'
    if needs_layer
    else 'something in the model rounds, or stops gradients; rise and occlusion need none'
  )
  warnings.warn(
    f'{name}: all maps are empty, for the gradient at {where} is 0 in all images: {cure}',
    EmptyMaps,
    stacklevel=5,
  )


def warn_if_probable(name: str, probable: bool) -> None:
  """Warns in one line of a model whose outputs look like a softmax's, where they do."""
  if probable:
    warnings.warn(f'{name}: {PROBABLE}', ProbabilityOutputs, stacklevel=3)


def warn_if_incomplete(name: str, delta: Any, steps: Any) -> None:
  """Warns in one line of attributions that miss the score's difference by over 5 %."""
  if delta is None or isinstance(delta, Tracer):
    return
  delta, steps = np.asarray(delta), np.asarray(steps)
  wrong = np.flatnonzero(delta > COMPLETE)
  if len(wrong):
    warnings.warn(
      f'{name}: the attributions of {_which(wrong, len(delta))} miss the difference of scores by '
      f'{delta.max():.0%} at worst, after {steps[wrong].max()} gradients; take more, or leave '
      'their number to the method',
      Incomplete,
      stacklevel=5,
    )


def _which(wrong: np.ndarray, count: int) -> str:
  if len(wrong) == count:
    return f'all {count} images' if count > 1 else 'the image'
  listed = ', '.join(str(i) for i in wrong[:5])
  return f'image{"s" if len(wrong) > 1 else ""} {listed}{", ..." if len(wrong) > 5 else ""}'


@functools.partial(jit, static_argnames='needs_layer')
def _gradient(point: Tap, images: jax.Array, targets: Any, needs_layer: bool) -> jax.Array:
  if needs_layer:
    return jnp.abs(layer_gradient(point, images, targets).gradients).max()
  return jnp.abs(target_gradients(point, images, targets)).max()
