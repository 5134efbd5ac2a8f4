"""A function of images as an ONNX model, by jax2onnx, and its comparison under onnxruntime."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.tree_util import Partial

from rest_jax import files
from rest_jax.errors import UserError
from rest_jax.ops.platform import portable

if TYPE_CHECKING:
  from rest_jax.export.program import Signature

TOLERANCE = 1e-4  # of the largest output
_ADVICE = 'free some space or give another path'


def write(function: Partial, path: Path, signature: Signature, told: dict[str, Any]) -> None:
  """Converts a function, compares the result with it and writes one file.

  Args:
    function: images (B, H, W, C) -> arrays.
    path: of the file.
    signature: what goes in and comes out.
    told: becomes the model's metadata, each value as JSON.

  Raises:
    UserError: the extra is not installed, something has no counterpart in ONNX, onnxruntime
      computes something else, or the file cannot be written.
  """
  try:
    import jax2onnx  # pyright: ignore[reportMissingImports]
    import onnx  # pyright: ignore[reportMissingImports]
    import onnxruntime  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise UserError(
      f"an ONNX file needs {error.name}: pip install 'rest_jax[onnx]' (in a clone '.[onnx]')"
    ) from error
  count = len(signature.outputs)
  numbered = ['logits'] if count == 1 else [f'output{i}' for i in range(count)]
  names = list(signature.names) or numbered
  model = _converted(jax2onnx, function, signature.image_shape, names)
  for name, value in told.items():
    entry = model.metadata_props.add()
    entry.key, entry.value = name, value if isinstance(value, str) else json.dumps(value)
  with files.replacing(path, advice=_ADVICE) as temporary:
    onnx.save(model, temporary)  # pyright: ignore[reportAttributeAccessIssue]
    session = onnxruntime.InferenceSession(str(temporary), providers=['CPUExecutionProvider'])
    worst = difference(function, session, signature.image_shape)
    if not worst <= TOLERANCE:
      raise UserError(
        'onnxruntime computes something else than this model: the largest difference is '
        f'{worst:.1e} of the largest output, more than {TOLERANCE:.0e}; nothing was written'
      )


def difference(function: Any, session: Any, shape: tuple[int, int, int]) -> float:
  """The largest difference between a function and its ONNX model on three images of noise.

  Args:
    function: images -> arrays.
    session: an onnxruntime session of it.
    shape: (H, W, C).

  Returns:
    As a share of the largest output in size.
  """
  images = np.random.default_rng(0).uniform(size=(3, *shape)).astype(np.float32)
  found = session.run(None, {session.get_inputs()[0].name: images})
  wanted = [np.asarray(leaf) for leaf in jax.tree.leaves(_call(function, images))]
  return float(np.max([_share(a, b) for a, b in zip(found, wanted, strict=True)]))  # NaN stays


def _share(found: np.ndarray, wanted: np.ndarray) -> float:
  """The largest difference as a share of the largest value; no number where one alone is none."""
  a, b = found.astype(np.float64), wanted.astype(np.float64)
  differ = ~((a == b) | (np.isnan(a) & np.isnan(b)))  # two infinities differ by no number
  finite = np.abs(b[np.isfinite(b)])
  with np.errstate(invalid='ignore'):
    apart = np.abs(a - b)[differ]
  return float(apart.max(initial=0) / finite.max(initial=1e-30))


_call = jax.jit(lambda function, images: function(images))  # weights are its argument


def _converted(jax2onnx: Any, function: Partial, shape: tuple[int, ...], names: list[str]) -> Any:
  def flat(images):
    with portable():
      leaves = jax.tree.leaves(function(images))
    return leaves[0] if len(leaves) == 1 else tuple(leaves)

  try:
    with _quiet():
      return jax2onnx.to_onnx(
        flat, inputs=[('batch', *shape)], input_names=['images'], output_names=names
      )
  except (NotImplementedError, KeyError, TypeError, ValueError, RuntimeError) as error:
    line = (str(error).splitlines() or [''])[0]
    raise UserError(
      f'jax2onnx does not convert this model ({type(error).__name__}: {line}); a .stablehlo file '
      'holds any'
    ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """jax2onnx reports each of its plug-ins that this JAX does not suit, with a traceback."""
  before = logging.root.manager.disable
  logging.disable(logging.ERROR)
  try:
    yield
  finally:
    logging.disable(before)
