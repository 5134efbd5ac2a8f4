"""Results of the noise-only study: rows of numbers, tables in Markdown, what the numbers say."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from rest_jax.evaluation.document import markdown_table
from rest_jax.evaluation.intervals import Interval
from rest_jax.text import markdown, plural
from rest_jax.text import percent as in_percent

EVEN = 'weaker'  # the reference: the perturbation multiplied by one number
REFERENCE = 'reference'  # its family
_OVER_HALF = 0.5
# Far under clean accuracy: by more than this share of what the attack took away.
_FAR = 0.25


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
    return _tables(self)

  def conclusion(self) -> str:
    """What the numbers say of the paper's finding, a paragraph a model."""
    return _conclusion(self)


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


def _tables(study: NoiseStudy) -> str:
  """A table a model and one of the bands."""
  parts = []
  for model in study.models:
    parts += [_heading(model), '', _denoiser_table(study.of(model.model)), '']
  if study.bands:
    parts += [_band_table(study.bands), '']
  return '\n'.join(parts)


def _conclusion(study: NoiseStudy) -> str:
  """A paragraph a model: whether removing most of the energy was enough."""
  return '\n\n'.join(_concluded(model, study.of(model.model)) for model in study.models)


def _percent(share: float) -> str:
  """'41 %'; '-' for what is not known."""
  return in_percent(share, 0, ' %')


def _shown(interval: Interval | None) -> str:
  if interval is None:
    return '-'
  return f'{_percent(interval.value)} ({in_percent(interval.low)}-{in_percent(interval.high)})'


def _heading(model: ModelResult) -> str:
  return (
    f'**{markdown(model.model)}**, {plural(model.images, "image")}: accuracy '
    f'{_shown(model.clean)} on clean images, {_shown(model.attacked)} under the attack.'
  )


def _denoiser_table(rows: Sequence[DenoiserResult]) -> str:
  context = any(row.in_place for row in rows)
  head = ['denoiser', 'family', 'strength', 'energy removed', 'accuracy, noise-only']
  if context:
    head += [
      'energy removed in place',
      'accuracy in place',
      'defended, clean',
      'defended, attacked',
    ]
  lines = []
  for row in rows:
    line = [markdown(row.denoiser), row.family, f'{row.strength:g}']
    line += [_percent(row.alone.removed), _shown(row.alone.accuracy)]
    if context:
      effect = row.in_place
      removed = '-' if effect is None else _percent(effect.removed)
      line += [removed, _shown(effect and effect.accuracy), _shown(row.clean), _shown(row.defended)]
    lines.append(line)
  return markdown_table(head, lines)


def _band_table(rows: Sequence[BandResult]) -> str:
  head = ['model', 'band', 'share of energy', 'accuracy, band alone', 'accuracy, without the band']
  return markdown_table(
    head,
    [
      [
        markdown(row.model),
        f'{row.low:.2f}-{row.high:.2f}',
        _percent(row.share),
        _shown(row.kept),
        _shown(row.removed),
      ]
      for row in rows
    ],
  )


def _concluded(model: ModelResult, rows: Sequence[DenoiserResult]) -> str:
  start = (
    f'{markdown(model.model)}: clean accuracy {_percent(model.clean.value)}, '
    f'{_percent(model.attacked.value)} under the attack. '
  )
  lost = model.clean.value - model.attacked.value
  for row in rows:
    if row.family == REFERENCE and row.strength == _OVER_HALF:
      value = _percent(row.alone.accuracy.value)
      start += f'Half of its energy, its pattern unchanged, leaves {value}. '
  strong = [r for r in rows if r.family != REFERENCE and r.alone.removed > _OVER_HALF]
  if not strong:
    return start + 'No setting removed over half of the energy of the perturbation.'
  values = np.asarray([row.alone.accuracy.value for row in strong])
  far = [row for row in strong if _missing(model, row) > max(_FAR * lost, 0.0)]
  text = (
    f'{len(strong)} settings removed over half of the energy of the perturbation by itself; with '
    f'what they left of it the accuracy was {_percent(values.min())} to {_percent(values.max())}, '
    f'{_percent(float(np.median(values)))} in the middle. '
  )
  if not far:
    return start + text + 'None of them left accuracy far under the clean one.'
  worst = max(far, key=lambda row: (row.alone.removed, _missing(model, row)))
  return (
    start
    + text
    + f'{len(far)} of them stayed more than a quarter of the loss below the clean accuracy, '
    + 'significantly; of these the one that removed most is '
    + f'{markdown(worst.denoiser)} at strength {worst.strength:g}: it removed '
    + f'{_percent(worst.alone.removed)} of the energy, and the accuracy was '
    + f'{_shown(worst.alone.accuracy)}.'
  )


def _missing(model: ModelResult, row: DenoiserResult) -> float:
  """How far the upper bound of the accuracy is under the clean accuracy."""
  return model.clean.value - row.alone.accuracy.high
