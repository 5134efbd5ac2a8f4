"""Which denoisers a study looks at."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rest_jax.defend.denoise.denoisers import (
  DENOISERS,
  Denoiser,
  check_strength,
  denoiser,
  noise_only,
)
from rest_jax.defend.features import FeatureDenoiser, at_layer
from rest_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chosen:
  """A denoiser under the label that it has in the study."""

  label: str
  denoiser: Denoiser | FeatureDenoiser


def choose_denoisers(
  denoisers: Any, strengths: Sequence[float], images: np.ndarray
) -> list[Chosen]:
  """Builds the denoisers of a study.

  Args:
    denoisers: as `noise_study` takes them; None for all registered ones that take such images.
    strengths: checked here.
    images: clean images (N, H, W, C), which 'pca' is fitted to.

  Returns:
    One a label.

  Raises:
    UserError: an unknown one, two of one label, or a strength outside of [0, 1].
  """
  if isinstance(strengths, int | float) or not len(strengths):
    raise UserError(f'strengths is one or more numbers from 0 to 1, not {strengths!r}')
  for strength in strengths:
    check_strength('a denoiser', strength)
  if denoisers is None:
    named = ((name, _build(name, images)) for name in DENOISERS)
    return [Chosen(name, one) for name, one in named if _takes(one, images)]
  if isinstance(denoisers, str | Denoiser | FeatureDenoiser):
    denoisers = [denoisers]
  pairs = denoisers.items() if isinstance(denoisers, Mapping) else ((None, d) for d in denoisers)
  chosen = [_chosen(label, one, images) for label, one in pairs]
  labels = [one.label for one in chosen]
  for label in labels:
    if labels.count(label) > 1:
      raise UserError(f'two denoisers are called {label!r}; give a mapping of labels to denoisers')
  return chosen


def family_of(one: Denoiser | FeatureDenoiser) -> str:
  """'spatial', 'frequency', 'latent', or 'feature' for those at a layer; '-' for others."""
  if isinstance(one, FeatureDenoiser):
    return 'feature'
  return DENOISERS[one.name].family if one.name in DENOISERS else '-'


def _chosen(label: str | None, one: Any, images: np.ndarray) -> Chosen:
  if isinstance(one, str):
    return Chosen(label or one, _build(one, images))
  if isinstance(one, FeatureDenoiser):
    return Chosen(label or f'{one.name}@{one.layer}', one)
  if isinstance(one, Denoiser):
    return Chosen(label or one.name, one)
  raise UserError(
    f'a denoiser is a name, a Denoiser or a FeatureDenoiser, not {type(one).__name__}'
  )


def _build(name: str, images: np.ndarray) -> Denoiser | FeatureDenoiser:
  if '@' in name:
    kind, _, layer = name.partition('@')
    return at_layer(kind, layer)
  if name == 'pca':
    return denoiser(name, basis=images)
  return denoiser(name)


def _takes(one: Denoiser | FeatureDenoiser, images: np.ndarray) -> bool:
  """Whether a denoiser takes images of this shape: some want three channels, or a least size."""
  delta = jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32)
  try:
    jax.eval_shape(lambda x: noise_only(one, x, jax.random.key(0)), delta)  # pyright: ignore
  except UserError:
    return False
  return True
