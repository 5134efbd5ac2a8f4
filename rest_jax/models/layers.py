"""Building blocks shared by the models: NHWC, parameters in float32, PyTorch's semantics.

A layer computes in `dtype` (its input's where None); statistics of norms are float32, of float64
inputs float64.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from rest_jax import ops
from rest_jax.errors import UserError
from rest_jax.ops.platform import traced_once
from rest_jax.ops.reduce import wide_type

Dtype = Any
MIN_SIZE = 32

# The authors' initialisation: truncated at two (PyTorch: absolute) units, which at a deviation of
# 0.02 never cuts, so it is the plain normal to float32.
init_weight = nn.initializers.normal(0.02)


def check_images(x, in_channels: int, model: str) -> None:
  """Refuses what no model here can read.

  Args:
    x: the model's input.
    in_channels: channels that the model was built for.
    model: its name, for the message.

  Raises:
    UserError: not (B, H, W, C), another channel count, or a side under 32 px.
  """
  if x.ndim != 4:
    raise UserError(f'{model} takes images (B, H, W, C), got shape {tuple(x.shape)}')
  if x.shape[-1] != in_channels:
    raise UserError(
      f'{model} takes {in_channels} channels in the last axis, got shape {tuple(x.shape)}; '
      'convert the images or build the model with in_channels'
    )
  if min(x.shape[1:3]) < MIN_SIZE:
    raise UserError(
      f'{model} takes images of {MIN_SIZE} px or more a side, got {x.shape[1]}x{x.shape[2]}; '
      'enlarge them first'
    )


def check_stages(out_stages: Sequence[int], frozen_stages: int) -> None:
  """Refuses stages that a backbone of four has not.

  Args:
    out_stages: ascending, each of 1 to 4 once.
    frozen_stages: 0 to 4.

  Raises:
    UserError: they are not.
  """
  stages = list(out_stages)
  if not stages or stages != sorted(set(stages)) or not set(stages) <= {1, 2, 3, 4}:
    raise UserError(f'out_stages takes stages of 1 to 4 in order, such as (2, 3, 4), got {stages}')
  if frozen_stages not in range(5):
    raise UserError(f'frozen_stages is 0 to 4, got {frozen_stages}')


_shapes_only: ContextVar[bool] = ContextVar('rest_jax_shapes_only', default=False)


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
  """For an `init` of which shapes and dtypes alone are wanted: new parameters are zeros."""
  token = _shapes_only.set(True)
  try:
    yield
  finally:
    _shapes_only.reset(token)


def parameter(
  module: nn.Module, name: str, init: Callable[..., Any], shape: tuple[int, ...]
) -> jax.Array:
  """`module.param`, which leaves the initialiser alone where there is a value.

  Flax traces it in every pass for its shape, a third of the time that a model takes to trace.

  Args:
    module: inside its compact method.
    name: of the parameter.
    init: of a key and a shape.
    shape: of the value.

  Returns:
    The value; errors are those of `module.param`.
  """
  if not module.is_initializing() and module.has_variable('params', name):
    value = module.get_variable('params', name)
    if np.shape(value) == shape:
      return value
  return module.param(name, nn.initializers.zeros if _shapes_only.get() else init, shape)


class Dense(nn.Module):
  """A linear layer over the last axis, computed on flattened rows.

  XLA:CPU's weight gradient of a matrix product over (B, H, W, C) is up to four times slower than
  over (B*H*W, C).

  Attributes:
    features: output width.
    use_bias: adds a bias.
    dtype: computing dtype.
  """

  features: int
  use_bias: bool = True
  dtype: Dtype | None = None

  @nn.compact
  def __call__(self, x):
    kernel = parameter(self, 'kernel', init_weight, (x.shape[-1], self.features))
    dtype = self.dtype or x.dtype
    out = _product(x, kernel, dtype)
    if self.use_bias:
      bias = parameter(self, 'bias', nn.initializers.zeros, (self.features,))
      out += bias.astype(dtype)[None]
    return out.reshape(*x.shape[:-1], self.features)


@partial(traced_once, static_argnums=2)
def _product(x, kernel, dtype):
  return x.reshape(-1, x.shape[-1]).astype(dtype) @ kernel.astype(dtype)


class Conv(nn.Module):
  """A square convolution with the same zero padding on all sides; depthwise where asked.

  Attributes:
    features: output channels.
    kernel_size: side of the kernel.
    stride: step in both directions.
    padding: zeros added to every side.
    use_bias: adds a bias.
    depthwise: one kernel plane for each output channel.
    kernel_init: initialiser of the kernel.
    bias_init: initialiser of the bias.
    dtype: computing dtype.
  """

  features: int
  kernel_size: int
  stride: int = 1
  padding: int = 0
  use_bias: bool = True
  depthwise: bool = False
  kernel_init: Callable = init_weight
  bias_init: Callable = nn.initializers.zeros
  dtype: Dtype | None = None

  @nn.compact
  def __call__(self, x):
    inputs = 1 if self.depthwise else x.shape[-1]
    shape = (self.kernel_size, self.kernel_size, inputs, self.features)
    dtype = self.dtype or x.dtype
    kernel = parameter(self, 'kernel', self.kernel_init, shape).astype(dtype)
    x = x.astype(dtype)
    convolve = ops.depthwise_conv if self.depthwise else ops.conv
    out = convolve(x, kernel, stride=self.stride, padding=self.padding)
    if self.use_bias:
      out += parameter(self, 'bias', self.bias_init, (self.features,)).astype(dtype)[
        None, None, None
      ]
    return out


class LayerNorm(nn.Module):
  """Normalises the last axis; statistics in float32 or float64.

  Attributes:
    epsilon: added to the variance.
    dtype: dtype of the result.
  """

  epsilon: float = 1e-5
  dtype: Dtype | None = None

  @nn.compact
  def __call__(self, x):
    scale = parameter(self, 'scale', nn.initializers.ones, (x.shape[-1],))
    bias = parameter(self, 'bias', nn.initializers.zeros, (x.shape[-1],))
    return _layer_norm(x, scale, bias, self.epsilon, self.dtype or x.dtype)


@partial(traced_once, static_argnums=(3, 4))
def _layer_norm(x, scale, bias, epsilon: float, dtype):
  lead = (1,) * (x.ndim - 1)
  wide = x.astype(wide_type(x.dtype))
  scale, bias = (a.reshape(*lead, -1).astype(wide.dtype) for a in (scale, bias))
  mean = jnp.mean(wide, axis=-1, keepdims=True)
  variance = jnp.mean(jnp.square(wide - mean), axis=-1, keepdims=True)
  return ((wide - mean) * lax.rsqrt(variance + epsilon) * scale + bias).astype(dtype)


class BatchNorm(nn.Module):
  """Batch normalisation with PyTorch's bookkeeping.

  Normalises by the biased variance and keeps the *unbiased* one as the running statistic, which
  Flax's own layer does not; `count` is PyTorch's num_batches_tracked.

  Attributes:
    epsilon: added to the variance.
    momentum: weight of the old running statistic (PyTorch's 1 - momentum).
    axis_name: mapped axis over which the statistics are synchronised; None: per device.
    scale_init: initialiser of the scale.
    frozen: in training too, the running statistics normalise and stay as they are, and scale and
      bias get no gradient: for batches too small to take statistics from.
    dtype: dtype of the result.
  """

  epsilon: float = 1e-5
  momentum: float = 0.9
  axis_name: str | None = None
  scale_init: Callable = nn.initializers.ones
  frozen: bool = False
  dtype: Dtype | None = None

  @nn.compact
  def __call__(self, x, train: bool):
    channels = x.shape[-1]
    scale = parameter(self, 'scale', self.scale_init, (channels,))
    bias = parameter(self, 'bias', nn.initializers.zeros, (channels,))
    if self.frozen:
      scale, bias, train = lax.stop_gradient(scale), lax.stop_gradient(bias), False
    ra_mean = self.variable('batch_stats', 'mean', jnp.zeros, (channels,), jnp.float32)
    ra_var = self.variable('batch_stats', 'var', jnp.ones, (channels,), jnp.float32)
    count = self.variable('batch_stats', 'count', jnp.zeros, (), jnp.int32)
    mean, variance = ra_mean.value, ra_var.value
    if train:
      mean, variance, samples = self._statistics(x)
      if not self.is_initializing():
        keep, unbiased = self.momentum, variance * (samples / max(samples - 1, 1))
        ra_mean.value = keep * ra_mean.value + (1 - keep) * mean
        ra_var.value = keep * ra_var.value + (1 - keep) * unbiased
        count.value = count.value + 1
    factor = scale * lax.rsqrt(variance + self.epsilon)
    return _normalised(x, mean, factor, bias, self.dtype or x.dtype)

  def _statistics(self, x):
    """Mean and biased variance of every channel, (C,) each, and how many values they are from."""
    axes = tuple(range(x.ndim - 1))
    samples = x.size // x.shape[-1]
    wide = x.astype(wide_type(x.dtype))
    mean = jnp.mean(wide, axis=axes)
    if self.axis_name is not None and not self.is_initializing():
      mean = lax.pmean(mean, self.axis_name)
      samples *= lax.axis_size(self.axis_name)
    variance = jnp.mean(jnp.square(wide - mean.reshape(*(1,) * len(axes), -1)), axis=axes)
    if self.axis_name is not None and not self.is_initializing():
      variance = lax.pmean(variance, self.axis_name)
    return mean, variance, samples


@partial(traced_once, static_argnums=4)
def _normalised(x, mean, factor, bias, dtype):
  wide, lead = x.astype(wide_type(x.dtype)), (1,) * (x.ndim - 1)
  mean, factor, bias = (a.astype(wide.dtype).reshape(*lead, -1) for a in (mean, factor, bias))
  # The difference first: x factor - mean factor would lose what a large mean leaves of x.
  return ((wide - mean) * factor + bias).astype(dtype)


class DropPath(nn.Module):
  """Stochastic depth: drops a whole residual branch for a sample, and scales the others up.

  Attributes:
    rate: probability of dropping, in [0, 1).

  References:
    Huang et al., Deep Networks with Stochastic Depth, ECCV 2016.
  """

  rate: float

  @nn.compact
  def __call__(self, x, train: bool):
    if not train or self.rate == 0.0:
      return x
    keep = 1.0 - self.rate
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    mask = jax.random.bernoulli(self.make_rng('dropout'), keep, shape)
    return x * (mask.astype(x.dtype) / jnp.asarray(keep, x.dtype))


class Mlp(nn.Module):
  """Two linear layers with an exact GELU between them.

  Attributes:
    ratio: hidden width over input width.
    drop_rate: dropout after the activation and after the second layer.
    dtype: computing dtype.
  """

  ratio: float = 4.0
  drop_rate: float = 0.0
  dtype: Dtype | None = None

  @nn.compact
  def __call__(self, x, train: bool):
    width = x.shape[-1]
    x = ops.gelu(Dense(int(width * self.ratio), dtype=self.dtype, name='fc1')(x))
    x = nn.Dropout(self.drop_rate, deterministic=not train)(x)
    x = Dense(width, dtype=self.dtype, name='fc2')(x)
    return nn.Dropout(self.drop_rate, deterministic=not train)(x)


class Position(nn.Module):
  """Position encoding from a depthwise 3x3 convolution of the map itself.

  Attributes:
    kind: 'pa' (x * sigmoid(conv(x)), pixel attention), 'gl' (x + conv(x)) or 'none'.
    dtype: computing dtype.

  References:
    ResT, arXiv 2105.13677, section 3.3 (position encoding as spatial attention).
  """

  kind: str = 'pa'
  dtype: Dtype | None = None

  @nn.compact
  def __call__(self, x):
    if self.kind == 'none':
      return x
    local = Conv(x.shape[-1], 3, padding=1, depthwise=True, dtype=self.dtype, name='conv')(x)
    return x * jax.nn.sigmoid(local) if self.kind == 'pa' else x + local
