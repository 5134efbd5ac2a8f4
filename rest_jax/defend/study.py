"""The noise-only study: what a denoiser does to the perturbation alone.

"On the limitations of denoising strategies as adversarial defenses" (arXiv 2012.09384) judges a
denoiser as if all of the adversarial noise were known: by the accuracy of f(x + IF(F(delta))),
delta = x_adv - x. Clean images are then left as they are, and the finding is that robustness stays
unsatisfactory even where most of the perturbation is gone. Which denoisers, strengths and bands are
looked at, and that the share of the perturbation's energy is what counts, is our reading: the
paper's body could not be read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from rest_jax.attacks.threat import check_count, check_key
from rest_jax.defend.study_choice import choose_denoisers
from rest_jax.defend.study_measures import (
  EVENLY,
  band_row,
  denoiser_rows,
  make_subject,
  undefended,
)
from rest_jax.defend.study_results import NoiseStudy
from rest_jax.errors import UserError

STRENGTHS = (0.1, 0.25, 0.5, 1.0)


def noise_study(
  models: Any,
  images: Any,
  labels: Any,
  adv: Any,
  denoisers: Any = None,
  *,
  strengths: Sequence[float] = STRENGTHS,
  bands: int = 8,
  transform: str = 'dct',
  context: bool = False,
  key: jax.Array | None = None,
  batch_size: int = 100,
  progress: Callable[[int, int], None] | None = None,
) -> NoiseStudy:
  """Measures what denoisers leave of adversarial perturbations, and how much that still does.

  Nothing is clipped: x plus what is left of the perturbation may leave [0, 1]. Memory is that of
  `batch_size` images; a denoiser compiles once for all its strengths, a model once.

  Args:
    models: images to logits (a `Classifier`, any function), or a mapping of names to such, to see
      standard and adversarially trained models side by side.
    images: clean images, floats (N, H, W, C) in [0, 1].
    labels: true classes, integers (N,).
    adv: adversarial images of any attack, as `images`; with several models a mapping of the same
      names, each made for its model.
    denoisers: names of `list_denoisers()`, 'name@layer' for a feature denoiser
      ('non_local@stage2'), `Denoiser`s or `FeatureDenoiser`s, or a mapping of labels to such; by
      default all that are registered. 'pca' by its name is fitted to `images`, which is more than
      a defender has.
    strengths: from 0 to 1; they replace those of given denoisers.
    bands: radial frequency bands of the perturbation; 0 leaves them out.
    transform: of the bands, 'dct' or 'fft'.
    context: also measures the denoiser in its place: D(x + delta) - D(x), and the accuracy of the
      defended model f(D(.)) on clean and on adversarial images.
    key: of random denoisers, `jax.random.key(0)` by default; image i draws with
      `fold_in(key, i)`, whatever the batches.
    batch_size: images at a time.
    progress: called with how many settings are done, of how many.

  Returns:
    The study; accuracies with Clopper-Pearson intervals of 95 %. Beside the denoisers stands a
    reference, 'weaker', the whole perturbation multiplied by one number: what it costs or brings
    that a denoiser removes some parts of it and not others.

  Raises:
    UserError: bad images, labels or strengths, an unknown denoiser or layer.
  """
  check_count('batch_size', batch_size)
  check_count('bands', bands, least=0)
  named = dict(models) if isinstance(models, Mapping) else {'model': models}
  attacked = adv if isinstance(adv, Mapping) else dict.fromkeys(named, adv)
  if not named or set(attacked) != set(named):
    raise UserError(
      f'adv has images of {sorted(attacked)}, models are {sorted(named)}; give one of each name'
    )
  key = jax.random.key(0) if key is None else check_key(key)
  subjects = [
    make_subject(name, model, images, labels, attacked[name], key, batch_size)
    for name, model in named.items()
  ]
  chosen = choose_denoisers(denoisers, strengths, subjects[0].images)
  count = len(subjects) * (len(EVENLY) + len(chosen) * len(strengths) + bands)
  steps = _Steps(progress, count)
  return NoiseStudy(
    models=tuple(undefended(subject) for subject in subjects),
    denoisers=tuple(
      steps.done(row)
      for subject in subjects
      for row in denoiser_rows(
        subject, chosen, [float(strength) for strength in strengths], context
      )
    ),
    bands=tuple(
      steps.done(band_row(subject, band, bands, transform))
      for subject in subjects
      for band in range(bands)
    ),
    transform=transform,
  )


class _Steps:
  """Counts what is done, for the bar of the caller."""

  def __init__(self, progress: Callable[[int, int], None] | None, count: int):
    self._progress, self._count, self._done = progress, count, 0

  def done(self, result: Any) -> Any:
    self._done += 1
    if self._progress is not None:
      self._progress(self._done, self._count)
    return result
