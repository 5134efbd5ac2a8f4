"""State dicts of detectron2 and mmsegmentation in and out, exactly.

Where the architecture is theirs: ResT, ResTv2 and ResNet below RetinaNet and Mask R-CNN
(detectron2), UPerNet and Semantic FPN (mmsegmentation). Detectron2's own ResNet checkpoints step in
the first 1x1 convolution of a block where ours step in the 3x3, unless they were configured like
torchvision's (STRIDE_IN_1X1 False): their tensors fit and their values do not.

The names are regex tables. Sources: detectron2 (github.com/facebookresearch/detectron2) for
RetinaNet and Mask R-CNN, mmsegmentation (github.com/open-mmlab/mmsegmentation) for UPerNet and
Semantic FPN, and the authors' backbones for both (github.com/wofmanaf/ResT, object_detection and
semantic_segmentation).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from rest_jax.errors import UserError
from rest_jax.models import model_dir
from rest_jax.models.pytorch import state_dict_of, torch_shapes
from rest_jax.models.pytorch_names import (
  BATCH_NORM,
  CONV,
  DENSE,
  FROZEN_NORM,
  NORM,
  RESNET,
  Leaf,
  Row,
  Target,
  Transform,
  table_for,
  target,
)
from rest_jax.models.retinanet import FIRST_POSITIVES

__all__ = ['from_detectron2', 'from_mmseg', 'to_detectron2', 'to_mmseg']

# What has no counterpart there: the running mean of positives, and the counts of frozen norms.
_OURS = {'positives': FIRST_POSITIVES, 'count': 0}
# A transposed convolution keeps its input channels first.
_DECONV = Transform(lambda x: x.transpose(2, 3, 0, 1), lambda x: x.transpose(2, 3, 0, 1))
_DECONVOLUTION = (Leaf('params', 'kernel', 'weight', _DECONV), *CONV[1:])
_FPN = (
  Row(r'fpn/lateral(\d)', r'backbone.fpn_lateral\1', CONV),
  Row(r'fpn/output(\d)', r'backbone.fpn_output\1', CONV),
)
_RESNET_D2 = (
  Row(r'stem/conv', r'stem.conv1', CONV),
  Row(r'stem/norm', r'stem.conv1.norm', FROZEN_NORM),
  *(
    row
    for i in range(1, 5)
    for row in (
      Row(rf'stage{i}/block(\d+)/conv(\d)', rf'res{i + 1}.\1.conv\2', CONV),
      Row(rf'stage{i}/block(\d+)/norm(\d)', rf'res{i + 1}.\1.conv\2.norm', FROZEN_NORM),
      Row(rf'stage{i}/block(\d+)/shortcut_conv', rf'res{i + 1}.\1.shortcut', CONV),
      Row(rf'stage{i}/block(\d+)/shortcut_norm', rf'res{i + 1}.\1.shortcut.norm', FROZEN_NORM),
    )
  ),
)


def detectron2_table(detector: nn.Module) -> tuple[Row, ...]:
  """The rows of a detector, the backbone's first.

  Raises:
    UserError: detectron2 has no such model.
  """
  backbone = _backbone(detector, 'norm_{}.0', _RESNET_D2, 'backbone.bottom_up.')
  kind = type(detector).__name__
  if kind == 'RetinaNet':
    return backbone + _FPN + _retinanet(detector.convs)  # type: ignore[attr-defined]
  if kind == 'MaskRCNN':
    return backbone + _FPN + _mask_rcnn(detector.width)  # type: ignore[attr-defined]
  raise UserError(f'detectron2 has no names for a {kind}; there are some for RetinaNet, MaskRCNN')


def mmseg_table(segmenter: nn.Module) -> tuple[Row, ...]:
  """The rows of a segmenter, the backbone's first.

  Raises:
    UserError: mmsegmentation has no such model.
  """
  backbone = _backbone(segmenter, 'norm_{}', RESNET, 'backbone.')
  kind = type(segmenter).__name__
  if kind == 'UPerNet':
    return backbone + _UPERNET
  if kind == 'SemanticFPN' and segmenter.norm == 'bn':  # type: ignore[attr-defined]
    return backbone + _SEMANTIC_FPN
  known = 'UPerNet and SemanticFPN with batch norm'
  raise UserError(f'mmsegmentation has no names for this {kind}; there are some for {known}')


def _backbone(
  module: nn.Module, norm_name: str, resnet: tuple[Row, ...], prefix: str
) -> tuple[Row, ...]:
  """The backbone's rows with both prefixes; ResTv2's output norms have names of their own."""
  backbone = module.backbone  # type: ignore[attr-defined]
  kind, rows = type(backbone).__name__, ()
  if kind == 'ResNet':
    rows = resnet
  elif kind == 'ResT':
    name = norm_name if backbone.version == 2 else 'norm{}'
    norms = [Row(r'norm(\d)', name.format(r'\1'), NORM)]
    if backbone.version == 2:
      norms.append(Row(r'norm', name.format(4), NORM))
    rows = (*norms, *table_for(backbone))
  return tuple(Row(f'backbone/{r.pattern}', prefix + r.torch_name, r.leaves) for r in rows)


def _retinanet(convs: int) -> tuple[Row, ...]:
  """RetinaNet above its pyramid."""
  towers = [
    Row(rf'head/{ours}_conv{i}', f'head.{theirs}_subnet.{2 * i}', CONV)  # a ReLU after each
    for ours, theirs in (('class', 'cls'), ('box', 'bbox'))
    for i in range(convs)
  ]
  return (
    Row(r'top/p(\d)', r'backbone.top_block.p\1', CONV),
    *towers,
    Row(r'head/class_out', r'head.cls_score', CONV),
    Row(r'head/box_out', r'head.bbox_pred', CONV),
  )


def _mask_rcnn(width: int) -> tuple[Row, ...]:
  """Mask R-CNN above its pyramid."""
  return (
    Row(r'rpn/conv', r'proposal_generator.rpn_head.conv', CONV),
    Row(r'rpn/logits', r'proposal_generator.rpn_head.objectness_logits', CONV),
    Row(r'rpn/deltas', r'proposal_generator.rpn_head.anchor_deltas', CONV),
    Row(r'box_head/fc1', r'roi_heads.box_head.fc1', _flattened(width)),
    Row(r'box_head/fc2', r'roi_heads.box_head.fc2', DENSE),
    Row(r'box_head/class_out', r'roi_heads.box_predictor.cls_score', DENSE),
    Row(r'box_head/box_out', r'roi_heads.box_predictor.bbox_pred', DENSE),
    Row(r'mask_head/conv(\d)', r'roi_heads.mask_head.mask_fcn\1', CONV),
    Row(r'mask_head/deconv', r'roi_heads.mask_head.deconv', _DECONVOLUTION),
    Row(r'mask_head/out', r'roi_heads.mask_head.predictor', CONV),
  )


def _flattened(width: int) -> tuple[Leaf, ...]:
  """A linear layer over a flattened map: PyTorch flattens (C, n, n), here it is (n, n, C)."""

  def from_torch(x: np.ndarray) -> np.ndarray:
    side = math.isqrt(x.shape[1] // width)
    return x.reshape(-1, width, side, side).transpose(2, 3, 1, 0).reshape(-1, x.shape[0])

  def to_torch(x: np.ndarray) -> np.ndarray:
    side = math.isqrt(x.shape[0] // width)
    return x.reshape(side, side, width, -1).transpose(3, 2, 0, 1).reshape(x.shape[1], -1)

  return (Leaf('params', 'kernel', 'weight', Transform(from_torch, to_torch)), *DENSE[1:])


def _conv_norm(pattern: str, name: str) -> tuple[Row, Row]:
  """The two rows of a `ConvNorm`."""
  return Row(f'{pattern}/conv', f'{name}.conv', CONV), Row(
    f'{pattern}/norm', f'{name}.bn', BATCH_NORM
  )


_UPERNET = (
  *_conv_norm(r'head/pool(\d)', r'decode_head.psp_modules.\1.1'),
  *_conv_norm(r'head/bottleneck', r'decode_head.bottleneck'),
  *_conv_norm(r'head/lateral(\d)', r'decode_head.lateral_convs.\1'),
  *_conv_norm(r'head/fpn(\d)', r'decode_head.fpn_convs.\1'),
  *_conv_norm(r'head/fpn_bottleneck', r'decode_head.fpn_bottleneck'),
  Row(r'head/classify/conv', r'decode_head.conv_seg', CONV),
  *_conv_norm(r'aux_head/conv(\d)', r'auxiliary_head.convs.\1'),
  Row(r'aux_head/classify/conv', r'auxiliary_head.conv_seg', CONV),
)

# Levels are numbered from 2 here and from 0 there; an enlargement stands after each convolution of
# the coarser levels.
_SEMANTIC_FPN = (
  *(
    Row(f'fpn/{ours}{i + 2}', f'neck.{theirs}_convs.{i}.conv', CONV)
    for ours, theirs in (('lateral', 'lateral'), ('output', 'fpn'))
    for i in range(4)
  ),
  *(
    row
    for k in range(3)
    for row in _conv_norm(rf'head/scale(\d)_{k}', rf'decode_head.scale_heads.\1.{2 * k}')
  ),
  Row(r'head/classify/conv', r'decode_head.conv_seg', CONV),
)

# What older checkpoints keep beside the weights.
_CONSTANTS = re.compile(r'pixel_mean|pixel_std|(.*\.)?anchor_generator\..*')


def is_constant(name: str) -> bool:
  """Whether a tensor of a state dict is no weight: anchors, mean and deviation of the pixels."""
  return _CONSTANTS.fullmatch(name) is not None


def from_detectron2(state_dict: Mapping[str, Any], detector: nn.Module) -> dict[str, Any]:
  """Turns a state dict of detectron2 into a detector's variables.

  Args:
    state_dict: {name: array}; constants that it keeps too (pixel_mean, anchors) are passed over.
    detector: of `create_detector`.

  Returns:
    {'params': ..., 'batch_stats': ...}, float32.

  Raises:
    UserError: names are missing, unexpected or misshapen, all are listed; or weights are no finite
      floats.
  """
  return _convert(state_dict, detector, detectron2_table(detector))


def to_detectron2(variables: Mapping[str, Any], detector: nn.Module) -> dict[str, np.ndarray]:
  """The inverse of `from_detectron2`.

  Raises:
    UserError: the variables are not the detector's.
  """
  return _names_of(variables, detector, detectron2_table(detector))


def from_mmseg(state_dict: Mapping[str, Any], segmenter: nn.Module) -> dict[str, Any]:
  """Turns a state dict of mmsegmentation into a segmenter's variables.

  Args:
    state_dict: {name: array}.
    segmenter: of `create_segmenter`.

  Returns:
    {'params': ..., 'batch_stats': ...}, float32.

  Raises:
    UserError: names are missing, unexpected or misshapen, all are listed; or weights are no finite
      floats.
  """
  return _convert(state_dict, segmenter, mmseg_table(segmenter))


def to_mmseg(variables: Mapping[str, Any], segmenter: nn.Module) -> dict[str, np.ndarray]:
  """The inverse of `from_mmseg`.

  Raises:
    UserError: the variables are not the segmenter's.
  """
  return _names_of(variables, segmenter, mmseg_table(segmenter))


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


def _names_of(variables, model: nn.Module, table: tuple[Row, ...]) -> dict[str, np.ndarray]:
  """State dict of variables, under the names that a table gives."""
  expected = model_dir.abstract_tensors(model)
  return state_dict_of(variables, model, expected, _targets(expected, table, model))


def _convert(state_dict, model: nn.Module, table: tuple[Row, ...]) -> dict[str, Any]:
  """Variables of a state dict whose names a table gives."""
  expected = model_dir.abstract_tensors(model)
  targets = _targets(expected, table, model)
  state_dict = {name: value for name, value in state_dict.items() if not is_constant(name)}
  _check(state_dict, expected, targets, model)
  names = {path: to.torch_name for path, to in targets.items() if to is not None}
  known = {name: expected[path] for path, name in names.items()}
  model_dir.check_floats(state_dict, known, 'the state dict')
  leaves = {}
  for path, spec in expected.items():
    to = targets[path]
    array = None if to is None else state_dict.get(to.torch_name)
    if to is None or array is None:
      leaves[path] = np.full(spec.shape, _OURS[path.rpartition('/')[2]], spec.dtype)
    else:
      leaves[path] = np.require(to.transform.from_torch(np.asarray(array)), spec.dtype, 'C')
  named: dict[str, Any] = {names[path]: leaves[path] for path in names}
  model_dir.check_finite(named, 'the state dict')
  return model_dir.unflatten(jax.device_put(leaves))


def _check(
  state_dict: Mapping[str, Any],
  expected: Mapping[str, jax.ShapeDtypeStruct],
  targets: Mapping[str, Target | None],
  model: nn.Module,
) -> None:
  """Raises one error that lists everything that does not fit, in PyTorch's names and layouts."""
  wanted = torch_shapes(state_dict, expected, targets)
  wrong = model_dir.misfits(wanted, model_dir.shapes(state_dict))
  if wrong:
    below = type(model.backbone).__name__  # type: ignore[attr-defined]
    raise UserError(f'the state dict does not fit {type(model).__name__} on {below}; {wrong}')
