"""The noise-only study in words: tables in Markdown, and what the numbers say."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rest_jax.defend.study_results import (
  REFERENCE,
  BandResult,
  DenoiserResult,
  ModelResult,
  NoiseStudy,
)
from rest_jax.evaluation.intervals import Interval
from rest_jax.text import markdown, plural

_OVER_HALF = 0.5
# Far under clean accuracy: by more than this share of what the attack took away.
_FAR = 0.25


def tables(study: NoiseStudy) -> str:
  """A table a model and one of the bands."""
  parts = []
  for model in study.models:
    parts += [_heading(model), '', *_denoiser_table(study.of(model.model)), '']
  if study.bands:
    parts += [*_band_table(study.bands), '']
  return '\n'.join(parts)


def conclusion(study: NoiseStudy) -> str:
  """A paragraph a model: whether removing most of the energy was enough."""
  return '\n\n'.join(_concluded(model, study.of(model.model)) for model in study.models)


def percent(share: float) -> str:
  """'41 %'; '-' for what is not known."""
  return '-' if math.isnan(share) else f'{100 * share:.0f} %'


def _shown(interval: Interval | None) -> str:
  if interval is None:
    return '-'
  return f'{percent(interval.value)} ({100 * interval.low:.0f}-{100 * interval.high:.0f})'


def _heading(model: ModelResult) -> str:
  return (
    f'**{markdown(model.model)}**, {plural(model.images, "image")}: accuracy '
    f'{_shown(model.clean)} on clean images, {_shown(model.attacked)} under the attack.'
  )


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
  lines = [head, ['---'] * len(head), *lines]
  return [f'| {" | ".join(line)} |' for line in lines]


def _denoiser_table(rows: Sequence[DenoiserResult]) -> list[str]:
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
    line += [percent(row.alone.removed), _shown(row.alone.accuracy)]
    if context:
      effect = row.in_place
      removed = '-' if effect is None else percent(effect.removed)
      line += [removed, _shown(effect and effect.accuracy), _shown(row.clean), _shown(row.defended)]
    lines.append(line)
  return _table(head, lines)


def _band_table(rows: Sequence[BandResult]) -> list[str]:
  head = ['model', 'band', 'share of energy', 'accuracy, band alone', 'accuracy, without the band']
  return _table(
    head,
    [
      [
        markdown(row.model),
        f'{row.low:.2f}-{row.high:.2f}',
        percent(row.share),
        _shown(row.kept),
        _shown(row.removed),
      ]
      for row in rows
    ],
  )


def _concluded(model: ModelResult, rows: Sequence[DenoiserResult]) -> str:
  start = (
    f'{markdown(model.model)}: clean accuracy {percent(model.clean.value)}, '
    f'{percent(model.attacked.value)} under the attack. '
  )
  lost = model.clean.value - model.attacked.value
  for row in rows:
    if row.family == REFERENCE and row.strength == _OVER_HALF:
      value = percent(row.alone.accuracy.value)
      start += f'Half of its energy, its pattern unchanged, leaves {value}. '
  strong = [r for r in rows if r.family != REFERENCE and r.alone.removed > _OVER_HALF]
  if not strong:
    return start + 'No setting removed over half of the energy of the perturbation.'
  values = np.asarray([row.alone.accuracy.value for row in strong])
  far = [row for row in strong if _missing(model, row) > max(_FAR * lost, 0.0)]
  text = (
    f'{len(strong)} settings removed over half of the energy of the perturbation by itself; with '
    f'what they left of it the accuracy was {percent(values.min())} to {percent(values.max())}, '
    f'{percent(float(np.median(values)))} in the middle. '
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
    + f'{percent(worst.alone.removed)} of the energy, and the accuracy was '
    + f'{_shown(worst.alone.accuracy)}.'
  )


def _missing(model: ModelResult, row: DenoiserResult) -> float:
  """How far the upper bound of the accuracy is under the clean accuracy."""
  return model.clean.value - row.alone.accuracy.high
