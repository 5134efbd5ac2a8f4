"""What the noise-only study found: rows of numbers, a table, a conclusion in words."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from rest_jax.evaluation.intervals import Interval

EVEN = 'weaker'  # the reference: the perturbation multiplied by one number
REFERENCE = 'reference'  # its family


@dataclasses.dataclass(frozen=True)
class ModelResult:
  """A model without any denoiser.

  Attributes:
    model: its name in the study.
    images: number of images.
    clean: accuracy on the images.
    attacked: accuracy on the adversarial images.
  """

  model: str
  images: int
  clean: Interval
  attacked: Interval


@dataclasses.dataclass(frozen=True)
class Effect:
  """A denoiser's effect on the perturbation.

  Attributes:
    accuracy: on the images with what is left of the perturbation.
    removed: share of the perturbation's energy (sum of squares) that is gone, mean over the
      images that have one; below 0 where the denoiser added some.
    removed_total: the same of the energy of all images together.
  """

  accuracy: Interval
  removed: float
  removed_total: float


@dataclasses.dataclass(frozen=True)
class DenoiserResult:
  """A denoiser at one strength.

  Attributes:
    model: name of the model.
    denoiser: name of the denoiser in the study.
    family: 'spatial', 'frequency', 'latent', 'feature' (at a layer of the model), or 'reference'
      for the perturbation that was made weaker as a whole.
    strength: from 0 to 1; of the reference the share of the energy that is gone.
    alone: f(x + IF(F(delta))): the denoiser on the noise alone.
    in_place: f(x + D(x + delta) - D(x)); None without `context`.
    clean: accuracy of the defended model on the images, f(D(x)); None without `context`.
    defended: on the adversarial images, f(D(x + delta)), an attack that does not know the defence;
      None without `context`.
  """

  model: str
  denoiser: str
  family: str
  strength: float
  alone: Effect
  in_place: Effect | None = None
  clean: Interval | None = None
  defended: Interval | None = None


@dataclasses.dataclass(frozen=True)
class BandResult:
  """A radial frequency band of the perturbation.

  Attributes:
    model: name of the model.
    band: from 0, the lowest frequencies.
    low: least radius in it, as a share of the largest.
    high: radius that ends it.
    share: of the perturbations' energy that is in the band.
    kept: accuracy where only this band of the perturbation is added to the images.
    removed: accuracy where all but this band is.
  """

  model: str
  band: int
  low: float
  high: float
  share: float
  kept: Interval
  removed: Interval


@dataclasses.dataclass(frozen=True)
class NoiseStudy:
  """The noise-only study; `noise_study` makes it.

  Attributes:
    models: one a model.
    denoisers: one a model, denoiser and strength.
    bands: one a model and band.
    transform: 'dct' or 'fft', of the bands.
  """

  models: tuple[ModelResult, ...]
  denoisers: tuple[DenoiserResult, ...]
  bands: tuple[BandResult, ...]
  transform: str

  def rows(self) -> list[dict[str, Any]]:
    """The denoisers' results as flat JSON values: name, strength, numbers, bounds of intervals."""
    return [_flat(result) for result in self.denoisers]

  def band_rows(self) -> list[dict[str, Any]]:
    """The bands' results as flat JSON values."""
    return [_flat(result) for result in self.bands]

  def to_dict(self) -> dict[str, Any]:
    """Everything as JSON values; `from_dict` takes it back."""
    return dataclasses.asdict(self)

  @classmethod
  def from_dict(cls, values: dict[str, Any]) -> NoiseStudy:
    """The study of `to_dict`'s values, also after JSON."""
    return cls(
      tuple(_revive(ModelResult, row) for row in values['models']),
      tuple(_revive(DenoiserResult, row) for row in values['denoisers']),
      tuple(_revive(BandResult, row) for row in values['bands']),
      values['transform'],
    )

  def of(self, model: str) -> list[DenoiserResult]:
    """The denoisers' results on one model."""
    return [row for row in self.denoisers if row.model == model]

  def markdown(self) -> str:
    """Tables, one a model and one of the bands, with 95 % intervals."""
    from rest_jax.defend.study_text import tables

    return tables(self)

  def conclusion(self) -> str:
    """What the numbers say of the paper's finding, a paragraph a model."""
    from rest_jax.defend.study_text import conclusion

    return conclusion(self)


def _flat(result: Any) -> dict[str, Any]:
  """Intervals as three values, effects with their name in front."""
  row: dict[str, Any] = {}
  for field in dataclasses.fields(result):
    value = getattr(result, field.name)
    if isinstance(value, Interval):
      row |= _bounds(_ACCURACIES.get(field.name, field.name), value)
    elif isinstance(value, Effect):
      start = '' if field.name == 'alone' else f'{field.name}_'
      row |= _bounds(f'{start}accuracy', value.accuracy)
      row |= {f'{start}energy_removed': value.removed}
      row |= {f'{start}energy_removed_total': value.removed_total}
    elif value is not None:
      row[field.name] = value
  return row


_ACCURACIES = {
  'clean': 'defended_clean_accuracy',
  'defended': 'defended_accuracy',
  'kept': 'kept_accuracy',
  'removed': 'removed_accuracy',
}


def _bounds(name: str, interval: Interval) -> dict[str, float]:
  return {name: interval.value, f'{name}_low': interval.low, f'{name}_high': interval.high}


def _revive(kind: type, row: dict[str, Any]) -> Any:
  values: dict[str, Any] = {}
  for name, value in row.items():
    if isinstance(value, dict):
      # JSON has no NaN.
      numbers = [np.nan if value[n] is None else value[n] for n in ('removed', 'removed_total')]
      values[name] = Effect(Interval(*value['accuracy']), *numbers)
    else:
      values[name] = Interval(*value) if isinstance(value, list | tuple) else value
  return kind(**values)
