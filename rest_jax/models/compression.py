"""Adaptive compression of frequency bands of feature maps: a layer that may follow any stage.

Idea: Niu et al., "On the Limitations of Denoising Strategies as Adversarial Defenses", arXiv
2012.09384: "an adaptive compression strategy for different frequency bands in the feature domain".
The paper's text and code are not public, so what is here is our reading of it:

  Z = T(X) for a feature map X and an orthonormal transform T (DCT-II, or FFT) of each channel's
  plane; K radial bands m_k that sum to 1 (`ops.bands`); X' = T^-1(sum_k g_kc m_k Z).

It is computed as X' = X - T^-1(sum_k (1 - g_kc) m_k Z): gains of 1 leave X as it is, to the bit.

Strategies, g for band k and channel c:
  none            no layer at all
  low_pass        1 for bands that begin below `cutoff`, else 0
  uniform         `gain`
  soft_threshold  sign(Z) max(|Z| - tau_kc, 0) in place of g Z; of the FFT the modulus shrinks. tau
                  is trained, never below 0, and starts at 0
  wiener          S_kc / (S_kc + N_kc) from energies of features and perturbations that were
                  measured (`rest_jax.defend.with_wiener_gains`); not trained; 1 before that
  learned         a small network on the input's own log energies, shared by all groups of channels;
                  starts at sigmoid(4) = 0.98 for every input

A new soft_threshold or wiener layer is thus the identity exactly, a new learned one scales the map
by 0.98.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from rest_jax.errors import UserError, did_you_mean
from rest_jax.models.layers import parameter
from rest_jax.ops.bands import (
  TRANSFORMS,
  band_sizes,
  cut_bands,
  energies,
  inverse2,
  radial_bands,
  transform2,
)

STRATEGIES = ('none', 'low_pass', 'uniform', 'soft_threshold', 'wiener', 'learned')
STAGES = 4
PREFIX = 'compress'  # of the layers' names: 'compress1' follows stage 1
MAX_BANDS = 64
# Thresholds and gates are kept at a tenth of their value (equalised learning rate, Karras et al.,
# ICLR 2018, section 4.1): AdamW moves every number by a learning rate a step, which suits weights
# of 0.02 and would take thousands of steps for a threshold of 1.
_UNIT = 10.0
_OPEN = 4.0  # logit of a new gate
_FLOOR = 1e-6  # added to energies under the logarithm


@dataclasses.dataclass(frozen=True)
class Compression:
  """What `create_model(..., compression=...)` says. Hashable.

  Attributes:
    strategy: one of `STRATEGIES`.
    stages: of 1 to 4, those that the layer follows. The first has the most pixels, hence the bands
      that hold most of what there is to tell apart.
    transform: 'dct' or 'fft'.
    bands: K, 1 to 64.
    soft: masks that overlap, see `ops.radial_bands`.
    cutoff: of 'low_pass', radius in (0, 1].
    gain: of 'uniform', in [0, 1].
    groups: of 'learned', groups of channels with the same gates; divides the channels.
    hidden: of 'learned', width of the network.

  Raises:
    UserError: a value is not one of those.
  """

  strategy: str = 'learned'
  stages: tuple[int, ...] = (1,)
  transform: str = 'dct'
  bands: int = 8
  soft: bool = False
  cutoff: float = 0.5
  gain: float = 0.5
  groups: int = 8
  hidden: int = 16

  def __post_init__(self):
    _check_choice('strategy', self.strategy, STRATEGIES)
    _check_choice('transform', self.transform, TRANSFORMS)
    stages = self.stages
    if not stages or any(s not in range(1, STAGES + 1) for s in stages):
      raise UserError(f'compression follows stages of 1 to {STAGES}, such as (1, 2), not {stages}')
    if list(stages) != sorted(set(stages)):
      raise UserError(f'compression takes each stage once and in order, not {stages}')
    for name, most in (('bands', MAX_BANDS), ('groups', None), ('hidden', None)):
      value = getattr(self, name)
      if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= (most or value):
        upper = f' to {most}' if most else ' or more'
        raise UserError(f'compression {name} is a whole number of 1{upper}, not {value!r}')
    if not isinstance(self.soft, bool):
      raise UserError(f'compression soft is True or False, not {self.soft!r}')
    for name, least in (('cutoff', 'above 0'), ('gain', 'from 0')):
      value = getattr(self, name)
      if not _is_share(value) or (name == 'cutoff' and value == 0):
        raise UserError(f'compression {name} is a number {least} to 1, not {value!r}')


def _check_choice(option: str, value: Any, choices: tuple[str, ...]) -> None:
  if value not in choices:
    hint = did_you_mean(value, choices, count=1)
    raise UserError(f'compression has no {option} {value!r}; {hint}')


def _is_share(value: Any) -> bool:
  number = isinstance(value, int | float) and not isinstance(value, bool)
  return number and math.isfinite(value) and 0 <= value <= 1


def parse_compression(value: Any) -> Compression | None:
  """Reads the option `compression` of a model.

  Args:
    value: None, the name of a strategy, a mapping of `Compression`'s attributes, or one.

  Returns:
    The options; None where no layer is added, which 'none' means too.

  Raises:
    UserError: an unknown option, or a value out of its range.
  """
  if value is None:
    return None
  if isinstance(value, str):
    value = {'strategy': value}
  if isinstance(value, Mapping):
    value = Compression(**_known_options(value))
  if not isinstance(value, Compression):
    raise UserError(
      f'compression is the name of a strategy or a mapping of options, not {value!r}; strategies '
      f'are {", ".join(STRATEGIES)}'
    )
  return None if value.strategy == 'none' else value


def _known_options(options: Mapping[str, Any]) -> dict[str, Any]:
  known = [field.name for field in dataclasses.fields(Compression)]
  for name in options:
    if name not in known:
      hint = did_you_mean(name, known, count=1)
      raise UserError(f'compression has no option {name!r}; {hint}')
  options = dict(options)
  stages = options.get('stages', (1,))
  # JSON and the command line give lists and single numbers.
  options['stages'] = tuple(stages) if isinstance(stages, list | tuple) else (stages,)
  return options


def compressors(value: Any) -> Iterator[tuple[str, BandCompression]]:
  """(name, layer) for every stage that is compressed: ('compress1', ...)."""
  options = parse_compression(value)
  if options is None:
    return
  for stage in options.stages:
    yield f'{PREFIX}{stage}', BandCompression(options)


def end_stage(model: nn.Module, stage: int, x):
  """The map after a stage of a backbone: compressed, and without gradient where it is frozen.

  Args:
    model: has `frozen_stages`, and the layer of that stage where it is compressed.
    stage: 1 to 4.
    x: what the stage gave.
  """
  layer = getattr(model, f'{PREFIX}{stage}', None)
  x = x if layer is None else layer(x)
  return lax.stop_gradient(x) if stage == model.frozen_stages else x  # pyright: ignore


def is_compressor(path: str) -> bool:
  """Whether a tensor's path, such as 'params/compress1/threshold', is one of these layers'."""
  return any(
    part.startswith(PREFIX) and part[len(PREFIX) :].isdigit() for part in path.split('/')[:-1]
  )


class BandCompression(nn.Module):
  """Compresses the frequency bands of a feature map; the transform is computed in float32.

  Attributes:
    options: strategy and bands.
  """

  options: Compression

  @nn.compact
  def __call__(self, x):
    """Compresses.

    Args:
      x: floats (B, H, W, C), any H and W.

    Returns:
      As `x`.

    Raises:
      UserError: 'learned' has groups that do not divide C.
    """
    options = self.options
    if options.strategy == 'uniform':
      return x * jnp.asarray(options.gain, x.dtype)
    z = transform2(x, options.transform)
    if options.strategy == 'soft_threshold':
      cut = inverse2(self._below_threshold(z, x.shape), options.transform, x.shape)
    else:
      shares = self._shares(z, x.shape)
      cut = cut_bands(z, shares, options.transform, x.shape, soft=options.soft)
    return x - cut.astype(x.dtype)

  def _masks(self, shape: tuple[int, ...]) -> np.ndarray:
    options = self.options
    return radial_bands(shape[1], shape[2], options.bands, options.transform, soft=options.soft)

  def _shares(self, z, shape: tuple[int, ...]):
    """1 - g, float32 (B or 1, K, C or 1)."""
    options = self.options
    if options.strategy == 'low_pass':
      cut = np.arange(options.bands) / options.bands >= options.cutoff
      return jnp.asarray(cut, jnp.float32)[None, :, None]
    if options.strategy == 'wiener':
      ones = nn.initializers.ones
      size = (options.bands, shape[-1])
      gain = self.variable('batch_stats', 'gain', lambda: ones(jax.random.key(0), size))
      return 1 - gain.value[None]
    return self._learned(z, shape)

  def _below_threshold(self, z, shape: tuple[int, ...]):
    """Z - soft(Z): what lies within the threshold."""
    size = (self.options.bands, shape[-1])
    threshold = _UNIT * nonnegative(parameter(self, 'threshold', nn.initializers.zeros, size))
    precision = jax.lax.Precision.HIGHEST
    tau = jnp.einsum('khw,kc->hwc', jnp.asarray(self._masks(shape)), threshold, precision=precision)
    if self.options.transform == 'dct':
      return jnp.clip(z, -tau[None], tau[None])
    # Not jnp.abs: its derivative at 0 is not finite.
    modulus = jnp.sqrt(jnp.square(jnp.real(z)) + jnp.square(jnp.imag(z)) + 1e-30)
    return z * jnp.minimum(tau[None] / modulus, 1.0).astype(z.dtype)

  def _learned(self, z, shape: tuple[int, ...]):
    options, (batch, _, width, channels) = self.options, shape
    if channels % options.groups:
      raise UserError(
        f'{channels} channels after {self.name} do not divide into {options.groups} groups; set '
        "the compression's groups to a divisor"
      )
    masks = self._masks(shape)
    found = energies(z, masks, options.transform, width)
    # Of a coefficient, hence the same at every image size; a band may have none.
    sizes = np.maximum(band_sizes(masks, options.transform, width), 1)
    found = found / jnp.asarray(sizes)[None, :, None]
    found = found.reshape(batch, options.bands, options.groups, -1).mean(-1).transpose(0, 2, 1)
    x = nn.Dense(options.hidden, name='fc1')(jnp.log(found + _FLOOR))
    place = parameter(self, 'group', nn.initializers.zeros, (options.groups, options.hidden))
    x = nn.gelu(x + place[None], approximate=True)
    x = nn.Dense(options.bands, kernel_init=nn.initializers.zeros, name='fc2')(x)
    shares = nn.sigmoid(-_OPEN - _UNIT * x).transpose(0, 2, 1)
    return jnp.repeat(shares, channels // options.groups, axis=2)


@jax.custom_vjp
def nonnegative(x: jax.Array) -> jax.Array:
  """max(x, 0) with the gradient of projected descent.

  Where x is not above 0 only a gradient that raises it in descent passes, so that no parameter that
  touched 0 is lost.
  """
  return jnp.maximum(x, 0)


def _nonnegative_fwd(x):
  return jnp.maximum(x, 0), x


def _nonnegative_bwd(x, grad):
  return (jnp.where((x > 0) | (grad < 0), grad, jnp.zeros_like(grad)),)


nonnegative.defvjp(_nonnegative_fwd, _nonnegative_bwd)
