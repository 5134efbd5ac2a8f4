"""Figures of defend.py's report: bars and curves over the radius; those of the noise-only study.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; the family of a denoiser
also shows in its line and marker.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rest_jax.defend.spectra import INPUT, Spectrum
from rest_jax.defend.study_results import REFERENCE, DenoiserResult, ModelResult, NoiseStudy
from rest_jax.defend.table import UNDEFENDED, DefenceRow, radius_text
from rest_jax.evaluation.figures import COLOURS, literal, new_figure
from rest_jax.evaluation.files import save_figure
from rest_jax.evaluation.intervals import Interval, whiskers
from rest_jax.paths import local
from rest_jax.text import percent, plural

_KINDS = (
  ('clean', 'no attack', '#B8BEC6'),
  ('non_adaptive', 'attacked without knowing the defence', '#56B4E9'),
  ('adaptive', 'attacked through the defence', '#D55E00'),
)
_MARKERS = 'osD^vPX*<>'
_STYLES = {
  REFERENCE: ('-', '.'),
  'spatial': ('-', 'o'),
  'frequency': ('--', 's'),
  'latent': (':', '^'),
  'feature': ('-.', 'D'),
  '-': ('-', 'x'),
}
_FAMILIES = {
  REFERENCE: 'the same pattern, less of it',
  'spatial': 'on pixels',
  'frequency': 'on frequencies',
  'latent': 'in a learned space',
  'feature': "on the model's features",
  '-': 'other',
}
_DPI = 120
_LEAST = -0.3  # energy removed; a denoiser that adds more than this stands on the border


def draw_bars(path: Path, rows: Sequence[DefenceRow]) -> None:
  """Draws the accuracies of each defence under one attack and radius, with intervals.

  Args:
    path: of the PNG file.
    rows: of one attack and radius.

  Raises:
    UserError: it cannot be written.
  """
  kinds = [kind for kind in _KINDS if any(getattr(row, kind[0]) is not None for row in rows)]
  figure = new_figure(8.2, 0.55 * len(rows) * len(kinds) / 3 * 1.3 + 1.6)
  axes = figure.subplots()
  height = 0.8 / len(kinds)
  for place, (kind, label, colour) in enumerate(kinds):
    at, shares = _shares(rows, kind)
    where = np.asarray(at) + (place - (len(kinds) - 1) / 2) * height
    values, spread = whiskers(shares)
    axes.barh(where, values, height * 0.92, color=colour, label=label)
    axes.errorbar(values, where, xerr=spread, fmt='none', ecolor='0.25', elinewidth=1, capsize=2)
    for y, share in zip(where, shares, strict=True):
      axes.text(share.high + 0.012, y, percent(share.value, 0, '%'), va='center', fontsize=8)
  axes.set_yticks(range(len(rows)), [literal(row.defence) for row in rows])
  axes.invert_yaxis()
  axes.set(xlim=(0, 1.1), xlabel='images classified correctly')
  axes.xaxis.set_major_formatter(lambda value, _: f'{value:.0%}' if value <= 1 else '')
  axes.grid(axis='x', alpha=0.25)
  axes.set_axisbelow(True)
  figure.legend(loc='outside upper left', ncols=1 if len(kinds) < 2 else 3, frameon=False)
  save_figure(path, figure, dpi=120)


def _shares(rows: Sequence[DefenceRow], kind: str) -> tuple[list[int], list[Interval]]:
  """Where and what there is; the attack on the undefended model knows of all there is."""
  found = [(i, getattr(row, kind)) for i, row in enumerate(rows)]
  found = [(i, share) for i, share in found if share is not None]
  return [i for i, _ in found], [share for _, share in found]


def draw_radii(path: Path, rows: Sequence[DefenceRow]) -> None:
  """Draws accuracy over the radius, one line a defence: without and with knowledge of it.

  Args:
    path: of the PNG file.
    rows: of one attack and norm, at several radii.

  Raises:
    UserError: it cannot be written.
  """
  kinds = [k for k in _KINDS[1:] if any(getattr(row, k[0]) is not None for row in rows)]
  figure = new_figure(4.6 * len(kinds) + 1.9, 4.4)
  grid = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
  radii = sorted({row.eps for row in rows})
  for axes, (kind, title, _) in zip(grid, kinds, strict=True):
    for number, defence in enumerate(dict.fromkeys(row.defence for row in rows)):
      own = [row for row in rows if row.defence == defence and getattr(row, kind) is not None]
      _line(axes, sorted(own, key=lambda row: row.eps), kind, number)
    axes.set_title(title, fontsize=10)
    axes.set_xticks([0, *radii], ['0', *(radius_text(eps) for eps in radii)])
    axes.set(xlabel=f'radius, {rows[0].norm}', ylim=(-0.03, 1.03))
    axes.yaxis.set_major_formatter(lambda value, _: f'{value:.0%}')
    axes.grid(alpha=0.25)
  grid[0].set_ylabel('images classified correctly')
  handles, labels = grid[0].get_legend_handles_labels()
  figure.legend(handles, labels, loc='outside right upper', frameon=False, fontsize=9)
  save_figure(path, figure, dpi=120)


def _line(axes: Any, rows: Sequence[DefenceRow], kind: str, number: int) -> None:
  if not rows:
    return
  values = [rows[0].clean.value, *(getattr(row, kind).value for row in rows)]
  plain = rows[0].defence == UNDEFENDED
  style = (
    {'color': '0.2', 'linestyle': (0, (5, 2)), 'linewidth': 2}
    if plain
    else {
      'color': COLOURS[(number - 1) % len(COLOURS)],
      'linestyle': ('-', '--', ':')[(number - 1) // len(COLOURS) % 3],
    }
  )
  marker = 'none' if plain else _MARKERS[(number - 1) % len(_MARKERS)]
  radii, label = [0.0, *(row.eps for row in rows)], literal(rows[0].defence)
  axes.plot(radii, values, marker=marker, label=label, **style)


def draw_study(study: NoiseStudy, path: str | Path) -> None:
  """Draws accuracy against the share of the perturbation's energy that was removed.

  One panel a model, one curve a denoiser from no strength through those measured; lines for the
  accuracy on clean images and without a denoiser.

  Args:
    study: from `noise_study`.
    path: of the PNG file.

  Raises:
    UserError: it cannot be written.
  """
  panels = len(study.models)
  figure = new_figure(5.2 * panels + 2.6, 4.8)
  looks = _looks(study.denoisers)
  grid = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
  for axes, model in zip(grid, study.models, strict=True):
    rows = [row for row in study.denoisers if row.model == model.model]
    _curves(axes, model, rows, looks)
  grid[0].set_ylabel('accuracy with what is left of the perturbation')
  handles, names = grid[0].get_legend_handles_labels()
  figure.legend(
    handles, names, loc='outside right center', fontsize=8, frameon=False, handlelength=3
  )
  # Beside the legend, not above it.
  figure.suptitle('Denoising the adversarial perturbation alone', fontsize=12, x=0.02, ha='left')
  save_figure(local(path, 'path'), figure, _DPI)


def _curves(
  axes: Any, model: ModelResult, rows: Sequence[DenoiserResult], looks: dict[str, dict[str, Any]]
) -> None:
  clean, attacked = model.clean.value, model.attacked.value
  axes.axhline(clean, color='0.35', linewidth=1.2)
  axes.axhline(attacked, color='0.35', linewidth=1.2, linestyle=(0, (5, 3)))
  text = {'fontsize': 8, 'va': 'bottom', 'color': '0.25'}
  axes.text(_LEAST, min(clean + 0.015, 1.03), f' clean images: {percent(clean, 0, "%")}', **text)
  axes.text(1.02, attacked + 0.015, f'no denoiser: {percent(attacked, 0, "%")}', ha='right', **text)
  axes.axvline(0.5, color='0.8', linewidth=1, zorder=0)
  axes.text(0.49, 1.085, 'half of it', ha='right', **text | {'va': 'top', 'color': '0.5'})
  for label, group in _by_denoiser(rows):
    look = looks[label]
    axes.plot(
      [0.0, *(row.alone.removed if row.alone.removed > _LEAST else np.nan for row in group)],
      [attacked, *(row.alone.accuracy.value for row in group)],
      markevery=slice(1, None),  # the start is no setting of it
      label=f'{literal(label)} ({_FAMILIES[group[0].family]})',
      **look,
    )
    beyond = [row.alone.accuracy.value for row in group if row.alone.removed <= _LEAST]
    if beyond:  # on the border, with a marker that points out of the panel
      border = {'marker': '<', 'linestyle': 'none', 'clip_on': False, 'markersize': 6}
      axes.plot([_LEAST] * len(beyond), beyond, **look | border)
  title = f'{literal(model.model)}, {plural(model.images, "image")}'
  axes.set(title=title, xlim=(_LEAST, 1.03), ylim=(-0.03, 1.1))
  axes.set_xlabel("share of the perturbation's energy removed")
  axes.xaxis.set_major_formatter(_percent)
  axes.yaxis.set_major_formatter(_percent)
  axes.grid(alpha=0.25)


def _looks(rows: Sequence[DenoiserResult]) -> dict[str, dict[str, Any]]:
  """Line and marker of each denoiser by its family, colours in order of the families.

  So two look alike only where a family has more members than there are colours.
  """
  families = {row.denoiser: row.family for row in rows}
  order = sorted(families, key=lambda label: list(_STYLES).index(families[label]))
  looks: dict[str, dict[str, Any]] = {}
  for label, family in families.items():
    line, marker = _STYLES[family]
    colour = COLOURS[order.index(label) % len(COLOURS)]
    looks[label] = {'linestyle': line, 'marker': marker, 'color': colour}
    looks[label] |= {'markersize': 4.5, 'linewidth': 1.4}
    if family == REFERENCE:
      looks[label] |= {'color': '0.78', 'linewidth': 5, 'zorder': 0}
  return looks


def _by_denoiser(rows: Sequence[DenoiserResult]) -> list[tuple[str, list[DenoiserResult]]]:
  """Each denoiser's results, by rising strength."""
  groups: dict[str, list[DenoiserResult]] = {}
  for row in sorted(rows, key=lambda row: row.strength):
    groups.setdefault(row.denoiser, []).append(row)
  order = list(dict.fromkeys(row.denoiser for row in rows))
  return [(label, groups[label]) for label in order]


