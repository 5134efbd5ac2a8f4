"""The names of PyTorch's state dicts, as regex tables: one row a module, one transform a tensor.

Layouts: PyTorch keeps linear weights as (out, in) and convolution weights as (out, in/groups, kh,
kw); here they are (in, out) and (kh, kw, in/groups, out). Vectors are the same on both sides.
Names on our side are Linen paths with their collection, 'params/stem/conv1/kernel'.

Sources: for ResT and ResTv2 the names of the authors' published checkpoints
(github.com/wofmanaf/ResT), for ResNet and VGG those of torchvision (ResNet's are timm's too), for
EfficientNet-Lite those of the package efficientnet-lite-pytorch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from flax import linen as nn

from rest_jax.errors import UserError


class Transform(NamedTuple):
  """A change of layout and its inverse; both return views of their argument where they can."""

  from_torch: Callable[[np.ndarray], np.ndarray]
  to_torch: Callable[[np.ndarray], np.ndarray]


class Leaf(NamedTuple):
  """One tensor of a module: where it is on our side, its PyTorch name, the change of layout."""

  collection: str
  name: str
  torch_name: str
  transform: Transform
  optional: bool = False


class Row(NamedTuple):
  """One kind of module: a pattern over our paths, the PyTorch name it becomes, its tensors."""

  pattern: str
  torch_name: str
  leaves: tuple[Leaf, ...]


class Target(NamedTuple):
  """What a row says about one of our tensors."""

  torch_name: str
  transform: Transform
  optional: bool


SAME = Transform(lambda x: x, lambda x: x)
MATRIX = Transform(lambda x: x.transpose(1, 0), lambda x: x.transpose(1, 0))
KERNEL = Transform(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
# A 1x1 convolution over the heads is a matrix on our side.
HEADS = Transform(
  lambda x: x[:, :, 0, 0].transpose(1, 0), lambda x: x.transpose(1, 0)[..., None, None]
)
# A linear layer over flattened maps (C, 7, 7), which are (7, 7, C) on our side.
FLATTENED = Transform(
  lambda x: x.reshape(len(x), -1, 7, 7).transpose(2, 3, 1, 0).reshape(-1, len(x)),
  lambda x: x.reshape(7, 7, -1, x.shape[1]).transpose(3, 2, 0, 1).reshape(x.shape[1], -1),
)
# PyTorch counts batches in int64, which JAX has only in its 64-bit mode.
COUNT = Transform(lambda x: x.astype(np.int32), lambda x: x.astype(np.int64))

BIAS = Leaf('params', 'bias', 'bias', SAME)
NORM = (Leaf('params', 'scale', 'weight', SAME), BIAS)
# Without a count, as PyTorch before 0.4.1 and detectron2's FrozenBatchNorm2d.
FROZEN_NORM = (
  *NORM,
  Leaf('batch_stats', 'mean', 'running_mean', SAME),
  Leaf('batch_stats', 'var', 'running_var', SAME),
)
BATCH_NORM = (
  *FROZEN_NORM,
  Leaf('batch_stats', 'count', 'num_batches_tracked', COUNT, optional=True),
)
DENSE = (Leaf('params', 'kernel', 'weight', MATRIX), BIAS)
CONV = (Leaf('params', 'kernel', 'weight', KERNEL), BIAS)
_HEAD_CONV = (Leaf('params', 'kernel', 'weight', HEADS), BIAS)

_BLOCKS = (
  Row(r'stage(\d)/block(\d+)/norm(\d)', r'stage\1.\2.norm\3', NORM),
  Row(r'stage(\d)/block(\d+)/attn/(q|kv|proj)', r'stage\1.\2.attn.\3', DENSE),
  Row(r'stage(\d)/block(\d+)/attn/sr', r'stage\1.\2.attn.sr', CONV),
  Row(r'stage(\d)/block(\d+)/attn/sr_norm', r'stage\1.\2.attn.sr_norm', NORM),
  Row(r'stage(\d)/block(\d+)/mlp/fc(\d)', r'stage\1.\2.mlp.fc\3', DENSE),
  Row(r'norm', r'norm', NORM),
  Row(r'head', r'head', DENSE),
)

# '{position}' is the model's position encoding, 'pa' or 'gl', which is part of PyTorch's name.
REST = (
  Row(r'stem/conv(\d)', r'stem.conv\1', CONV),
  Row(r'stem/norm(\d)', r'stem.norm\1', BATCH_NORM),
  Row(r'stem/pos/conv', r'stem.pos.{position}_conv', CONV),
  Row(r'patch_embed(\d)/conv', r'patch_embed_\1.conv', CONV),
  Row(r'patch_embed(\d)/norm', r'patch_embed_\1.norm', BATCH_NORM),
  Row(r'patch_embed(\d)/pos/conv', r'patch_embed_\1.pos.{position}_conv', CONV),
  Row(r'stage(\d)/block(\d+)/attn/head_conv', r'stage\1.\2.attn.transform_conv', _HEAD_CONV),
  *_BLOCKS,
)

REST_V2 = (
  Row(r'stem/conv1', r'stem.proj.0', CONV),
  Row(r'stem/norm1', r'stem.proj.1', BATCH_NORM),
  Row(r'stem/conv2', r'stem.proj.3', CONV),
  Row(r'stem/norm2', r'stem.proj.4', BATCH_NORM),
  Row(r'stem/conv3', r'stem.proj.6', CONV),
  Row(r'stem/pos/conv', r'stem.pos.{position}_conv', CONV),
  Row(r'stem/norm', r'stem.norm', NORM),
  Row(r'patch_embed(\d)/conv', r'patch_\1.proj', CONV),
  Row(r'patch_embed(\d)/norm', r'patch_\1.norm', NORM),
  Row(r'patch_embed(\d)/pos/conv', r'patch_\1.pos.{position}_conv', CONV),
  Row(r'stage(\d)/block(\d+)/attn/up', r'stage\1.\2.attn.up.0', CONV),
  Row(r'stage(\d)/block(\d+)/attn/up_norm', r'stage\1.\2.attn.up_norm', NORM),
  *_BLOCKS,
)

RESNET = (
  Row(r'stem/conv', r'conv1', CONV),
  Row(r'stem/norm', r'bn1', BATCH_NORM),
  Row(r'stage(\d)/block(\d+)/conv(\d)', r'layer\1.\2.conv\3', CONV),
  Row(r'stage(\d)/block(\d+)/norm(\d)', r'layer\1.\2.bn\3', BATCH_NORM),
  Row(r'stage(\d)/block(\d+)/shortcut_conv', r'layer\1.\2.downsample.0', CONV),
  Row(r'stage(\d)/block(\d+)/shortcut_norm', r'layer\1.\2.downsample.1', BATCH_NORM),
  Row(r'head', r'fc', DENSE),
)

CIFAR_RESNET = (
  Row(r'stem_conv', r'conv1', CONV),
  Row(r'stem_norm', r'bn1', BATCH_NORM),
  Row(r'stage(\d)/block(\d+)/conv(\d)', r'layer\1.\2.conv\3', CONV),
  Row(r'stage(\d)/block(\d+)/norm(\d)', r'layer\1.\2.bn\3', BATCH_NORM),
  Row(r'head', r'linear', DENSE),
)


def _efficientnet_lite(model: Any) -> tuple[Row, ...]:
  """Blocks are numbered through all stages."""
  rows = [
    Row(r'stem/conv', r'_conv_stem', CONV),
    Row(r'stem/norm', r'_bn0', BATCH_NORM),
    Row(r'neck/conv', r'_conv_head', CONV),
    Row(r'neck/norm', r'_bn1', BATCH_NORM),
    Row(r'head', r'_fc', DENSE),
  ]
  places = [(s, b) for s, depth in enumerate(model.stage_depths, 1) for b in range(depth)]
  for number, (stage, block) in enumerate(places):
    for norm, step in enumerate(('expand', 'depthwise', 'project')):
      path, theirs = f'stage{stage}/block{block}/{step}', f'_blocks.{number}.'
      rows.append(Row(f'{path}/conv', f'{theirs}_{step}_conv', CONV))
      rows.append(Row(f'{path}/norm', f'{theirs}_bn{norm}', BATCH_NORM))
  return tuple(rows)


def _vgg(model: Any) -> tuple[Row, ...]:
  """Convolutions, norms, ReLUs and poolings are numbered in the order in which they run."""
  rows, number = [], 0
  for stage, depth in zip(
    ('stem', 'stage1', 'stage2', 'stage3', 'stage4'), model.depths, strict=True
  ):
    for i in range(depth):
      rows.append(Row(f'{stage}/conv{i}', f'features.{number}', CONV))
      if model.batch_norm:
        rows.append(Row(f'{stage}/norm{i}', f'features.{number + 1}', BATCH_NORM))
      number += 3 if model.batch_norm else 2
    number += 1
  flattened = (Leaf('params', 'kernel', 'weight', FLATTENED), BIAS)
  rows.append(Row(r'fc1', r'classifier.0', flattened))
  rows.append(Row(r'fc2', r'classifier.3', DENSE))
  return (*rows, Row(r'head', r'classifier.6', DENSE))


# By the class and, where it has several, the version of a model; a function where rows depend on
# its depths.
TABLES: dict[tuple[str, int], tuple[Row, ...] | Callable[[Any], tuple[Row, ...]]] = {
  ('ResT', 1): REST,
  ('ResT', 2): REST_V2,
  ('ResNet', 1): RESNET,
  ('CifarResNet', 1): CIFAR_RESNET,
  ('EfficientNetLite', 1): _efficientnet_lite,
  ('VGG', 1): _vgg,
}


def table_for(model: nn.Module) -> tuple[Row, ...]:
  """The table of a model's family.

  Raises:
    UserError: the model's class has no table.
  """
  family = (type(model).__name__, getattr(model, 'version', 1))
  if family not in TABLES:
    known = ', '.join(sorted({name for name, _ in TABLES}))
    raise UserError(f'{family[0]} has no table of PyTorch names; there is one for {known}')
  rows = TABLES[family]
  return rows(model) if callable(rows) else rows


def target(path: str, table: tuple[Row, ...], position: str = 'pa') -> Target:
  """Looks one of our tensors up.

  Args:
    path: '<collection>/<module path>/<leaf>'.
    table: the rows of the model's family.
    position: the model's position encoding, 'pa' or 'gl'.

  Returns:
    Its PyTorch name, the change of layout, and whether older files may lack it.

  Raises:
    UserError: no row matches.
  """
  collection, _, rest = path.partition('/')
  module, _, name = rest.rpartition('/')
  for row in table:
    match = re.fullmatch(row.pattern, module)
    if match is None:
      continue
    for leaf in row.leaves:
      if (leaf.collection, leaf.name) == (collection, name):
        prefix = match.expand(row.torch_name).replace('{position}', position)
        return Target(f'{prefix}.{leaf.torch_name}', leaf.transform, leaf.optional)
  raise UserError(f'the table of PyTorch names has no row for {path}')
