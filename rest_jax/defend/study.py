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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from rest_jax.attacks.queries import image_keys
from rest_jax.attacks.threat import check_inputs, check_key
from rest_jax.attacks.wrappers import shared_batch
from rest_jax.defend.denoise.denoisers import (
  DENOISERS,
  Denoiser,
  check_strength,
  denoiser,
  noise_only,
)
from rest_jax.defend.features import FeatureDenoiser, at_layer
from rest_jax.defend.study_measures import (
  IN_LAYER,
  IN_PIXELS,
  Band,
  Rows,
  everywhere,
  plain,
  spread_out,
  weakened,
)
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
from rest_jax.evaluation.batches import Batch, Images
from rest_jax.evaluation.fingerprint import pin, weights_hash
from rest_jax.evaluation.intervals import Interval, accuracy_interval
from rest_jax.evaluation.records import RESULTS, Records
from rest_jax.evaluation.runner import run
from rest_jax.inputs import check_count
from rest_jax.paths import local

STRENGTHS = (0.1, 0.25, 0.5, 1.0)
UNDEFENDED = 'undefended'  # the setting without a denoiser
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
  output_dir: str | Path | None = None,
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
    batch_size: images at a time, shared over the devices of this process; rounded up to a multiple
      of their number.
    output_dir: where what was measured is kept, so that a study that was stopped goes on; results
      of something else there give way. None for in memory.
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
  settings = _settings(chosen, [float(s) for s in strengths], bands, transform, context)
  records = _records(output_dir, subjects, chosen, transform, context, key)
  steps = _Steps(progress, subjects, settings, records)
  for subject in subjects:
    _measure(subject, settings[:1], records, steps)
    _undefended(subject, records)  # of a broken model nothing more is measured
    _measure(subject, settings[1:], records, steps)
  return NoiseStudy(
    models=tuple(_undefended(subject, records) for subject in subjects),
    denoisers=tuple(
      _denoiser_result(subject, setting, records)
      for subject in subjects
      for setting in settings
      if setting.family
    ),
    bands=tuple(
      _band_result(subject, band, bands, records) for subject in subjects for band in range(bands)
    ),
    transform=transform,
  )


class _Steps:
  """Counts settings that are through, for the bar of the caller."""

  def __init__(
    self,
    progress: Callable[[int, int], None] | None,
    subjects: Sequence[Subject],
    settings: Sequence[Setting],
    records: Records,
  ):
    self._progress, self._done = progress, 0
    names = [_label(s, one) for s in subjects for one in settings if one.label != UNDEFENDED]
    self._count, size = len(names), len(subjects[0].images)
    self._left = {name: size - len(records.rows(name)) for name in names}
    for name in names:
      if not self._left[name]:
        self._tell()

  def through(self, label: str, images: int) -> None:
    """So many more images of a setting."""
    if label in self._left:
      self._left[label] -= images
      if not self._left[label]:
        self._tell()

  def _tell(self) -> None:
    self._done += 1
    if self._progress is not None:
      self._progress(self._done, self._count)


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


@dataclasses.dataclass(frozen=True)
class Setting:
  """What is measured of every image in one go.

  Attributes:
    label: its name within a model's settings.
    measure: `measure(model, parts, rows)` gives columns (B,).
    parts: a pytree, data of the compiled programs: a denoiser, a factor, a band.
    denoiser: label of the denoiser.
    family: of the denoiser; '' of what is none.
    strength: from 0 to 1.
  """

  label: str
  measure: Callable[[Partial, Any, Rows], dict[str, jax.Array]]
  parts: Any = None
  denoiser: str = ''
  family: str = ''
  strength: float = 0.0


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
    batch_size=shared_batch(size),
  )


def _settings(
  chosen: Sequence[Chosen], strengths: Sequence[float], bands: int, transform: str, context: bool
) -> list[Setting]:
  """The model alone, the reference, every denoiser at every strength, every band."""
  found = [Setting(UNDEFENDED, plain)]
  for share in EVENLY:
    factor = np.float32(np.sqrt(1 - share))  # the pattern as it was
    found.append(Setting(f'{EVEN} {share:g}', weakened, factor, EVEN, REFERENCE, share))
  for one in chosen:
    at_layer_ = isinstance(one.denoiser, FeatureDenoiser)
    measure = IN_LAYER[context] if at_layer_ else IN_PIXELS[context]
    for strength in strengths:
      parts, label = one.denoiser.with_strength(strength), f'{one.label} {strength:g}'
      found.append(Setting(label, measure, parts, one.label, family_of(one.denoiser), strength))
  measure = Band(bands, transform)
  return found + [Setting(f'band {i}', measure, np.int32(i)) for i in range(bands)]


