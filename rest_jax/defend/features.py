"""Denoisers of feature maps at a layer of a model.

Xie et al., "Feature denoising for improving adversarial robustness", CVPR 2019 (arXiv 1812.03411):
non-local means over all positions of a feature map, section 3. There the block has a trained 1x1
convolution and a connection past it; here nothing is trained, and out = (1 - s) x + s y with the
strength s and the filtered map y: our reading, for models that were trained without the block.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from rest_jax.callables import as_function
from rest_jax.defend.denoise.denoisers import check_strength
from rest_jax.errors import UserError, did_you_mean
from rest_jax.layers import Filter, capture, with_layer

_ROWS = 1024  # positions whose similarities to all others are held at a time


def non_local(x: jax.Array) -> jax.Array:
  """Non-local means with softmax weights, equation 2 with the Gaussian version without embedding.

  y_i = sum_j softmax_j(x_i . x_j / sqrt(C)) x_j over all positions j of the map.

  Args:
    x: float32 (B, h, w, C).

  Returns:
    As `x`.
  """

  def rows(queries, keys):
    scores = jnp.einsum('nc,mc->nm', queries * keys.shape[-1] ** -0.5, keys, precision='highest')
    return jnp.einsum('nm,mc->nc', jax.nn.softmax(scores, axis=-1), keys, precision='highest')

  return _over_positions(rows, x)


def non_local_dot(x: jax.Array) -> jax.Array:
  """Non-local means with dot products as weights, y_i = (1/N) sum_j (x_i . x_j) x_j.

  That is cubic in the map, and nothing trained brings it back to scale here; so every image's y is
  brought to the root mean square of its x, which is our choice.

  Args:
    x: float32 (B, h, w, C).

  Returns:
    As `x`.
  """
  flat = x.reshape(x.shape[0], -1, x.shape[-1])
  size = _mean_square(flat)
  unit = flat * lax.rsqrt(size)  # so that cubes of large features stay finite
  # (x x^T) x = x (x^T x): C x C numbers instead of N x N.
  moments = jnp.einsum('bnc,bnd->bcd', unit, unit, precision='highest') / flat.shape[1]
  y = jnp.einsum('bnc,bcd->bnd', unit, moments, precision='highest')
  scale = jnp.sqrt(size) * lax.rsqrt(_mean_square(y))
  return (y * scale).reshape(x.shape)


def _mean_square(x: jax.Array) -> jax.Array:
  """(B, 1, 1); 1 for images of zeros, which then stay that, with a gradient."""
  square = jnp.mean(jnp.square(x), axis=(1, 2), keepdims=True)
  return jnp.where(square > jnp.finfo(jnp.float32).tiny, square, 1.0)


def mean_3x3(x: jax.Array) -> jax.Array:
  """Mean of 3x3 positions, the local filter that the paper compares with; borders are repeated.

  Args:
    x: float32 (B, h, w, C).

  Returns:
    As `x`.
  """
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode='edge')
  height, width = x.shape[1:3]
  shifts = [(i, j) for i in range(3) for j in range(3)]
  return sum(padded[:, i : i + height, j : j + width] for i, j in shifts) / 9  # pyright: ignore


FILTERS: dict[str, Filter] = {
  'non_local': non_local,
  'non_local_dot': non_local_dot,
  'mean_3x3': mean_3x3,
}


@dataclasses.dataclass(frozen=True)
class FeatureDenoiser:
  """(1 - strength) x + strength filter(x) on feature maps; a pytree whose strength is data.

  Attributes:
    name: one of `FILTERS`.
    layer: path of the Linen module whose output it works on, such as 'stage2'.
    strength: float32 scalar, from 0 (the map comes back bit for bit) to 1.
  """

  name: str
  layer: str
  strength: jax.Array

  def __call__(self, features: jax.Array) -> jax.Array:
    """Denoises maps (B, h, w, C) of any floating type; the result has the same.

    Raises:
      UserError: no maps.
    """
    if features.ndim != 4:
      raise UserError(
        f'{self.layer} gives {tuple(features.shape)}; a feature denoiser takes maps (B, h, w, C), '
        'choose another layer'
      )
    wide = features.astype(jnp.float32)
    mixed = (1 - self.strength) * wide + self.strength * FILTERS[self.name](wide)
    return jnp.where(self.strength == 0, features, mixed.astype(features.dtype))

  def with_strength(self, strength: float | jax.Array) -> FeatureDenoiser:
    """The same at another strength: nothing is compiled anew; `UserError` outside of [0, 1]."""
    return dataclasses.replace(self, strength=check_strength(self.name, strength))


jax.tree_util.register_dataclass(
  FeatureDenoiser, data_fields=['strength'], meta_fields=['name', 'layer']
)


def at_layer(
  name: str = 'non_local', layer: str = 'stage2', strength: float = 0.5
) -> FeatureDenoiser:
  """Names a feature denoiser, for `feature_denoiser` and `noise_study`.

  Args:
    name: 'non_local' (softmax), 'non_local_dot' (dot product) or 'mean_3x3'.
    layer: path of a Linen module that gives maps (B, h, w, C).
    strength: from 0, the identity, to 1, the filtered map alone.

  Raises:
    UserError: an unknown name, or a strength outside of [0, 1].
  """
  if name not in FILTERS:
    raise UserError(f'there is no feature denoiser {name!r}; {did_you_mean(name, FILTERS)}')
  return FeatureDenoiser(name, layer, check_strength(name, strength))


def feature_denoiser(
  model: Any, name: str = 'non_local', layer: str = 'stage2', strength: float = 0.5
) -> Partial:
  """A model that denoises its own feature maps at a layer; no weight of it is changed.

  Args:
    model: a `Classifier`, or any function of images that runs a Linen module inside. Where a layer
      is called several times, every call's output is denoised.
    name: as `at_layer` takes it.
    layer: as `at_layer` takes it.
    strength: as `at_layer` takes it; data of the compiled program.

  Returns:
    Images float32 (B, H, W, C) in [0, 1] to logits (B, K); differentiable. Where the model runs no
    such layer, calling it raises `UserError` with the names that there are.

  Raises:
    UserError: an unknown name, or a strength outside of [0, 1].
  """
  return Partial(_defended, as_function(model), at_layer(name, layer, strength))


def _defended(model: Partial, denoise: FeatureDenoiser, images: jax.Array) -> jax.Array:
  return with_layer(model, denoise.layer, denoise, images)


def noise_only_logits(
  model: Partial,
  denoise: FeatureDenoiser,
  clean: jax.Array,
  perturbed: jax.Array,
  *,
  in_place: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The noise-only study at a layer: logits of h(x) + D(h(x + delta) - h(x)), h being the layer.

  Everything else of the pass is that of the clean images.

  Args:
    model: images to logits.
    denoise: D.
    clean: float32 (B, H, W, C), x.
    perturbed: likewise, x + delta.
    in_place: adds D(h(x + delta)) - D(h(x)) to h(x) instead: the denoiser in its place.

  Returns:
    Logits (B, K), and the energies (sums of squares) of the layer's noise before and after D, (B,)
    each; sums over its calls where there are several.

  Raises:
    UserError: the model runs no such layer.
  """
  noisy = capture(model, denoise.layer, perturbed)
  calls = iter(noisy)
  before, after = [], []

  def replace(features):
    clean_map, noisy_map = features.astype(jnp.float32), next(calls).astype(jnp.float32)
    noise = noisy_map - clean_map
    left = denoise(noisy_map) - denoise(clean_map) if in_place else denoise(noise)
    before.append(_energy(noise))
    after.append(_energy(left))
    return (clean_map + left).astype(features.dtype)

  logits = with_layer(model, denoise.layer, replace, clean)
  return logits, sum(before), sum(after)  # pyright: ignore[reportReturnType]


def _energy(x: jax.Array) -> jax.Array:
  return jnp.sum(jnp.square(x), axis=(1, 2, 3))


def _over_positions(rows: Callable[..., jax.Array], x: jax.Array) -> jax.Array:
  """rows(queries (n, C), all (N, C)) -> (n, C), for few enough queries at a time."""
  b, height, width, channels = x.shape
  flat = x.reshape(b, height * width, channels)
  count = flat.shape[1]
  if count <= _ROWS:
    return jax.vmap(rows)(flat, flat).reshape(x.shape)
  padded = jnp.pad(flat, ((0, 0), (0, -count % _ROWS), (0, 0)))

  def image(pair):
    queries, keys = pair
    # Weights are made anew in the backward pass: N x N of them would be held otherwise.
    return lax.map(jax.checkpoint(lambda q: rows(q, keys)), queries)

  out = lax.map(image, (padded.reshape(b, -1, _ROWS, channels), flat))
  return out.reshape(b, -1, channels)[:, :count].reshape(x.shape)
