"""State dicts of detectron2 and mmsegmentation in and out, exactly.

Where the architecture is theirs: ResT, ResTv2 and ResNet below RetinaNet and Mask R-CNN
(detectron2), UPerNet and Semantic FPN (mmsegmentation). Detectron2's own ResNet checkpoints step in
the first 1x1 convolution of a block where ours step in the 3x3, unless they were configured like
torchvision's (STRIDE_IN_1X1 False): their tensors fit and their values do not.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from rest_jax.errors import UserError
from rest_jax.models import model_dir
from rest_jax.models.convert_dense_tables import detectron2_table, is_constant, mmseg_table
from rest_jax.models.pytorch_names import Row, Target, target
from rest_jax.models.retinanet import FIRST_POSITIVES

__all__ = ['from_detectron2', 'from_mmseg', 'to_detectron2', 'to_mmseg']

# What has no counterpart there: the running mean of positives, and the counts of frozen norms.
_OURS = {'positives': FIRST_POSITIVES, 'count': 0}


def from_detectron2(state_dict: Mapping[str, Any], detector: nn.Module) -> dict[str, Any]:
  """Turns a state dict of detectron2 into a detector's variables.

  Args:
    state_dict: {name: array}; constants that it keeps too (pixel_mean, anchors) are passed over.
    detector: of `create_detector`.

  Returns:
    {'params': ..., 'batch_stats': ...}, float32.

  Raises:
    UserError: names are missing, unexpected or misshapen; all are listed.
  """
  return _convert(state_dict, detector, detectron2_table(detector))


def to_detectron2(variables: Mapping[str, Any], detector: nn.Module) -> dict[str, np.ndarray]:
  """The inverse of `from_detectron2`.

  Raises:
    UserError: the variables are not the detector's.
  """
  return _revert(variables, detector, detectron2_table(detector))


def from_mmseg(state_dict: Mapping[str, Any], segmenter: nn.Module) -> dict[str, Any]:
  """Turns a state dict of mmsegmentation into a segmenter's variables.

  Args:
    state_dict: {name: array}.
    segmenter: of `create_segmenter`.

  Returns:
    {'params': ..., 'batch_stats': ...}, float32.

  Raises:
    UserError: names are missing, unexpected or misshapen; all are listed.
  """
  return _convert(state_dict, segmenter, mmseg_table(segmenter))


def to_mmseg(variables: Mapping[str, Any], segmenter: nn.Module) -> dict[str, np.ndarray]:
  """The inverse of `from_mmseg`.

  Raises:
    UserError: the variables are not the segmenter's.
  """
  return _revert(variables, segmenter, mmseg_table(segmenter))


# A trace of the whole model, and there and back need it each.
_tensors = functools.lru_cache(maxsize=4)(model_dir.abstract_tensors)


def _targets(paths, table: tuple[Row, ...], model: nn.Module) -> dict[str, Target | None]:
  """What each tensor is called there; None where it is only ours."""
  position = getattr(model.backbone, 'position', '')  # type: ignore[attr-defined]
  found: dict[str, Target | None] = {}
  for path in paths:
    try:
      found[path] = target(path, table, position)
    except UserError:
      if path.rpartition('/')[2] not in _OURS:
        raise
      found[path] = None
  return found


def _convert(state_dict, model: nn.Module, table: tuple[Row, ...]) -> dict[str, Any]:
  """Variables of a state dict whose names a table gives."""
  expected = _tensors(model)
  targets = _targets(expected, table, model)
  state_dict = {name: value for name, value in state_dict.items() if not is_constant(name)}
  _check(state_dict, expected, targets, model)
  leaves = {}
  for path, spec in expected.items():
    to = targets[path]
    array = None if to is None else state_dict.get(to.torch_name)
    if to is None or array is None:
      leaves[path] = jnp.full(spec.shape, _OURS[path.rpartition('/')[2]], spec.dtype)
    else:
      leaves[path] = jnp.asarray(
        np.require(to.transform.from_torch(np.asarray(array)), spec.dtype, 'C')
      )
  return model_dir.unflatten(leaves)


def _check(
  state_dict: Mapping[str, Any],
  expected: Mapping[str, jax.ShapeDtypeStruct],
  targets: Mapping[str, Target | None],
  model: nn.Module,
) -> None:
  """Raises one error that lists everything that does not fit, in PyTorch's names and layouts."""
  wanted = {}
  for path, to in targets.items():
    if to is not None and (to.torch_name in state_dict or not to.optional):
      # A broadcast scalar has the tensor's shape and no memory.
      zeros = np.broadcast_to(np.int32(0), expected[path].shape)
      wanted[to.torch_name] = to.transform.to_torch(zeros).shape
  wrong = model_dir.misfits(wanted, model_dir.shapes(state_dict))
  if wrong:
    below = type(model.backbone).__name__  # type: ignore[attr-defined]
    raise UserError(f'the state dict does not fit {type(model).__name__} on {below}; {wrong}')


def _revert(variables, model: nn.Module, table: tuple[Row, ...]) -> dict[str, np.ndarray]:
  """State dict of variables, under the names that a table gives."""
  expected, flat = _tensors(model), model_dir.flatten(variables)
  wrong = model_dir.misfits(model_dir.shapes(expected), model_dir.shapes(flat))
  if wrong:
    raise UserError(f'the variables do not fit {type(model).__name__}: {wrong}')
  return {
    to.torch_name: np.require(to.transform.to_torch(np.asarray(flat[path])), requirements='C')
    for path, to in _targets(expected, table, model).items()
    if to is not None
  }
