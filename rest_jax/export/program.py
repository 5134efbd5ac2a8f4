"""One door for both formats: what the program takes and gives, and the file that says so."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

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
    names: of the outputs, where they have some, such as 'boxes' and 'scores'.
  """

  image_shape: tuple[int, int, int]
  outputs: tuple[tuple[tuple[int | str, ...], str], ...]
  names: tuple[str, ...] = ()


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
    model: a `Classifier`, `Detector` or `Segmenter`, or any function from images (B, H, W, C) in
      [0, 1] to an array or to a pytree of arrays, which come out in the order of its leaves.
    path: ends in `.stablehlo`, which `jax.export.deserialize` reads (for at least six months of
      newer versions of JAX, its promise), or in `.onnx`, which needs the extra `onnx`; the ONNX
      program is run once by onnxruntime and compared.
    image_shape: (H, W, C); by default the classifier's input size, or the one canvas of a detector
      or segmenter. A picture lies in its upper left corner, the rest has the mean colour.
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
  function = Partial(_plain, as_function(model))
  signature = _signature(function, shape)
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
  canvases = getattr(getattr(model, 'config', None), 'canvases', ())
  size = getattr(model, 'input_size', None)
  if given is None and size is None and len(canvases) != 1:
    choice = f'; its canvases are {", ".join(f"{h}x{w}" for h, w in canvases)}' if canvases else ''
    raise UserError(f'export needs image_shape=(H, W, C) for a model of no one size{choice}')
  sides = canvases[0] if size is None and canvases else (size, size)
  shape = (*sides, len(model.mean)) if given is None else tuple(given)
  if len(shape) != 3 or not all(type(side) is int and side > 0 for side in shape):
    raise UserError(f'image_shape is (H, W, C), three whole numbers above 0, not {given!r}')
  return shape  # pyright: ignore[reportReturnType]


def _plain(function: Partial, images: jax.Array) -> Any:
  """Outputs that any JAX can name: a named tuple, such as `Detections`, becomes a dict."""
  outputs = function(images)
  if not hasattr(outputs, '_asdict'):
    return outputs
  return {name: part for name, part in outputs._asdict().items() if part is not None}


def _signature(function: Any, shape: tuple[int, int, int]) -> Signature:
  """What goes in and comes out; the batch is found by what changes with it."""
  one, two = (
    jax.eval_shape(function, jax.ShapeDtypeStruct((n, *shape), jnp.float32)) for n in (2, 3)
  )
  paths = [
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, _ in jax.tree.leaves_with_path(one)
  ]
  outputs = tuple(
    (tuple(s if s == t else 'batch' for s, t in zip(a.shape, b.shape, strict=True)), str(a.dtype))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
  )
  return Signature(shape, outputs, tuple(paths) if all(paths) else ())


def _description(model: Any, signature: Signature, place: Path) -> dict[str, Any]:
  """What stands in the .json beside the program."""
  height, width, channels = signature.image_shape
  outputs: list[dict[str, Any]] = [
    {'shape': list(shape), 'dtype': dtype} for shape, dtype in signature.outputs
  ]
  for output, name in zip(outputs, signature.names, strict=False):
    output['name'] = name
  found: dict[str, Any] = {
    'format': place.suffix[1:],
    'input': {
      'name': 'images',
      'shape': ['batch', height, width, channels],
      'dtype': 'float32',
      'range': [0.0, 1.0],
      'colours': 'RGB' if channels == 3 else 'as trained',
    },
    'outputs': outputs,
    'versions': {'rest_jax': rest_jax.__version__, 'jax': jax.__version__},
  }
  if not hasattr(model, 'config'):
    return found
  return found | _of_config(model) | {'preprocessing': _steps(model.config, height, width)}


def _of_config(model: Any) -> dict[str, Any]:
  """What a model of ours says of itself."""
  config = model.config
  return {
    'model': config.model,
    'normalisation': {'inside': True, 'mean': list(config.mean), 'std': list(config.std)},
    'class_names': list(model.class_names),
  }


def _steps(config: Any, height: int, width: int) -> dict[str, Any]:
  """How a picture becomes the input of that size; {} where the model says nothing of it."""
  if hasattr(config, 'canvases'):
    padding = 'right and below, in the mean colour'
    steps = {'short': config.short, 'long': config.long, 'padding': padding}
    return steps if (height, width) in config.canvases else {}
  if height != width:
    return {}
  kept = {name: getattr(config, name) for name in ('resize', 'crop_pct', 'interpolation')}
  return {'input_size': height, **kept}
