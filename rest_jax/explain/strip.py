"""The picture strip of a sanity check: a method's map while the model forgets layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rest_jax.evaluation.figures import literal
from rest_jax.explain import figures
from rest_jax.explain.findings import PictureResult
from rest_jax.explain.metrics.sanity import SanityCheck, sanity_check
from rest_jax.models.classifier import Classifier


def draw_strip(
  result: PictureResult,
  target: int,
  options: Mapping[str, Mapping[str, Any]],
  classifier: Classifier,
  seed: int,
) -> None:
  """Writes sanity.png: cascading re-initialisation, the last layer first (arXiv 1810.03292).

  Args:
    result: the picture.
    target: the class that the maps explain.
    options: what each method is called with.
    classifier: the model.
    seed: of the new weights.

  Raises:
    UserError: the folder cannot be written.
  """
  key, targets = jax.random.key(seed), np.array([target], np.int32)
  strips = {
    method: panels(
      sanity_check(classifier, result.pixels[None], method, targets, key=key, **chosen)
    )
    for method, chosen in options.items()
  }
  heading = (
    f'{literal(result.file.name)}: layers re-initialised one after the other, the last one first'
  )
  figure = figures.sanity_figure(result.picture, strips, result.place, heading)
  figures.save_figure(result.folder / 'sanity.png', figure)


def panels(check: SanityCheck, row: int = 0) -> Sequence[figures.Panel]:
  """The original map and one for each step, with rank correlation and SSIM above.

  Args:
    check: what `explain.sanity_check` gave.
    row: which of its images.
  """
  made = [figures.Panel(np.asarray(check.original[row]), 'trained')]
  for step in check.rows:
    likeness = f'ρ {step.rank_correlation[row]:.2f}, SSIM {step.ssim[row]:.2f}'
    likeness = 'constant map' if step.constant[row] else likeness
    made.append(figures.Panel(np.asarray(step.maps[row]), f'{literal(step.layer)}\n{likeness}'))
  return made
