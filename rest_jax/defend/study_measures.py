"""What the noise-only study measures: one model, one denoiser and strength, one band at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from rest_jax.attacks.losses import undefined, undefined_count
from rest_jax.attacks.queries import as_classes, image_keys
from rest_jax.attacks.threat import check_inputs
from rest_jax.defend.denoise.denoisers import noise_only
from rest_jax.defend.features import FeatureDenoiser, noise_only_logits
from rest_jax.defend.study_choice import Chosen, family_of
from rest_jax.defend.study_results import (
  EVEN,
  REFERENCE,
  BandResult,
  DenoiserResult,
  Effect,
  ModelResult,
)
from rest_jax.errors import UserError
from rest_jax.evaluation.intervals import Interval, accuracy_interval
from rest_jax.layers import with_layer
from rest_jax.ops.bands import band_energies, scale_bands
from rest_jax.programs import release_programs

EVENLY = (0.25, 0.5, 0.75, 0.9)  # shares of the energy that the even reference is short of


class Batch:
  """Rows of the images, filled up to one size; `cut` takes off what fills."""

  def __init__(self, subject: Subject, start: int):
    size = subject.batch_size
    self.count = min(size, len(subject.images) - start)
    rows = start + np.minimum(np.arange(size), self.count - 1)
    self.images = jnp.asarray(subject.images[rows])
    self.delta = jnp.asarray(subject.delta[rows])
    self.labels = jnp.asarray(subject.labels[rows])
    self.keys = subject.keys[rows]

  def cut(self, values: tuple[jax.Array, ...]) -> tuple[np.ndarray, ...]:
    """The real rows of arrays, on the host."""
    return tuple(np.asarray(value)[: self.count] for value in values)


@dataclasses.dataclass(frozen=True)
class Subject:
  """A model under study with what it is attacked with; arrays on the host, (N, ...) each."""

  name: str
  model: Partial
  images: np.ndarray
  delta: np.ndarray
  labels: np.ndarray
  keys: jax.Array
  batch_size: int

  def batches(self) -> Iterator[Batch]:
    """All images, in order."""
    for start in range(0, len(self.images), self.batch_size):
      yield Batch(self, start)

  def over(self, measure: Callable[[Batch], tuple[jax.Array, ...]]) -> tuple[np.ndarray, ...]:
    """The arrays (N,) that `measure` gives of all batches."""
    pieces = [batch.cut(measure(batch)) for batch in self.batches()]
    return tuple(np.concatenate(column) for column in zip(*pieces, strict=True))


def make_subject(
  name: str, model: Any, images: Any, labels: Any, adv: Any, key: jax.Array, batch_size: int
) -> Subject:
  """Checks and converts what `noise_study` got for a model; `UserError` for what is wrong."""
  images, adv = np.asarray(images), np.asarray(adv)
  if adv.shape != images.shape or not np.issubdtype(adv.dtype, np.floating):
    raise UserError(f'adv is floats like images, {images.shape}; of {name} it is {adv.shape}')
  if not len(images):
    raise UserError('the noise study takes one image or more')
  size = min(batch_size, len(images))
  inputs = check_inputs(model, images[:size], np.asarray(labels)[:size])
  for start in range(size, len(images), size):  # what is wrong further on
    rows = slice(start, start + size)
    check_inputs(model, images[rows], np.asarray(labels)[rows])
  images = images.astype(np.float32)
  return Subject(
    name=name,
    model=inputs.model,
    images=images,
    delta=adv.astype(np.float32) - images,
    labels=np.asarray(labels).astype(np.int32),
    keys=image_keys(key, len(images)),
    batch_size=size,
  )


# ---- What is measured ---------------------------------------------------------------------------


@jax.jit
def _correct(model: Partial, images: jax.Array, noise: jax.Array, labels: jax.Array) -> jax.Array:
  return _is_right(as_classes(model(images + noise)), labels)


def _is_right(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Whether the label's logit is the first of the highest; never where one is not a number."""
  return (jnp.argmax(logits, axis=1) == labels) & ~undefined(logits)


