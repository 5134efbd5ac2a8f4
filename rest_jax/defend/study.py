"""The noise-only study: what a denoiser does to the perturbation alone.

"On the limitations of denoising strategies as adversarial defenses" (arXiv 2012.09384) judges a
denoiser as if all of the adversarial noise were known: by the accuracy of f(x + IF(F(delta))),
delta = x_adv - x. Clean images are then left as they are, and the finding is that robustness stays
unsatisfactory even where most of the perturbation is gone. Which denoisers, strengths and bands are
looked at, and that the share of the perturbation's energy is what counts, is our reading: the
paper's body could not be read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from rest_jax.attacks.losses import undefined, undefined_count
from rest_jax.attacks.queries import as_classes, image_keys
from rest_jax.attacks.threat import check_count, check_inputs, check_key
from rest_jax.defend.denoise.denoisers import (
  DENOISERS,
  Denoiser,
  check_strength,
  denoiser,
  noise_only,
)
from rest_jax.defend.features import FeatureDenoiser, at_layer, noise_only_logits
from rest_jax.defend.study_results import (
  EVEN,
  REFERENCE,
  BandResult,
  DenoiserResult,
  Effect,
  ModelResult,
  NoiseStudy,
)
from rest_jax.errors import UserError
from rest_jax.evaluation.intervals import Interval, accuracy_interval
from rest_jax.layers import with_layer
from rest_jax.ops.bands import band_energies, scale_bands
from rest_jax.programs import release_programs

STRENGTHS = (0.1, 0.25, 0.5, 1.0)
EVENLY = (0.25, 0.5, 0.75, 0.9)  # shares of the energy that the even reference is short of


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
