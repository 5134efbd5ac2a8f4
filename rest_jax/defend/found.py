"""What a run of defend.py found, on its way to the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rest_jax.attacks.registry import Attack
from rest_jax.defend.command import Command
from rest_jax.defend.evaluate import DefenceEvaluation
from rest_jax.defend.spectra import Spectrum
from rest_jax.defend.study_results import NoiseStudy
from rest_jax.models.classifier import Classifier


@dataclasses.dataclass(frozen=True)
class Study:
  """The noise-only study, and the spectra of the same perturbations."""

  noise: NoiseStudy
  spectra: tuple[Spectrum, ...]


@dataclasses.dataclass(frozen=True)
class Found:
  """A finished evaluation with all that its report shows.

  Attributes:
    command: the command line.
    classifier: the undefended model.
    data_name: of the data set.
    data_line: which of its images these are.
    images: float32 (N, H, W, C) in [0, 1].
    labels: integers (N,).
    adversarial: as `images`: of the first attack at the largest radius on the undefended model.
    defences: label to defence.
    attacks: in the order of the command line.
    evaluation: the figures.
    study: with --study noise.
    seconds: the run took.
  """

  command: Command
  classifier: Classifier
  data_name: str
  images: np.ndarray
  labels: np.ndarray
  adversarial: np.ndarray
  defences: Mapping[str, Any]
  attacks: Sequence[Attack]
  evaluation: DefenceEvaluation
  study: Study | None = None
  data_line: str = ''
  seconds: float = 0.0

  @property
  def model_name(self) -> str:
    """What the model is called in text: a path's last parts."""
    path = Path(self.command.model)
    return path.parent.name if path.name == 'model' and path.parent.name else path.stem

  def by_name(self) -> dict[str, Any]:
    """One defence for each name; a study takes its own strengths."""
    return {label.rsplit(' ', 1)[0]: one for label, one in self.defences.items()}