def draw_bands(study: NoiseStudy, path: str | Path) -> None:
  """Draws the heat map of the bands: energy, accuracy with a band alone, accuracy without it.

  Args:
    study: from `noise_study`, with bands.
    path: of the PNG file.

  Raises:
    UserError: it cannot be written.
  """
  bands = max((row.band for row in study.bands), default=-1) + 1
  panels = len(study.models)
  figure = new_figure(1.0 * bands + 3.2, 0.6 + 2.1 * panels)
  grid = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
  for axes, model in zip(grid, study.models, strict=True):
    rows = sorted((r for r in study.bands if r.model == model.model), key=lambda row: row.band)
    kept, without = ([getattr(r, name).value for r in rows] for name in ('kept', 'removed'))
    values = np.asarray([[row.share for row in rows], kept, without], float)
    image = _heat(axes, values, model)
    axes.set_xticks(range(len(rows)), [f'{row.low:.2g}-{row.high:.2g}' for row in rows], fontsize=8)
  grid[-1].set_xlabel('band of the perturbation: 0 is a constant, 1 the finest pattern')
  figure.colorbar(image, ax=grid, shrink=0.8, format=_percent)
  figure.suptitle('Which frequencies of the perturbation do the harm', fontsize=12)
  save_figure(local(path, 'path'), figure, _DPI)


