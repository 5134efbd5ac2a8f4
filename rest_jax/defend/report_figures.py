"""Figures of defend.py's report: bars and curves over the radius.

Colours are Okabe and Ito's, which colour-blind readers can tell apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rest_jax.defend.evaluation_table import radius_text
from rest_jax.defend.rows import UNDEFENDED, DefenceRow
from rest_jax.evaluation.figures import COLOURS, literal, new_figure
from rest_jax.evaluation.files import save_figure
from rest_jax.evaluation.intervals import Interval

_KINDS = (
  ('clean', 'no attack', '#B8BEC6'),
  ('non_adaptive', 'attacked without knowing the defence', '#56B4E9'),
  ('adaptive', 'attacked through the defence', '#D55E00'),
)
_MARKERS = 'osD^vPX*<>'


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
    values, spread = _bounds(shares)
    axes.barh(where, values, height * 0.92, color=colour, label=label)
    axes.errorbar(values, where, xerr=spread, fmt='none', ecolor='0.25', elinewidth=1, capsize=2)
    for y, share in zip(where, shares, strict=True):
      axes.text(share.high + 0.012, y, f'{share.value:.0%}', va='center', fontsize=8)
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


def _bounds(shares: Sequence[Interval]) -> tuple[np.ndarray, np.ndarray]:
  value, low, high = np.asarray(shares, float).T
  return value, np.stack([value - low, high - value])


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
