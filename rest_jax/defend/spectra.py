"""Radial energy spectra of adversarial perturbations, at the input and at every stage of a model.

At a stage the perturbation is the difference of the feature maps, h(x_adv) - h(x). Energies are
sums of squares in bands of an orthonormal transform (`ops.bands`), so those of all bands together
are the energy of the difference (Parseval).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rest_jax.attacks.wrappers import shared_batch
from rest_jax.defend.study_measures import everywhere, spread, spread_out
from rest_jax.errors import UserError
from rest_jax.evaluation.batches import Batch, Images
from rest_jax.evaluation.fingerprint import pin, weights_hash
from rest_jax.evaluation.records import Records
from rest_jax.evaluation.runner import run
from rest_jax.inputs import check_count
from rest_jax.ops.bands import band_energies
from rest_jax.paths import local

INPUT = 'input'
FILE = 'spectra.jsonl'


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
  output_dir: str | Path | None = None,
) -> list[Spectrum]:
  """Measures the spectra of perturbations at the input and at every stage.

  Args:
    models: a model, or a mapping of names to models. One with a method `features` (a `Classifier`
      of a backbone: images to a tuple of maps) is looked into; of others only the input is.
    images: clean images, floats (N, H, W, C) in [0, 1].
    adv: adversarial images; with several models a mapping of the same names.
    bands: how many, of equal width in the radius. A small map may have no coefficient in some.
    transform: 'dct' or 'fft'.
    batch_size: images at a time, shared over the devices of this process.
    output_dir: where the energies of each image are kept; what is of something else there gives
      way. None for in memory.

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
  attacked = {name: np.asarray(attacked[name]) for name in named}
  for name, others in attacked.items():
    if images.ndim != 4 or images.shape != others.shape or not len(images):
      raise UserError(
        f'images and adv are floats (N, H, W, C) of one shape, got {images.shape} and '
        f'{others.shape} for {name}'
      )
  records = _records(output_dir, named, images, attacked, bands, transform)
  cases = [
    _Case(name, everywhere(named[name] if _has_features(named[name]) else None)) for name in named
  ]
  energies = Energies(bands, transform)

  def work(case: _Case, batch: Batch, device: Any) -> dict[str, Any]:
    del device  # all of them, with a share of the rows each
    pair = spread_out(tuple(np.asarray(batch[name], np.float32) for name in ('images', 'adv')))
    noise, clean = spread(energies, case.model, *pair)
    return {'noise': noise, 'clean': clean}

  for case in cases:
    piece = Images(np.arange(len(images)), {'images': images, 'adv': attacked[case.label]})
    size = shared_batch(min(batch_size, len(images)))
    run([case], [piece], records, work, size=size, devices=(None,))
  return [one for case in cases for one in _spectra_of(case.label, records)]


class _Case(NamedTuple):
  """A model to look into; None where it shows no features."""

  label: str
  model: Any


def _records(
  output_dir: str | Path | None,
  models: Mapping[str, Any],
  images: np.ndarray,
  attacked: Mapping[str, np.ndarray],
  bands: int,
  transform: str,
) -> Records:
  """Energies of each image: `Records` of 'noise' and 'clean', (places, K) each."""
  path = None if output_dir is None else local(output_dir, 'output_dir') / FILE
  pinned = {name: weights_hash((images, adv)) for name, adv in attacked.items()}
  settings = {'perturbations': pinned, 'bands': bands, 'transform': transform}
  looked_into = {name: model for name, model in models.items() if _has_features(model)}
  return Records(path, settings, model=pin(looked_into), replace=True)


def _spectra_of(name: str, records: Records) -> list[Spectrum]:
  """Sums over the images, in float64 and in their order."""
  images = sorted(records.rows(name))
  sums = [
    np.asarray(records.column(name, kind, images), np.float64).sum(axis=0)
    for kind in ('noise', 'clean')
  ]
  places = [INPUT, *(f'stage{i}' for i in range(1, len(sums[0])))]
  return [
    Spectrum(name, place, tuple(noise.tolist()), tuple(clean.tolist()))
    for place, noise, clean in zip(places, *sums, strict=True)
  ]


def _has_features(model: Any) -> bool:
  """A backbone's maps can be asked for; other Linen modules have no such method."""
  module = getattr(model, 'module', None)
  return callable(getattr(model, 'features', None)) and (
    module is None or callable(getattr(module, 'features', None))
  )


@dataclasses.dataclass(frozen=True)
class Energies:
  """Energies at the input and at each stage, of the perturbation and of the clean map."""

  bands: int
  transform: str

  def __call__(self, model: Any, images: jax.Array, adv: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two times float32 (B, places, K), sums over the channels."""
    pairs = [(images, adv)]
    if model is not None:
      pairs += zip(model.features(images), model.features(adv), strict=True)
    wide = [[x.astype(jnp.float32) for x in pair] for pair in pairs]
    energies = [(self._of(noisy - clean), self._of(clean)) for clean, noisy in wide]
    noise, clean = zip(*energies, strict=True)
    return jnp.stack(noise, axis=1), jnp.stack(clean, axis=1)

  def _of(self, maps: jax.Array) -> jax.Array:
    return band_energies(maps, self.bands, self.transform).sum(axis=2)


def _ratio(values: np.ndarray, by: Any) -> np.ndarray:
  by = np.broadcast_to(np.asarray(by, np.float64), values.shape)
  return np.divide(values, by, out=np.full(values.shape, np.nan), where=by > 0)
