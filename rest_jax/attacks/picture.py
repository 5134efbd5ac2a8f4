"""A picture of attacked images: clean, perturbation enlarged, adversarial, both predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rest_jax.errors import UserError
from rest_jax.evaluation.figures import literal, new_figure
from rest_jax.evaluation.files import save_figure
from rest_jax.paths import local

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


def _figure(rows: Sequence[np.ndarray], captions: Sequence[Sequence[str]], title: str):
  """Three rows of pictures with a caption each."""
  figure = new_figure(1.35 * len(rows[0]) + 0.5, 5.2 if title else 4.9)
  grid = figure.subplots(3, len(rows[0]), squeeze=False)
  for row, shown in enumerate(rows):
    for axes, picture, caption in zip(grid[row], shown, captions[row], strict=True):
      _show(axes, picture, caption)
    grid[row][0].set_ylabel(_ROWS[row], fontsize=9)
  figure.suptitle(literal(title, 200), fontsize=10, wrap=True)
  return figure


def _show(axes, picture: np.ndarray, caption: str) -> None:
  grey = picture.shape[-1] == 1
  options = {'cmap': 'gray'} if grey else {}
  axes.imshow(picture[..., 0] if grey else picture, vmin=0, vmax=1, **options)
  axes.set_title(caption, fontsize=8)
  axes.set_xticks([])
  axes.set_yticks([])


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
