"""Efficient multi-head self-attention of both papers, on maps (B, H, W, C).

Keys and values come from the map reduced s times a side by a depthwise convolution. Sides that s
does not divide are rounded up by the convolution's own padding, so no key is lost.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from rest_jax import ops
from rest_jax.models.layers import Conv, Dense, Dtype, LayerNorm, parameter


def reduce_map(module: nn.Module, x, reduction: int, epsilon: float):
  """The map that keys and values are taken from: 'sr' and 'sr_norm' of the calling module.

  Args:
    module: gives the computing dtype.
    x: (B, H, W, C).
    reduction: s; 1 leaves the map as it is.
    epsilon: of the layer norm.

  Returns:
    (B, ceil(H/s), ceil(W/s), C).
  """
  if reduction == 1:
    return x
  dtype = module.dtype  # type: ignore[attr-defined]
  x = Conv(
    x.shape[-1],
    reduction + 1,
    stride=reduction,
    padding=reduction // 2,
    depthwise=True,
    dtype=dtype,
    name='sr',
  )(x)
  return LayerNorm(epsilon, dtype=dtype, name='sr_norm')(x)


def split_heads(x, heads: int):
  """(B, H, W, C) -> (B, H*W, heads, C/heads)."""
  return x.reshape(x.shape[0], -1, heads, x.shape[-1] // heads)


def pixel_shuffle(x, factor: int):
  """(B, H, W, C*s*s) -> (B, H*s, W*s, C), channels in PyTorch's order (C, s, s)."""
  b, h, w, c = x.shape
  x = x.reshape(b, h, w, c // factor**2, factor, factor)
  return x.transpose(0, 1, 4, 2, 5, 3).reshape(b, h * factor, w * factor, c // factor**2)


class EMSA(nn.Module):
  """EMSA of ResT: heads are mixed by a 1x1 convolution and instance-normalised.

  Attributes:
    heads: attention heads; with one, neither the mixing nor the norm is applied.
    reduction: s, the side of a key's window.
    mix_heads: False gives plain attention over the reduced keys.
    attn_drop_rate: dropout of the attention map.
    drop_rate: dropout of the result.
    dtype: computing dtype.

  References:
    ResT, arXiv 2105.13677, section 3.2.
  """

  heads: int
  reduction: int = 1
  mix_heads: bool = True
  attn_drop_rate: float = 0.0
  drop_rate: float = 0.0
  epsilon: float = 1e-5
  dtype: Dtype | None = None

  @nn.compact
  def __call__(self, x, train: bool):
    width = x.shape[-1]
    q = split_heads(Dense(width, dtype=self.dtype, name='q')(x), self.heads)
    reduced = reduce_map(self, x, self.reduction, self.epsilon)
    kv = Dense(2 * width, dtype=self.dtype, name='kv')(reduced)
    k, v = (split_heads(t, self.heads) for t in jnp.split(kv, 2, axis=-1))
    drop = nn.Dropout(self.attn_drop_rate, deterministic=not train)
    if self.mix_heads and self.heads > 1:
      mix = HeadConv(self.heads, name='head_conv')()
      out = ops.emsa(q, k, v, mix, dropout=drop if self.attn_drop_rate else None)
    else:
      out = ops.attend(q, k, v, dropout=drop if self.attn_drop_rate else None)
    out = Dense(width, dtype=self.dtype, name='proj')(out.reshape(x.shape))
    return nn.Dropout(self.drop_rate, deterministic=not train)(out)


class HeadConv(nn.Module):
  """The 1x1 convolution over heads, as its matrix.

  The bias is kept because the authors' checkpoints hold one; the softmax that follows does not
  see it (it adds the same to a whole row), so its gradient is zero.

  Attributes:
    heads: input and output heads.
  """

  heads: int

  @nn.compact
  def __call__(self):
    parameter(self, 'bias', nn.initializers.zeros, (self.heads,))
    return parameter(self, 'kernel', nn.initializers.normal(0.02), (self.heads, self.heads))


class EMSAv2(nn.Module):
  """EMSA of ResTv2: no head mixing, and an up-sampling branch that restores the lost detail.

  Attributes:
    heads: attention heads.
    reduction: s, the side of a key's window.
    upsample: the branch LN(PixelShuffle(DWConv3x3(v))); False gives plain attention.
    dtype: computing dtype.

  References:
    ResTv2, arXiv 2204.07366, section 3.2.
  """

  heads: int
  reduction: int = 1
  upsample: bool = True
  epsilon: float = 1e-6
  attn_drop_rate: float = 0.0
  drop_rate: float = 0.0
  dtype: Dtype | None = None

  @nn.compact
  def __call__(self, x, train: bool):
    width = x.shape[-1]
    q = split_heads(Dense(width, dtype=self.dtype, name='q')(x), self.heads)
    reduced = reduce_map(self, x, self.reduction, self.epsilon)
    kv = Dense(2 * width, dtype=self.dtype, name='kv')(reduced)
    k, v = jnp.split(kv, 2, axis=-1)
    drop = nn.Dropout(self.attn_drop_rate, deterministic=not train)
    out = ops.attend(
      q,
      split_heads(k, self.heads),
      split_heads(v, self.heads),
      dropout=drop if self.attn_drop_rate else None,
    ).reshape(x.shape)
    if self.upsample:
      out += self._restore(v, x.shape)
    out = Dense(width, dtype=self.dtype, name='proj')(out)
    return nn.Dropout(self.drop_rate, deterministic=not train)(out)

  def _restore(self, v, shape):
    """The up-sampling branch; what a side rounded up has too much is cut off, (B, H, W, C)."""
    b, height, width, c = shape
    up = Conv(c * self.reduction**2, 3, padding=1, depthwise=True, dtype=self.dtype, name='up')(v)
    up = pixel_shuffle(up, self.reduction)
    up = lax.slice(up, (0, 0, 0, 0), (b, height, width, c))
    return LayerNorm(self.epsilon, dtype=self.dtype, name='up_norm')(up)
