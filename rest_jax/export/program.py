"""One door for both formats: what the program takes and gives, and the file that says so."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import rest_jax
from rest_jax import files
from rest_jax.callables import as_function
from rest_jax.errors import UserError
from rest_jax.paths import local

FORMATS = ('.stablehlo', '.onnx')
PLATFORMS = ('cpu', 'cuda', 'tpu')
_ADVICE = 'free some space or give another path'


@dataclasses.dataclass(frozen=True)
class Signature:
  """What an exported program takes and gives.

  Attributes:
    image_shape: (H, W, C) of the images, floats in [0, 1]; the batch is free.
    outputs: shape and dtype of each array that comes out, 'batch' for the free side.
  """

  image_shape: tuple[int, int, int]
  outputs: tuple[tuple[tuple[int | str, ...], str], ...]


def export(
  model: Any,
  path: str | os.PathLike[str],
  *,
  image_shape: Sequence[int] | None = None,
  platforms: Sequence[str] = PLATFORMS,
  gradients: bool = False,
) -> Path:
  """Writes a model as a program that needs nothing of this library.

  Normalisation is inside, the number of images is free, the size of the images is fixed. Beside
  the program stands `<path>.json`: input, output, class names, how a picture becomes the input.

  Args:
    model: a `Classifier`, or any function from images (B, H, W, C) in [0, 1] to an array or to a
      pytree of arrays.
    path: ends in `.stablehlo`, which `jax.export.deserialize` reads (for at least six months of
      newer versions of JAX, its promise), or in `.onnx`, which needs the extra `onnx`; the ONNX
      program is run once by onnxruntime and compared.
    image_shape: (H, W, C); by default the classifier's input size.
    platforms: that a StableHLO program is lowered for.
    gradients: of StableHLO: keep the program's derivative too, so that it can be attacked and
      explained.

  Returns:
    The path of the program.

  Raises:
    UserError: another ending, no image shape, something that cannot be converted, a package that
      is not installed, or a place that cannot be written.
  """
  place = local(path, 'the path of the export')
  if place.suffix not in FORMATS:
    raise UserError(
      f'a model is exported to a file that ends in {" or ".join(FORMATS)}, not {path}'
    )
  if place.suffix == '.onnx' and (gradients or tuple(platforms) != PLATFORMS):
    raise UserError('gradients and platforms are of .stablehlo; an .onnx file has neither')
  shape = _image_shape(model, image_shape)
  function = as_function(model)
  signature = Signature(shape, _outputs(function, shape))
  told = _description(model, signature, place)
  if place.suffix == '.onnx':
    from rest_jax.export import onnx

    onnx.write(function, place, signature, told)
  else:
    from rest_jax.export import stablehlo

    with files.replacing(place, advice=_ADVICE) as temporary:
      temporary.write_bytes(stablehlo.program(function, shape, tuple(platforms), gradients))
    told |= {'platforms': list(platforms)}
  files.write_json(place.with_name(f'{place.name}.json'), told, advice=_ADVICE)
  return place


def _image_shape(model: Any, given: Sequence[int] | None) -> tuple[int, int, int]:
  size = getattr(model, 'input_size', None)
  if given is None and size is None:
    raise UserError('export needs image_shape=(H, W, C) for a model that is no Classifier')
  shape = (size, size, len(model.mean)) if given is None else tuple(given)
  if len(shape) != 3 or not all(type(side) is int and side > 0 for side in shape):
    raise UserError(f'image_shape is (H, W, C), three whole numbers above 0, not {given!r}')
  return shape  # pyright: ignore[reportReturnType]


def _outputs(function: Any, shape: tuple[int, int, int]) -> Any:
  """Shapes and dtypes of what comes out; the batch is found by what changes with it."""
  one, two = (
    jax.tree.leaves(jax.eval_shape(function, jax.ShapeDtypeStruct((n, *shape), jnp.float32)))
    for n in (2, 3)
  )
  return tuple(
    (tuple(s if s == t else 'batch' for s, t in zip(a.shape, b.shape, strict=True)), str(a.dtype))
    for a, b in zip(one, two, strict=True)
  )


def _description(model: Any, signature: Signature, place: Path) -> dict[str, Any]:
  """What stands in the .json beside the program."""
  height, width, channels = signature.image_shape
  found: dict[str, Any] = {
    'format': place.suffix[1:],
    'input': {
      'name': 'images',
      'shape': ['batch', height, width, channels],
      'dtype': 'float32',
      'range': [0.0, 1.0],
      'colours': 'RGB' if channels == 3 else 'as trained',
    },
    'outputs': [{'shape': list(s), 'dtype': dtype} for s, dtype in signature.outputs],
    'versions': {'rest_jax': rest_jax.__version__, 'jax': jax.__version__},
  }
  config = getattr(model, 'config', None)
  if config is None:
    return found
  kept = ('input_size', 'resize', 'crop_pct', 'interpolation')
  return found | {
    'model': config.model,
    'normalisation': {'inside': True, 'mean': list(config.mean), 'std': list(config.std)},
    'preprocessing': {name: getattr(config, name) for name in kept},
    'class_names': list(model.class_names),
  }
