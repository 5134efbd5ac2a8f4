"""A function of images as a StableHLO program (`jax.export`), for several platforms at once."""

from __future__ import annotations

import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
from jax import export as jax_export
from jax.tree_util import Partial

from rest_jax.errors import UserError
from rest_jax.ops.platform import Form, use_form


def program(
  function: Partial, shape: tuple[int, int, int], platforms: tuple[str, ...], gradients: bool
) -> bytes:
  """Lowers and serialises a function.

  Args:
    function: images (B, H, W, C) -> arrays; its weights become constants of the program.
    shape: (H, W, C); B stays a variable.
    platforms: 'cpu', 'cuda', 'rocm', 'tpu'.
    gradients: whether the first derivative is kept.

  Returns:
    What `jax.export.deserialize` reads.

  Raises:
    UserError: an unknown platform, no flatbuffers, or a function whose shapes cannot be written
      with an unknown number of images.
  """
  if importlib.util.find_spec('flatbuffers') is None:
    raise UserError('a StableHLO file needs the package flatbuffers: pip install flatbuffers')
  known = ('cpu', 'cuda', 'rocm', 'tpu')
  if not platforms or not set(platforms) <= set(known):
    raise UserError(f'platforms are some of {", ".join(known)}, not {platforms!r}')
  (batch,) = jax_export.symbolic_shape('batch')
  images = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
  try:
    made = jax_export.export(jax.jit(_by_platform(function, platforms)), platforms=platforms)(
      images
    )
  except (
    jax.errors.ConcretizationTypeError,
    jax.errors.InconclusiveDimensionOperation,
  ) as error:
    raise UserError(
      f'this model asks how many images there are ({str(error).splitlines()[0]}); an exported '
      'program takes any number'
    ) from error
  return bytes(made.serialize(vjp_order=1 if gradients else 0))


def _by_platform(function: Partial, platforms: tuple[str, ...]) -> Any:
  """Traces each platform's form of the operations; the weights are there once."""

  def in_form(form: Form) -> Any:
    def run(weights, images):
      with use_form(form):
        return weights(images)

    return run

  if 'cpu' not in platforms:
    return lambda images: in_form('plain')(function, images)
  if len(platforms) == 1:
    return lambda images: in_form('fast')(function, images)
  return lambda images: jax.lax.platform_dependent(
    function, images, cpu=in_form('fast'), default=in_form('plain')
  )
