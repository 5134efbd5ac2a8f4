"""ResT and ResTv2: efficient multi-scale vision transformers.

Papers: Zhang and Yang, "ResT: An Efficient Transformer for Visual Recognition", NeurIPS 2021,
arXiv 2105.13677; "ResT V2: Simpler, Faster and Stronger", NeurIPS 2022, arXiv 2204.07366.
Original code: github.com/wofmanaf/ResT (PyTorch, Apache-2.0).

Deviations: any side of 32 px or more is taken, where the authors' code wants multiples of 32 (and
gives the same there); attention never stores the instance-normalised map (`ops.attention`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from rest_jax.errors import UserError
from rest_jax.models.compression import compressors, end_stage
from rest_jax.models.emsa import EMSA, EMSAv2
from rest_jax.models.layers import (
  BatchNorm,
  Conv,
  Dense,
  DropPath,
  Dtype,
  LayerNorm,
  Mlp,
  Position,
  check_images,
  check_stages,
)
from rest_jax.models.registry import register
from rest_jax.ops.reduce import wide_type

# Strides of the stem's two strided convolutions: the published stem divides the size by 4; for
# small images fewer of them step.
_STEM_STRIDES = {4: (2, 2), 2: (2, 1), 1: (1, 1)}


class StemV1(nn.Module):
  """Three 3x3 convolutions, then the position encoding."""

  width: int
  stride: int
  position: str
  bn_axis_name: str | None = None
  bn_frozen: bool = False
  dtype: Dtype | None = None

  @nn.compact
  def __call__(self, x, train: bool):
    first, last = _STEM_STRIDES[self.stride]
    for i, stride in ((1, first), (2, 1)):
      x = _conv3(self.width // 2, stride, False, self.dtype, f'conv{i}')(x)
      x = nn.relu(_batch_norm(self, f'norm{i}')(x, train))
    x = _conv3(self.width, last, False, self.dtype, 'conv3')(x)
    return Position(self.position, dtype=self.dtype, name='pos')(x)


class StemV2(nn.Module):
  """Two 3x3 convolutions and a 1x1, position encoding, layer norm."""

  width: int
  stride: int
  position: str
  bn_axis_name: str | None = None
  bn_frozen: bool = False
  dtype: Dtype | None = None

  @nn.compact
  def __call__(self, x, train: bool):
    first, second = _STEM_STRIDES[self.stride]
    for i, width, stride in ((1, self.width // 2, first), (2, self.width, second)):
      x = _conv3(width, stride, False, self.dtype, f'conv{i}')(x)
      x = nn.relu(_batch_norm(self, f'norm{i}')(x, train))
    x = Conv(self.width, 1, dtype=self.dtype, name='conv3')(x)
    x = Position(self.position, dtype=self.dtype, name='pos')(x)
    return LayerNorm(1e-6, dtype=self.dtype, name='norm')(x)


class PatchEmbedV1(nn.Module):
  """Overlapping 3x3/2 patches, batch norm, position encoding."""

  width: int
  position: str
  bn_axis_name: str | None = None
  bn_frozen: bool = False
  dtype: Dtype | None = None

  @nn.compact
  def __call__(self, x, train: bool):
    x = _conv3(self.width, 2, True, self.dtype, 'conv')(x)
    x = _batch_norm(self, 'norm')(x, train)
    return Position(self.position, dtype=self.dtype, name='pos')(x)


class PatchEmbedV2(nn.Module):
  """Overlapping 3x3/2 patches, position encoding, layer norm."""

  width: int
  position: str
  bn_axis_name: str | None = None
  bn_frozen: bool = False
  dtype: Dtype | None = None

  @nn.compact
  def __call__(self, x, train: bool):
    x = _conv3(self.width, 2, True, self.dtype, 'conv')(x)
    x = Position(self.position, dtype=self.dtype, name='pos')(x)
    return LayerNorm(1e-6, dtype=self.dtype, name='norm')(x)


def _conv3(width: int, stride: int, use_bias: bool, dtype, name: str) -> Conv:
  return Conv(width, 3, stride, padding=1, use_bias=use_bias, dtype=dtype, name=name)


def _batch_norm(module, name: str) -> BatchNorm:
  return BatchNorm(
    axis_name=module.bn_axis_name, frozen=module.bn_frozen, dtype=module.dtype, name=name
  )


class Block(nn.Module):
  """Pre-norm transformer block on a map (B, H, W, C)."""

  heads: int
  reduction: int
  version: int
  attention: str
  drop_path: float
  drop_rate: float
  attn_drop_rate: float
  mlp_ratio: float
  dtype: Dtype | None = None

  @nn.compact
  def __call__(self, x, train: bool):
    epsilon = 1e-5 if self.version == 1 else 1e-6
    efficient = self.attention == 'emsa'
    options: dict[str, Any] = dict(
      reduction=self.reduction if efficient else 1,
      attn_drop_rate=self.attn_drop_rate,
      drop_rate=self.drop_rate,
      dtype=self.dtype,
      name='attn',
    )
    if self.version == 1:
      attention = EMSA(self.heads, mix_heads=efficient, **options)
    else:
      attention = EMSAv2(self.heads, upsample=efficient, **options)
    drop_path = DropPath(self.drop_path)
    x = x + drop_path(attention(LayerNorm(epsilon, self.dtype, name='norm1')(x), train), train)
    mlp = Mlp(self.mlp_ratio, self.drop_rate, self.dtype, name='mlp')
    return x + drop_path(mlp(LayerNorm(epsilon, self.dtype, name='norm2')(x), train), train)


class Stage(nn.Module):
  """The blocks of one resolution, 'block0' onwards."""

  drop_paths: tuple[float, ...]
  remat: bool
  block: dict[str, Any]

  @nn.compact
  def __call__(self, x, train: bool):
    block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
    for i, rate in enumerate(self.drop_paths):
      x = block(drop_path=rate, name=f'block{i}', **self.block)(x, train)
    return x


class ResT(nn.Module):
  """ResT (version 1) or ResTv2 (version 2).

  Attributes:
    version: 1 or 2.
    num_classes: outputs; 0 for no head (the pooled features).
    widths: channels of the four stages.
    heads: attention heads of the four stages.
    depths: blocks of the four stages.
    reductions: s of the four stages' EMSA, 1 or even.
    stem_stride: image size over the first stage's; 4, or 2 or 1 for small images (not published).
    position: 'pa' (pixel attention), 'gl' or 'none'.
    attention: 'emsa', or 'msa' for plain attention over every position.
    mlp_ratio: hidden over input width of the MLPs.
    drop_path_rate: stochastic depth of the last block; rises linearly from 0.
    drop_rate: dropout of the MLPs and of the attention's result.
    attn_drop_rate: dropout of the attention map.
    remat: recompute each block in the backward pass instead of storing it.
    compression: of frequency bands after stages: a strategy or options, see `models.compression`.
    out_norm: of the maps that `features` gives, for dense heads: 'none'; 'trunk', a layer norm
      through which the next stage reads as well (the authors' detection code for version 1);
      'branch', one beside the trunk (theirs for version 2). Stage 4's is `norm` in either.
    out_stages: stages whose maps have that norm, ascending.
    frozen_stages: stem and stages up to this one run as in evaluation and get no gradient; 0: none.
    in_channels: channels of the input.
    bn_axis_name: mapped axis that batch norms are synchronised over; None: per device.
    bn_frozen: batch norms keep their statistics, scale and bias in training, see `BatchNorm`.
    dtype: computing dtype (parameters and logits stay float32).
  """

  version: int = 1
  num_classes: int = 1000
  widths: Sequence[int] = (64, 128, 256, 512)
  heads: Sequence[int] = (1, 2, 4, 8)
  depths: Sequence[int] = (2, 2, 2, 2)
  reductions: Sequence[int] = (8, 4, 2, 1)
  stem_stride: int = 4
  position: str = 'pa'
  attention: str = 'emsa'
  mlp_ratio: float = 4.0
  drop_path_rate: float = 0.0
  drop_rate: float = 0.0
  attn_drop_rate: float = 0.0
  remat: bool = False
  compression: Any = None
  out_norm: str = 'none'
  out_stages: Sequence[int] = (1, 2, 3, 4)
  frozen_stages: int = 0
  in_channels: int = 3
  bn_axis_name: str | None = None
  bn_frozen: bool = False
  dtype: Dtype | None = None

  def setup(self):
    self._check()
    stem, patch_embed = (StemV1, PatchEmbedV1) if self.version == 1 else (StemV2, PatchEmbedV2)
    options: dict[str, Any] = dict(
      position=self.position,
      bn_axis_name=self.bn_axis_name,
      bn_frozen=self.bn_frozen,
      dtype=self.dtype,
    )
    self.stem = stem(self.widths[0], self.stem_stride, **options)
    self.patch_embed2 = patch_embed(self.widths[1], **options)
    self.patch_embed3 = patch_embed(self.widths[2], **options)
    self.patch_embed4 = patch_embed(self.widths[3], **options)
    self.stage1, self.stage2, self.stage3, self.stage4 = (self._stage(i) for i in range(4))
    for name, layer in compressors(self.compression):
      setattr(self, name, layer)
    epsilon = 1e-5 if self.version == 1 else 1e-6
    for i in self._normed_stages():
      if i < 4:
        setattr(self, f'norm{i}', LayerNorm(epsilon, dtype=self.dtype))
    self.norm = LayerNorm(epsilon, dtype=self.dtype)
    if self.num_classes:
      self.head = Dense(self.num_classes, dtype=self.dtype)

  def _stage(self, i: int) -> Stage:
    total, start = sum(self.depths), sum(self.depths[:i])
    rates = [self.drop_path_rate * b / max(total - 1, 1) for b in range(total)]
    block = dict(
      heads=self.heads[i],
      reduction=self.reductions[i],
      version=self.version,
      attention=self.attention,
      drop_rate=self.drop_rate,
      attn_drop_rate=self.attn_drop_rate,
      mlp_ratio=self.mlp_ratio,
      dtype=self.dtype,
    )
    return Stage(tuple(rates[start : start + self.depths[i]]), self.remat, block)

  def _check(self) -> None:
    for name in ('widths', 'heads', 'depths', 'reductions'):
      if len(getattr(self, name)) != 4:
        raise UserError(f'{name} takes four numbers, one for each stage, got {getattr(self, name)}')
    for width, heads, reduction in zip(self.widths, self.heads, self.reductions, strict=True):
      if width % heads:
        raise UserError(f'a width of {width} does not divide into {heads} heads; change either')
      if reduction != 1 and reduction % 2:
        raise UserError(f'reductions are 1 or even, got {reduction}')
    if self.stem_stride not in _STEM_STRIDES:
      raise UserError(f'stem_stride is 1, 2 or 4, got {self.stem_stride}')
    if self.position not in ('pa', 'gl', 'none'):
      raise UserError(f"position is 'pa', 'gl' or 'none', got {self.position!r}")
    if self.attention not in ('emsa', 'msa'):
      raise UserError(f"attention is 'emsa' or 'msa', got {self.attention!r}")
    if self.out_norm not in ('none', 'trunk', 'branch'):
      raise UserError(f"out_norm is 'none', 'trunk' or 'branch', got {self.out_norm!r}")
    check_stages(self.out_stages, self.frozen_stages)

  def _normed_stages(self) -> tuple[int, ...]:
    return () if self.out_norm == 'none' else tuple(self.out_stages)

  def features(self, x, train: bool = False):
    """The maps after each stage: before the final norm, or with the output norms of `out_norm`.

    Args:
      x: normalised images, float (B, H, W, C), 32 px or more a side.
      train: batch statistics, dropout and stochastic depth (rng 'dropout').

    Returns:
      Four maps (B, ceil(H/r), ceil(W/r), width) for r = 1, 2, 4, 8 times `stem_stride`.

    Raises:
      UserError: images that the model cannot read.
    """
    check_images(x, self.in_channels, 'ResT' if self.version == 1 else 'ResTv2')
    x = x.astype(self.dtype or x.dtype)
    maps = []
    steps = (
      (self.stem, self.stage1),
      (self.patch_embed2, self.stage2),
      (self.patch_embed3, self.stage3),
      (self.patch_embed4, self.stage4),
    )
    for i, (embed, stage) in enumerate(steps, 1):
      learns = train and i > self.frozen_stages
      x = end_stage(self, i, stage(embed(x, learns), learns))
      out = self._output_norm(i)(x) if i in self._normed_stages() else x
      x = out if self.out_norm == 'trunk' else x
      maps.append(out)
    return tuple(maps)

  def _output_norm(self, stage: int) -> LayerNorm:
    return self.norm if stage == 4 else getattr(self, f'norm{stage}')

  def __call__(self, x, train: bool = False):
    """Logits (B, num_classes), or pooled features (B, widths[3]) without a head; float32, of
    float64 images float64.

    Args and errors as `features`.
    """
    x = self.features(x, train)[-1]
    x = x if 4 in self._normed_stages() else self.norm(x)
    x = jnp.mean(x, axis=(1, 2), dtype=wide_type(x.dtype)).astype(x.dtype)
    if self.num_classes:
      x = self.head(x)
    return x.astype(wide_type(x.dtype))


_WIDE = (96, 192, 384, 768)
_PUBLISHED: dict[str, dict[str, Any]] = {
  'rest_lite': dict(version=1),
  'rest_small': dict(version=1, depths=(2, 2, 6, 2)),
  'rest_base': dict(version=1, depths=(2, 2, 6, 2), widths=_WIDE),
  'rest_large': dict(version=1, depths=(2, 2, 18, 2), widths=_WIDE),
  'restv2_tiny': dict(version=2, depths=(1, 2, 6, 2), widths=_WIDE),
  'restv2_small': dict(version=2, depths=(1, 2, 12, 2), widths=_WIDE),
  'restv2_base': dict(version=2, depths=(1, 3, 16, 3), widths=_WIDE),
  'restv2_large': dict(
    version=2, depths=(2, 3, 16, 2), widths=(128, 256, 512, 1024), heads=(2, 4, 8, 16)
  ),
}

for _name, _fields in _PUBLISHED.items():
  register(_name)(lambda _fields=_fields, **overrides: ResT(**{**_fields, **overrides}))
