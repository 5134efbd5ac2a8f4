"""Pictures of attacks: attacked images, and the robust accuracy over the radius."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rest_jax.attacks.record import WORST_CASE, Record, Row, RunName, robust_accuracy_curve
from rest_jax.errors import UserError
from rest_jax.evaluation.figures import literal, new_figure, show_picture
from rest_jax.evaluation.files import save_figure
from rest_jax.evaluation.intervals import whiskers
from rest_jax.inputs import Norm
from rest_jax.paths import local
from rest_jax.text import radius_text

_NAME_LENGTH = 18
_ROWS = ('clean', 'perturbation', 'adversarial')


def enlarge(perturbation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Makes perturbations visible: grey where nothing changed, the largest change at 0 or 1.

  Args:
    perturbation: (N, H, W, C) of either sign.

  Returns:
    Images (N, H, W, C) in [0, 1] and the factors (N,), 1 where there is no perturbation.
  """
  largest = np.abs(perturbation).max(axis=(1, 2, 3), initial=0.0)
  factor = np.where(largest > 0, 0.5 / np.where(largest > 0, largest, 1.0), 1.0)
  shown = 0.5 + perturbation * factor[:, None, None, None]
  return np.clip(shown, 0, 1).astype(np.float32), factor


def draw_attacks(
  path: str | Path,
  images: np.ndarray,
  adversarial: np.ndarray,
  clean_classes: Sequence[int],
  adversarial_classes: Sequence[int],
  *,
  class_names: Sequence[str] | None = None,
  title: str = '',
) -> None:
  """Draws one column an image into a PNG file, through a temporary name.

  Args:
    path: of the file, ending in `.png`.
    images: (N, H, W, C) in [0, 1], N from 1; C is 3, or 1 for grey.
    adversarial: likewise.
    clean_classes: predicted class of each image.
    adversarial_classes: predicted class of each adversarial image.
    class_names: one a class; numbers where not given.
    title: above everything.

  Raises:
    UserError: shapes that do not fit, channels that are no picture, or no place to write.
  """
  images, adversarial = np.asarray(images), np.asarray(adversarial)
  _check(images, adversarial, len(clean_classes), len(adversarial_classes))
  perturbation, factor = enlarge(adversarial - images)
  names = [[_name(c, class_names) for c in each] for each in (clean_classes, adversarial_classes)]
  captions = (names[0], [f'× {f:.3g}' for f in factor], names[1])
  figure = _figure((images, perturbation, adversarial), captions, title)
  save_figure(local(path, 'path'), figure)


class Shown:
  """Collects the first successes of each run and draws them."""

  def __init__(self, columns: int):
    """Takes the number of columns of a picture."""
    self._columns = columns
    self._kept: dict[RunName, list[tuple[np.ndarray, np.ndarray, int, int]]] = {}

  def add(
    self,
    run: RunName,
    images: np.ndarray,
    adv: np.ndarray,
    success: np.ndarray,
    clean: np.ndarray,
    adversarial: np.ndarray,
  ) -> None:
    """Takes what is still wanted of a batch.

    Args:
      run: what it is of.
      images: (N, H, W, C), N or more rows of them.
      adv: likewise.
      success: bool (N,).
      clean: predicted classes (N,).
      adversarial: likewise, of `adv`.
    """
    kept = self._kept.setdefault(run, [])
    for row in np.flatnonzero(success)[: self._columns - len(kept)]:
      kept.append((images[row], adv[row], int(clean[row]), int(adversarial[row])))

  def draw(self, directory: Path, class_names: Sequence[str] | None) -> None:
    """Draws `<run>.png` for each run that had a success.

    Raises:
      UserError: they cannot be written.
    """
    for run, kept in self._kept.items():
      path = directory / f'{run.stem}.png'
      # The rest of a run that was stopped does not replace its picture.
      drawable = kept and kept[0][0].shape[-1] in (1, 3)
      if drawable and (len(kept) == self._columns or not path.exists()):
        images, adv, clean, wrong = zip(*kept, strict=True)
        title = f'{run.attack}, {run.norm}' + (
          '' if run.eps is None else f' radius {radius_text(run.eps)}'
        )
        draw_attacks(
          path, np.stack(images), np.stack(adv), clean, wrong, class_names=class_names, title=title
        )


def _figure(rows: Sequence[np.ndarray], captions: Sequence[Sequence[str]], title: str):
  """Three rows of pictures with a caption each."""
  figure = new_figure(1.35 * len(rows[0]) + 0.5, 5.2 if title else 4.9)
  grid = figure.subplots(3, len(rows[0]), squeeze=False)
  for row, shown in enumerate(rows):
    for axes, picture, caption in zip(grid[row], shown, captions[row], strict=True):
      show_picture(axes, picture)
      axes.set_title(caption, fontsize=8)
    grid[row][0].set_ylabel(_ROWS[row], fontsize=9)
  figure.suptitle(literal(title, 200), fontsize=10, wrap=True)
  return figure


def _name(number: int, class_names: Sequence[str] | None) -> str:
  name = class_names[number] if class_names and 0 <= number < len(class_names) else str(number)
  return literal(name, _NAME_LENGTH)


def _check(images: np.ndarray, adversarial: np.ndarray, clean: int, attacked: int) -> None:
  if images.ndim != 4 or images.shape != adversarial.shape or not len(images):
    raise UserError(
      'a picture needs images and adversarial images of one shape (N, H, W, C), '
      f'got {images.shape} and {adversarial.shape}'
    )
  if images.shape[-1] not in (1, 3):
    raise UserError(f'a picture needs 1 or 3 channels, these images have {images.shape[-1]}')
  if not len(images) == clean == attacked:
    raise UserError(f'{len(images)} images need as many predictions, got {clean} and {attacked}')


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
  value, spread = whiskers([clean, *(row.robust_accuracy for row in rows)])
  radii = [0.0, *(row.eps for row in rows)]
  # Wide and behind, because the worst case often is one of the attacks.
  worst = {'color': '0.8', 'linewidth': 8, 'elinewidth': 2, 'zorder': 0}
  style = worst if rows[0].attack == WORST_CASE else {}
  axes.errorbar(radii, value, spread, marker='o', capsize=3, label=literal(rows[0].attack), **style)


def _line(axes, attack: str, records: Sequence[Record], largest: float) -> None:
  """A minimum-norm attack at every radius."""
  distances = np.asarray([r.distance if r.success else np.inf for r in records])
  radii = np.linspace(0, largest, _POINTS)
  curve = robust_accuracy_curve(distances, np.asarray([r.correct for r in records]), radii)
  axes.step(radii, curve, where='post', linestyle='--', label=literal(attack))
