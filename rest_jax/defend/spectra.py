"""Radial energy spectra of adversarial perturbations, at the input and at every stage of a model.

At a stage the perturbation is the difference of the feature maps, h(x_adv) - h(x). Energies are
sums of squares in bands of an orthonormal transform (`ops.bands`), so those of all bands together
are the energy of the difference (Parseval).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rest_jax.attacks.threat import check_count
from rest_jax.errors import UserError
from rest_jax.ops.bands import band_energies

INPUT = 'input'


@dataclasses.dataclass(frozen=True)
class Spectrum:
  """Energies by radial band, sums over images and channels.

  Attributes:
    model: its name.
    place: 'input', or 'stage1' and so on.
    noise: of the perturbation, one a band, from low frequencies to high ones.
    clean: of the clean image or its features.
  """

  model: str
  place: str
  noise: tuple[float, ...]
  clean: tuple[float, ...]

  @property
  def share(self) -> np.ndarray:
    """(K,) share of the perturbation's energy in each band; NaN without a perturbation."""
    return _ratio(np.asarray(self.noise), math.fsum(self.noise))

  @property
  def relative(self) -> np.ndarray:
    """(K,) perturbation's energy over the clean energy in each band; NaN where that is 0."""
    return _ratio(np.asarray(self.noise), np.asarray(self.clean))

  @property
  def total(self) -> float:
    """Perturbation's energy over the clean energy, all bands together; NaN where that is 0."""
    return float(_ratio(np.asarray(math.fsum(self.noise)), math.fsum(self.clean)))

  def rows(self) -> list[dict[str, Any]]:
    """One a band as JSON values, with the radii between which it lies."""
    count = len(self.noise)
    keys = ('noise', 'clean', 'share', 'relative')
    columns = (self.noise, self.clean, self.share.tolist(), self.relative.tolist())
    return [
      {'model': self.model, 'place': self.place, 'band': band}
      | {'low': band / count, 'high': (band + 1) / count}
      | dict(zip(keys, values, strict=True))
      for band, values in enumerate(zip(*columns, strict=True))
    ]


def perturbation_spectra(
  models: Any,
  images: Any,
  adv: Any,
  *,
  bands: int = 8,
  transform: str = 'dct',
  batch_size: int = 100,
) -> list[Spectrum]:
  """Measures the spectra of perturbations at the input and at every stage.

  Args:
    models: a model, or a mapping of names to models. One with a method `features` (a `Classifier`
      of a backbone: images to a tuple of maps) is looked into; of others only the input is.
    images: clean images, floats (N, H, W, C) in [0, 1].
    adv: adversarial images; with several models a mapping of the same names.
    bands: how many, of equal width in the radius. A small map may have no coefficient in some.
    transform: 'dct' or 'fft'.
    batch_size: images at a time.

  Returns:
    For each model the input and then its stages.

  Raises:
    UserError: images that do not fit each other or the model, or an unknown transform.
  """
  check_count('bands', bands)
  check_count('batch_size', batch_size)
  named = dict(models) if isinstance(models, Mapping) else {'model': models}
  attacked = adv if isinstance(adv, Mapping) else dict.fromkeys(named, adv)
  if not named or set(attacked) != set(named):
    raise UserError(
      f'adv has images of {sorted(attacked)}, models are {sorted(named)}; give one of each name'
    )
  images = np.asarray(images)
  found = []
  for name, model in named.items():
    others = np.asarray(attacked[name])
    if images.ndim != 4 or images.shape != others.shape or not len(images):
      raise UserError(
        f'images and adv are floats (N, H, W, C) of one shape, got {images.shape} and '
        f'{others.shape} for {name}'
      )
    found += _spectra_of(name, model, images, others, bands, transform, batch_size)
  return found


def _spectra_of(
  name: str,
  model: Any,
  images: np.ndarray,
  adv: np.ndarray,
  bands: int,
  transform: str,
  batch_size: int,
) -> list[Spectrum]:
  size = min(batch_size, len(images))
  looked_into = model if _has_features(model) else None
  totals: list[np.ndarray] = []
  for start in range(0, len(images), size):
    rows = start + np.arange(size)
    weights = (rows < len(images)).astype(np.float32)  # what fills the last batch counts nothing
    rows = np.minimum(rows, len(images) - 1)
    pair = [jnp.asarray(x[rows], jnp.float32) for x in (images, adv)]
    sums = _energies(looked_into, *pair, jnp.asarray(weights), bands, transform)
    sums = [np.asarray(one, np.float64) for one in sums]
    totals = [a + b for a, b in zip(totals, sums, strict=True)] if totals else sums
  places = [INPUT, *(f'stage{i}' for i in range(1, len(totals)))]
  return [
    Spectrum(name, place, tuple(noise.tolist()), tuple(clean.tolist()))
    for place, (noise, clean) in zip(places, totals, strict=True)
  ]


def _has_features(model: Any) -> bool:
  """A backbone's maps can be asked for; other Linen modules have no such method."""
  module = getattr(model, 'module', None)
  return callable(getattr(model, 'features', None)) and (
    module is None or callable(getattr(module, 'features', None))
  )


@jax.jit(static_argnames=('bands', 'transform'))
def _energies(
  model: Any,
  images: jax.Array,
  adv: jax.Array,
  weights: jax.Array,
  bands: int,
  transform: str,
) -> list[jax.Array]:
  """(2, K) at the input and at each stage: energies of the perturbation and of the clean map."""
  pairs = [(images, adv)]
  if model is not None:
    pairs += zip(model.features(images), model.features(adv), strict=True)

  def energy(x):
    parts = band_energies(x, bands, transform).sum(axis=2)
    return jnp.einsum('b,bk->k', weights, parts, precision='highest')

  wide = [[x.astype(jnp.float32) for x in pair] for pair in pairs]
  return [jnp.stack([energy(noisy - clean), energy(clean)]) for clean, noisy in wide]


def _ratio(values: np.ndarray, by: Any) -> np.ndarray:
  by = np.broadcast_to(np.asarray(by, np.float64), values.shape)
  return np.divide(values, by, out=np.full(values.shape, np.nan), where=by > 0)