def _label(subject: Subject, setting: Setting) -> str:
  return f'{subject.name}: {setting.label}'


def _records(
  output_dir: str | Path | None,
  subjects: Sequence[Subject],
  chosen: Sequence[Chosen],
  transform: str,
  context: bool,
  key: jax.Array,
) -> Records:
  """Where rows go; what may grow (strengths, denoisers by other names, bands) is not pinned."""
  path = None if output_dir is None else local(output_dir, 'output_dir') / RESULTS
  pins = {one.label: pin(one.denoiser.with_strength(1.0)) for one in chosen}
  settings = {
    'perturbations': {s.name: weights_hash((s.images, s.delta, s.labels)) for s in subjects},
    'denoisers': pins,
    'transform': transform,
    'context': context,
    'seed': np.asarray(jax.random.key_data(key)).ravel().tolist(),
  }
  model = pin({subject.name: subject.model for subject in subjects})
  return Records(path, settings, model=model, replace=True)


def _measure(
  subject: Subject, settings: Sequence[Setting], records: Records, steps: _Steps
) -> None:
  """Records every setting of every image, as far as it has no record."""
  arrays = {
    'images': subject.images,
    'delta': subject.delta,
    'labels': subject.labels,
    'keys': np.asarray(jax.random.key_data(subject.keys)),
  }
  model = everywhere(subject.model)
  cases = [_Case(_label(subject, setting), setting) for setting in settings]

  def work(case: _Case, batch: Batch, device: Any) -> dict[str, Any]:
    del device  # all of them, with a share of the rows each
    impl = jax.random.key_impl(subject.keys)
    keys = jax.random.wrap_key_data(jnp.asarray(batch['keys']), impl=impl)
    rows = Rows(batch['images'], batch['delta'], batch['labels'], keys)
    return case.setting.measure(model, everywhere(case.setting.parts), spread_out(rows))

  piece = Images(np.arange(len(subject.images)), arrays)
  run(
    cases,
    [piece],
    records,
    work,
    size=subject.batch_size,
    devices=(None,),
    progress=steps.through,
  )


class _Case(NamedTuple):
  """A setting on a model."""

  label: str
  setting: Setting


# ---- What it comes to ---------------------------------------------------------------------------


def _columns(subject: Subject, label: str, records: Records, *names: str) -> list[np.ndarray]:
  """Columns of a setting, float64 (N,) each; NaN for what was not finite."""
  name, images = f'{subject.name}: {label}', range(len(subject.images))
  columns = [records.column(name, column, list(images)) for column in names]
  return [np.asarray([np.nan if v is None else v for v in column], float) for column in columns]


def _undefended(subject: Subject, records: Records) -> ModelResult:
  """Accuracy without any denoiser.

  Raises:
    UserError: the model's logits of clean images are not numbers.
  """
  clean, bad, attacked = _columns(subject, UNDEFENDED, records, 'clean', 'bad', 'attacked')
  if bad.any():
    raise UserError(
      f'{int(bad.sum())} logits of {subject.name} are not finite on clean images, on '
      f'{np.count_nonzero(bad)} of {len(clean)}, the first of them number '
      f'{np.flatnonzero(bad)[0]}; look for weights that are not finite'
    )
  return ModelResult(subject.name, len(clean), _share(clean), _share(attacked))


def _denoiser_result(subject: Subject, setting: Setting, records: Records) -> DenoiserResult:
  """A denoiser at a strength, or the reference."""

  def effect(prefix: str = '') -> Effect:
    names = [f'{prefix}{name}' for name in ('right', 'before', 'after')]
    return _effect(*_columns(subject, setting.label, records, *names))

  result = DenoiserResult(
    subject.name, setting.denoiser, setting.family, setting.strength, alone=effect()
  )
  if setting.measure not in (IN_PIXELS[True], IN_LAYER[True]):
    return result
  clean, defended = _columns(subject, setting.label, records, 'clean', 'defended')
  return dataclasses.replace(
    result, in_place=effect('in_place_'), clean=_share(clean), defended=_share(defended)
  )


def _band_result(subject: Subject, band: int, bands: int, records: Records) -> BandResult:
  names = ('kept', 'removed', 'energy', 'total')
  kept, removed, energy, total = _columns(subject, f'band {band}', records, *names)
  everything = total.sum()
  share = energy.sum() / everything if everything else np.nan
  low, high = band / bands, (band + 1) / bands
  return BandResult(subject.name, band, low, high, float(share), _share(kept), _share(removed))


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
