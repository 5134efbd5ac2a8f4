"""`defend.py --study noise`: the noise-only study and the spectra, kept and drawn."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from rest_jax.defend.found import Found, Study
from rest_jax.defend.spectra import Spectrum, perturbation_spectra
from rest_jax.defend.study import noise_study
from rest_jax.defend.study_figures import draw_bands, draw_spectra, draw_study
from rest_jax.defend.study_results import NoiseStudy
from rest_jax.evaluation.files import write_json
from rest_jax.evaluation.fingerprint import weights_hash

FILE = 'study.json'


def run_study(found: Found, say: Callable[[str, int], Any]) -> Study:
  """Studies the denoisers of an evaluation on the perturbations of the undefended model.

  Args:
    found: what was evaluated.
    say: told what is at work.

  Returns:
    The study, measured or read where it was kept; its three figures are drawn.

  Raises:
    UserError: the folder cannot be written.
  """
  folder, name = found.command.output, found.model_name
  settings = _settings(found)
  study = _kept(found, settings)
  if study is None:
    say('noise study', 0)
    denoisers = found.by_name()
    models, key = {name: found.classifier}, jax.random.key(found.command.seed)
    data = (found.images, found.labels, found.adversarial)
    size = found.command.batch_size
    noise = noise_study(models, *data, denoisers, key=key, batch_size=size)
    spectra = perturbation_spectra(models, found.images, found.adversarial, batch_size=size)
    study = Study(noise, tuple(spectra))
    values = {'noise': noise.to_dict(), 'spectra': [dataclasses.asdict(one) for one in spectra]}
    write_json(folder / FILE, {'settings': settings, **values})
  figures = folder / 'figures'
  draw_study(study.noise, figures / 'study.png')
  draw_bands(study.noise, figures / 'bands.png')
  draw_spectra(study.spectra, figures / 'spectra.png')
  return study


def _settings(found: Found) -> dict[str, Any]:
  """What pins a study: the perturbations hold the model, the attack, the radius and the images."""
  return {
    'perturbations': weights_hash((found.images, found.adversarial, np.asarray(found.labels))),
    'denoisers': {label: weights_hash(one) for label, one in found.by_name().items()},
    'seed': found.command.seed,
  }


def _kept(found: Found, settings: dict[str, Any]) -> Study | None:
  """What an earlier run wrote; None where that is missing, damaged or of something else."""
  try:
    values = json.loads((found.command.output / FILE).read_text(encoding='utf-8'))
    if values['settings'] == settings:
      spectra = tuple(
        Spectrum(s['model'], s['place'], tuple(s['noise']), tuple(s['clean']))
        for s in values['spectra']
      )
      return Study(NoiseStudy.from_dict(values['noise']), spectra)
  except (OSError, ValueError, KeyError, TypeError):
    pass
  return None
