"""Detectors and segmenters by name: a head, an underscore, a backbone of the registry."""

from __future__ import annotations

import fnmatch
import functools
import importlib
from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn

from rest_jax.errors import UserError, as_line, did_you_mean
from rest_jax.models import model_dir, registry
from rest_jax.models.dense_config import DenseConfig

# Head -> (module, class).
_DETECTORS = {
  'retinanet': ('rest_jax.models.retinanet', 'RetinaNet'),
  'mask_rcnn': ('rest_jax.models.mask_rcnn', 'MaskRCNN'),
}
_SEGMENTERS = {
  'upernet': ('rest_jax.models.upernet', 'UPerNet'),
  'semantic_fpn': ('rest_jax.models.semantic_fpn', 'SemanticFPN'),
}
# Classes whose `features` gives four maps, each half the size of the one before.
FOUR_MAPS = ('ResT', 'ResNet', 'VGG', 'EfficientNetLite')
# The authors' detection and segmentation code: see `rest_jax.models.rest`, `out_norm`.
_OUT_NORMS = {1: 'trunk', 2: 'branch'}


def kind_of(name: str) -> str:
  """'detector' or 'segmenter', as the head that a name begins with; '' of other models."""
  for kind, heads in (('detector', _DETECTORS), ('segmenter', _SEGMENTERS)):
    if name.startswith(tuple(f'{head}_' for head in heads)):
      return kind
  return ''


def list_detectors(pattern: str = '*') -> list[str]:
  """Names that `create_detector` takes, sorted; `pattern` is a shell pattern ('mask_rcnn_*')."""
  return _names(_DETECTORS, pattern)


def list_segmenters(pattern: str = '*') -> list[str]:
  """Names that `create_segmenter` takes, sorted; `pattern` is a shell pattern ('upernet_*')."""
  return _names(_SEGMENTERS, pattern)


def create_detector(
  name: str,
  num_classes: int = 80,
  *,
  backbone: Mapping[str, Any] | None = None,
  **overrides: Any,
) -> Any:
  """Builds a detector without parameters; `detector.init(key, images)` makes those.

  Args:
    name: one of `list_detectors()`, such as 'retinanet_rest_small'.
    num_classes: K, without background.
    backbone: attributes of the backbone that differ from its published model, such as
      `{'drop_path_rate': 0.1, 'bn_frozen': True, 'frozen_stages': 1}`. Version 1 of ResT gets
      `out_norm='trunk'` and version 2 'branch' on the stages in use, as in the authors' code.
    **overrides: attributes of the detector, such as `width=64`, `axis_name='batch'`.

  Returns:
    A Linen module. `apply(variables, images)` gives `Detections` for normalised float NHWC images;
    `method='losses'` with `Targets` a dictionary of scalars, whose sum is to be lowered.

  Raises:
    UserError: an unknown name or option.
  """
  return _create('detector', _DETECTORS, name, num_classes, backbone, overrides)


def create_segmenter(
  name: str,
  num_classes: int = 150,
  *,
  backbone: Mapping[str, Any] | None = None,
  **overrides: Any,
) -> Any:
  """Builds a segmenter without parameters; `segmenter.init(key, images)` makes those.

  Args:
    name: one of `list_segmenters()`, such as 'upernet_restv2_tiny'.
    num_classes: K.
    backbone: as in `create_detector`.
    **overrides: attributes of the segmenter, such as `width=128`, `bn_axis_name='batch'`.

  Returns:
    A Linen module. `apply(variables, images)` gives logits (B, H, W, K) for normalised float NHWC
    images; `method='losses'` with labels (B, H, W) a dictionary of scalars, whose sum is to be
    lowered.

  Raises:
    UserError: an unknown name or option.
  """
  return _create('segmenter', _SEGMENTERS, name, num_classes, backbone, overrides)


def build(config: DenseConfig) -> nn.Module:
  """The module that a config describes; errors as `create_detector`."""
  create = {'detector': create_detector, 'segmenter': create_segmenter}[config.kind]
  below, options = dict(config.backbone), dict(config.overrides)
  return create(config.model, config.num_classes, backbone=below, **options)


def described(config: DenseConfig) -> tuple[nn.Module, dict[str, jax.ShapeDtypeStruct]]:
  """The module that a config describes, and its tensors.

  Raises:
    UserError: there is none.
  """
  try:
    module = build(config)
    return module, model_dir.abstract_tensors(module)
  except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError) as error:
    # UserError, and whatever else a module makes of options that are nonsense.
    raise UserError(f'it describes no model: {as_line(error)}') from error


@functools.cache
def _backbones() -> tuple[str, ...]:
  """The models of the registry that give four maps."""
  models = {name: registry.create_model(name) for name in registry.list_models()}
  return tuple(n for n, m in models.items() if type(m).__name__ in FOUR_MAPS)


def _names(heads: Mapping[str, tuple[str, str]], pattern: str) -> list[str]:
  """Every head on every backbone, as a pattern picks them."""
  names = [f'{head}_{backbone}' for head in heads for backbone in _backbones()]
  return sorted(fnmatch.filter(names, pattern))


def _create(kind, heads, name, num_classes, backbone, overrides) -> nn.Module:
  """Looks a name up, checks the options, builds."""
  names = _names(heads, '*')
  if name not in names:
    raise UserError(f'unknown {kind} {name!r}; {did_you_mean(name, names, names[:3])}')
  if not isinstance(num_classes, int) or num_classes < 1:
    raise UserError(f'num_classes of a {kind} is 1 or more, got {num_classes!r}')
  head = next(head for head in heads if name.startswith(f'{head}_'))
  module, cls = heads[head]
  build = getattr(importlib.import_module(module), cls)
  fields = [f for f in build.__dataclass_fields__ if f not in ('parent', 'name', 'backbone')]
  for key in overrides:
    if key not in fields:
      raise UserError(f'{name} has no option {key!r}; {did_you_mean(key, fields)}')
  frozen = {k: tuple(v) if isinstance(v, list) else v for k, v in overrides.items()}
  stages = frozen.get('stages', getattr(build, 'stages', (1, 2, 3, 4)))
  below = _backbone(name.removeprefix(f'{head}_'), stages, backbone or {})
  return build(backbone=below, num_classes=num_classes, **frozen)


def _backbone(name: str, stages, options: Mapping[str, Any]) -> nn.Module:
  """The backbone of a dense model, with the output norms that its version has."""
  if 'num_classes' in options:
    raise UserError(
      'a backbone below a dense head has no classes of its own; leave num_classes out'
    )
  version = getattr(registry.create_model(name), 'version', None)
  norms = {'out_norm': _OUT_NORMS[version], 'out_stages': tuple(stages)} if version else {}
  return registry.create_model(name, 0, **{**norms, **options})
