"""The robust accuracy over the radius as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rest_jax.attacks.results import Record, RunName
from rest_jax.attacks.summary import WORST_CASE, Row, robust_accuracy_curve
from rest_jax.attacks.threat import Norm
from rest_jax.evaluation.figures import literal, new_figure
from rest_jax.evaluation.files import save_figure

_POINTS = 400


def draw_curves(
  path: Path,
  rows: Sequence[Row],
  records: Mapping[RunName, Mapping[int, Record]],
  norm: Norm,
) -> bool:
  """Draws robust accuracy over the radius: points with intervals, lines from distances.

  Args:
    path: of the PNG file, written through a temporary name.
    rows: of the summary.
    records: of the evaluation; a minimum-norm attack's give the accuracy at every radius.
    norm: which threat.

  Returns:
    Whether there was a curve to draw: two radii above 0 or a minimum-norm attack.

  Raises:
    UserError: it cannot be written.
  """
  rows = [row for row in rows if row.norm == norm]
  free = {
    run.attack: list(r.values()) for run, r in records.items() if run[1:] == (norm, None) and r
  }
  largest = max((row.eps for row in rows), default=0.0)
  if largest == 0 or (len({row.eps for row in rows}) < 2 and not free):
    return False
  figure = new_figure(6.4, 4.2)
  axes = figure.subplots()
  for attack in dict.fromkeys(row.attack for row in rows if row.attack not in free):
    _points(axes, [row for row in rows if row.attack == attack])
  for attack, found in free.items():
    _line(axes, attack, found, 1.05 * largest)
  axes.set(xlabel=f'radius, {norm}', ylabel='robust accuracy', ylim=(-0.02, 1.02))
  axes.set_xlim(0, 1.05 * largest)
  axes.grid(alpha=0.3)
  axes.legend()
  save_figure(path, figure)
  return True


def _points(axes, rows: Sequence[Row]) -> None:
  """An attack at some radii, and before any."""
  clean = rows[0].clean_accuracy
  held = [clean, *(row.robust_accuracy for row in rows)]
  value, low, high = np.asarray(held).T
  radii = [0.0, *(row.eps for row in rows)]
  # Wide and behind, because the worst case often is one of the attacks.
  worst = {'color': '0.8', 'linewidth': 8, 'elinewidth': 2, 'zorder': 0}
  style = worst if rows[0].attack == WORST_CASE else {}
  spread = np.stack([value - low, high - value])
  axes.errorbar(radii, value, spread, marker='o', capsize=3, label=literal(rows[0].attack), **style)


def _line(axes, attack: str, records: Sequence[Record], largest: float) -> None:
  """A minimum-norm attack at every radius."""
  distances = np.asarray([r.distance if r.success else np.inf for r in records])
  radii = np.linspace(0, largest, _POINTS)
  curve = robust_accuracy_curve(distances, np.asarray([r.correct for r in records]), radii)
  axes.step(radii, curve, where='post', linestyle='--', label=literal(attack))