@jax.jit
def _clean(model: Partial, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
  logits = as_classes(model(images))
  return _is_right(logits, labels), undefined_count(logits)


@jax.jit
def _energy(x: jax.Array) -> jax.Array:
  return jnp.sum(jnp.square(x), axis=(1, 2, 3))


def undefended(subject: Subject) -> ModelResult:
  """Accuracy without any denoiser.

  Raises:
    UserError: the model's logits of clean images are not numbers.
  """

  def measure(batch: Batch):
    attacked = _correct(subject.model, batch.images, batch.delta, batch.labels)
    return *_clean(subject.model, batch.images, batch.labels), attacked

  clean, bad, attacked = subject.over(measure)
  if bad.any():
    raise UserError(
      f'{int(bad.sum())} logits of {subject.name} are not finite on clean images, on '
      f'{np.count_nonzero(bad)} of {len(clean)}, the first of them number '
      f'{np.flatnonzero(bad)[0]}; look for weights that are not finite'
    )
  return ModelResult(subject.name, len(clean), _share(clean), _share(attacked))


def denoiser_rows(
  subject: Subject, chosen: Sequence[Chosen], strengths: Sequence[float], context: bool
) -> Iterator[DenoiserResult]:
  """The reference, then every denoiser at every strength, one after the other."""
  for share in EVENLY:
    yield _weaker(subject, share)
  for one in chosen:
    release_programs()
    for strength in strengths:
      yield _denoised(subject, one, strength, context)


def _weaker(subject: Subject, share: float) -> DenoiserResult:
  """The perturbation with `share` of its energy gone and its pattern as it was."""
  factor = np.float32(np.sqrt(1 - share))

  def measure(batch: Batch):
    left = factor * batch.delta
    correct = _correct(subject.model, batch.images, left, batch.labels)
    return correct, _energy(batch.delta), _energy(left)

  return DenoiserResult(subject.name, EVEN, REFERENCE, share, _effect(*subject.over(measure)))


def _denoised(subject: Subject, chosen: Chosen, strength: float, context: bool) -> DenoiserResult:
  denoiser = chosen.denoiser.with_strength(strength)
  alone, in_place = _at_layer if isinstance(denoiser, FeatureDenoiser) else _in_pixels
  correct, before, after = subject.over(lambda batch: alone(subject.model, denoiser, batch))
  effect = _effect(correct, before, after)
  result = DenoiserResult(subject.name, chosen.label, family_of(denoiser), strength, alone=effect)
  if not context:
    return result
  correct, before, after, clean, defended = subject.over(
    lambda batch: in_place(subject.model, denoiser, batch)
  )
  return dataclasses.replace(
    result,
    in_place=_effect(correct, before, after),
    clean=_share(clean),
    defended=_share(defended),
  )


def _pixels_alone(model: Partial, denoiser: Any, batch: Batch) -> tuple[jax.Array, ...]:
  left = noise_only(denoiser, batch.delta, batch.keys)
  correct = _correct(model, batch.images, left, batch.labels)
  return correct, _energy(batch.delta), _energy(left)


def _pixels_in_place(model: Partial, denoiser: Any, batch: Batch) -> tuple[jax.Array, ...]:
  clean, noisy = (denoiser(x, batch.keys) for x in (batch.images, batch.images + batch.delta))
  left, none = noisy - clean, jnp.zeros_like(clean)
  return (
    _correct(model, batch.images, left, batch.labels),
    _energy(batch.delta),
    _energy(left),
    _correct(model, clean, none, batch.labels),
    _correct(model, noisy, none, batch.labels),
  )


@jax.jit
def _layer_alone(model: Partial, denoiser: FeatureDenoiser, x: jax.Array, noisy: jax.Array):
  return noise_only_logits(model, denoiser, x, noisy)


@jax.jit
def _layer_in_place(model: Partial, denoiser: FeatureDenoiser, x: jax.Array, noisy: jax.Array):
  found = noise_only_logits(model, denoiser, x, noisy, in_place=True)
  defended = (with_layer(model, denoiser.layer, denoiser, images) for images in (x, noisy))
  return *found, *defended


def _features_alone(model: Partial, denoiser: Any, batch: Batch) -> tuple[jax.Array, ...]:
  logits, before, after = _layer_alone(model, denoiser, batch.images, batch.images + batch.delta)
  return _is_right(as_classes(logits), batch.labels), before, after


def _features_in_place(model: Partial, denoiser: Any, batch: Batch) -> tuple[jax.Array, ...]:
  found = _layer_in_place(model, denoiser, batch.images, batch.images + batch.delta)
  logits, before, after, clean, defended = found
  right = [_is_right(as_classes(one), batch.labels) for one in (logits, clean, defended)]
  return right[0], before, after, right[1], right[2]


_in_pixels = (_pixels_alone, _pixels_in_place)
_at_layer = (_features_alone, _features_in_place)


def band_row(subject: Subject, band: int, bands: int, transform: str) -> BandResult:
  """One band of the perturbations, alone and left out."""

  def measure(batch: Batch):
    kept = _only(batch.delta, band, bands, transform)
    return (
      _correct(subject.model, batch.images, kept, batch.labels),
      _correct(subject.model, batch.images, batch.delta - kept, batch.labels),
      band_energies(batch.delta, bands, transform).sum(axis=2)[:, band],
      _energy(batch.delta),
    )

  kept, removed, energy, total = subject.over(measure)
  everything = total.sum(dtype=np.float64)
  share = energy.sum(dtype=np.float64) / everything if everything else np.nan
  low, high = band / bands, (band + 1) / bands
  return BandResult(subject.name, band, low, high, float(share), _share(kept), _share(removed))


def _only(delta: jax.Array, band: int, bands: int, transform: str) -> jax.Array:
  gains = jnp.zeros((1, bands, 1)).at[:, band].set(1.0)
  return scale_bands(delta, gains, transform)


def _share(correct: np.ndarray) -> Interval:
  return accuracy_interval(int(correct.sum()), len(correct))


def _effect(correct: np.ndarray, before: np.ndarray, after: np.ndarray) -> Effect:
  before, after = before.astype(np.float64), after.astype(np.float64)
  some = before > 0  # an attack may have left an image alone
  if not some.any():
    return Effect(_share(correct), np.nan, np.nan)
  return Effect(
    _share(correct),
    removed=float(np.mean(1 - after[some] / before[some])),
    removed_total=float(1 - after[some].sum() / before[some].sum()),
  )