def _heat(axes: Any, values: np.ndarray, model: ModelResult) -> Any:
  image = axes.imshow(values, cmap='cividis', vmin=0, vmax=1, aspect='auto')
  axes.set_yticks(
    range(3), ['share of the energy', 'accuracy, this band alone', 'accuracy, all but this band']
  )
  axes.tick_params(length=0)
  for (row, column), value in np.ndenumerate(values):
    colour = 'white' if not value > 0.5 else 'black'
    axes.text(
      column, row, percent(value, 0, '%'), ha='center', va='center', fontsize=8, color=colour
    )
  axes.axhline(0.5, color='white', linewidth=3)
  clean, attacked = (percent(one.value, 0, '%') for one in (model.clean, model.attacked))
  axes.set_title(f'{literal(model.model)}: {clean} clean, {attacked} attacked', fontsize=10)
  return image


def draw_spectra(spectra: Sequence[Spectrum], path: str | Path) -> None:
  """Draws the spectra of perturbations at the input and at each stage, models together.

  Above the share of the perturbation's energy in each band, below its energy over that of the clean
  image or features in the same band.

  Args:
    spectra: from `perturbation_spectra`.
    path: of the PNG file.

  Raises:
    UserError: it cannot be written.
  """
  places = list(dict.fromkeys(spectrum.place for spectrum in spectra))
  models = list(dict.fromkeys(spectrum.model for spectrum in spectra))
  figure = new_figure(2.5 * len(places) + 1.6, 5.6)
  grid = figure.subplots(2, len(places), sharex=True, sharey='row', squeeze=False)
  for column, place in enumerate(places):
    for spectrum in spectra:
      if spectrum.place == place:
        _lines(grid[:, column], spectrum, models.index(spectrum.model))
    title = (
      'input image' if place == INPUT else f'after {literal(place.replace("stage", "stage "))}'
    )
    grid[0, column].set_title(title, fontsize=10)
    grid[1, column].set_xlabel('frequency', fontsize=9)
    for axes in grid[:, column]:
      axes.grid(alpha=0.25)
  grid[0, 0].set_ylabel("share of the\nperturbation's energy")
  grid[0, 0].yaxis.set_major_formatter(_percent)
  grid[0, 0].set_ylim(bottom=0)
  grid[1, 0].set_ylabel('energy of the perturbation\nover that of the clean one')
  grid[1, 0].set_yscale('log')
  handles, names = grid[0, 0].get_legend_handles_labels()
  figure.legend(handles, names, loc='outside lower center', ncols=len(models), frameon=False)
  figure.suptitle(
    'Where the perturbation is: from low (0) to high (1) frequencies, through the model',
    fontsize=12,
  )
  save_figure(local(path, 'path'), figure, _DPI)


def _lines(pair: Any, spectrum: Spectrum, index: int) -> None:
  count = len(spectrum.noise)
  middles = (np.arange(count) + 0.5) / count
  style = {
    'color': COLOURS[index % len(COLOURS)],
    'marker': ('o', 's', '^', 'D')[index % 4],
    'linestyle': ('-', '--', ':', '-.')[index % 4],
    'markersize': 4,
    'label': literal(spectrum.model),
  }
  for axes, values in zip(pair, (spectrum.share, spectrum.relative), strict=True):
    # A band without energy has no place on a logarithmic axis, and no coefficient on a small map.
    there = np.asarray(spectrum.clean) > 0
    axes.plot(middles[there], np.where(values[there] > 0, values[there], np.nan), **style)


def _percent(value: float, _position: Any = None) -> str:
  return f'{value:.0%}'
