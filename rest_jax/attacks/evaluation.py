"""Evaluates a model under attacks and radii: resumable, with intervals and health checks."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rest_jax.attacks import health
from rest_jax.attacks.cases import Evaluating, Settings
from rest_jax.attacks.figures import draw_curves
from rest_jax.attacks.health import HealthCheck
from rest_jax.attacks.record import Record, Row, RunName, markdown, robust_accuracy_curve, summarise
from rest_jax.attacks.registry import Attack, as_attacks
from rest_jax.attacks.threat import Threat, check_host, check_key
from rest_jax.attacks.wrappers import shared_batch
from rest_jax.callables import as_function
from rest_jax.errors import UserError
from rest_jax.evaluation.batches import chunks
from rest_jax.evaluation.files import write_json, write_text
from rest_jax.evaluation.progress import images_bar
from rest_jax.inputs import Norm, check_count
from rest_jax.paths import local

DEFAULT_ATTACKS = ('apgd_ce', 'apgd_t', 'square')


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What an evaluation found.

  Attributes:
    rows: one an attack and radius, and the worst case over the attacks.
    health: the checks; empty where they were not asked for.
    records: by run and image index.
    confidence: of the intervals.
  """

  rows: list[Row]
  health: list[HealthCheck]
  records: Mapping[RunName, Mapping[int, Record]]
  confidence: float

  @property
  def raised(self) -> list[HealthCheck]:
    """The health checks that found something."""
    return [check for check in self.health if check.raised]

  def curve(self, attack: str, norm: Norm, radii: Sequence[float] | np.ndarray) -> np.ndarray:
    """Robust accuracy at any radius, from a minimum-norm attack.

    Args:
      attack: its label.
      norm: of the threat.
      radii: (R,).

    Returns:
      (R,) in [0, 1].

    Raises:
      UserError: no such attack here.
    """
    found = list(self.records.get(RunName(attack, norm, None), {}).values())
    if not found:
      raise UserError(f'no minimum-norm attack {attack!r} in {norm} was evaluated here')
    distances = np.asarray([r.distance if r.success else np.inf for r in found])
    return robust_accuracy_curve(distances, np.asarray([r.correct for r in found]), radii)

  def report(self) -> str:
    """The table and the health checks as Markdown."""
    return markdown(self.rows, self.confidence) + '\n' + health.markdown(self.health)


def epsilon_grid(
  norm: Norm, radii: Sequence[float | str] | np.ndarray, targeted: bool = False
) -> list[Threat]:
  """One threat a radius.

  Args:
    norm: 'linf', 'l2' or 'l1'.
    radii: each a number or a text such as '8/255'.
    targeted: whether given classes are to be reached.

  Returns:
    The threats, in the order of the radii.

  Raises:
    UserError: what is no radius.
  """
  if isinstance(radii, str) or not np.ndim(radii):
    raise UserError(f'a grid is several radii, such as [2 / 255, 4 / 255], not {radii!r:.40}')
  return [Threat(norm, eps, targeted) for eps in radii]  # pyright: ignore[reportArgumentType]


def evaluate(
  logits_fn: Any,
  images: Any,
  labels: Any = None,
  *,
  threats: Threat | Sequence[Threat],
  key: jax.Array,
  attacks: Sequence[str | Attack] = DEFAULT_ATTACKS,
  only: str | None = None,
  targets: Any = None,
  indices: Any = None,
  output_dir: str | Path | None = None,
  batch_size: int = 128,
  class_names: Sequence[str] | None = None,
  model_id: str | None = None,
  save_images: bool = False,
  pictures: int | None = None,
  check_health: bool = True,
  confidence: float = 0.95,
  progress: bool = False,
) -> Evaluation:
  """Attacks images with each attack at each radius, and judges the results by itself.

  An image that an attack fooled at one radius is not attacked at a larger one: its adversarial
  image lies in the larger ball too, so the result is taken over, exactly. Image i of the source
  is attacked with `fold_in(key, i)`, so that no result depends on the batches, and an attack called
  on the whole array with `key` finds the same. A minimum-norm attack runs once a norm.

  Args:
    logits_fn: images (B, H, W, C) in [0, 1] to logits (B, K): a `Classifier` or any function.
    images: floats (N, H, W, C) in [0, 1], with `labels`; or an iterable of batches without: pairs
      (images, labels), or dictionaries with 'image', 'label' and, as they may be, 'index',
      'target' and 'mask'.
    labels: integers (N,).
    threats: one or several; several radii of a norm are a grid. All targeted or none.
    key: PRNG key.
    attacks: names of `list_attacks()`, or `Attack`s.
    only: 'black_box' leaves out the attacks that use gradients; 'white_box' the others.
    targets: classes to reach (N,), for targeted threats.
    indices: which images of the source these are (N,); 0, 1, ... by default.
    output_dir: where results go: `results.jsonl`, `summary.json`, `summary.md`, `pictures/`. An
      evaluation that was stopped goes on from there. None keeps everything in memory.
    batch_size: images attacked at a time, shared over the devices of this process (it is rounded
      up to a multiple of their number); the last batch is filled up, so that an attack compiles
      once.
    class_names: for the pictures, so with an output_dir; those of the classifier by default.
    model_id: says which model the results belong to; otherwise weights and logits on fixed images
      do.
    save_images: write the adversarial images to `adversarial/*.npz`.
    pictures: columns of the pictures, with an output_dir 8 by default; 0 for none.
    check_health: run the health checks.
    confidence: of the intervals.
    progress: show a bar.

  Returns:
    The evaluation.

  Raises:
    UserError: bad input, or an output_dir with results of another model or other settings.
  """
  check_host('evaluate', images, labels, targets, key)
  _check_files(output_dir, class_names=class_names, pictures=pictures, save_images=save_images)
  settings = Settings(
    attacks=as_attacks(attacks, only),
    radii=radii_of(threats, targets),
    targeted=_targeted(threats),
    key=_one_key(key),
    batch_size=_batch_size(batch_size, labels),
    output_dir=None if output_dir is None else local(output_dir, 'output_dir'),
    class_names=class_names if class_names is not None else getattr(logits_fn, 'class_names', None),
    model_id=model_id,
    save_images=save_images,
    pictures=8 if pictures is None else pictures,
  )
  check_settings(settings, confidence)
  found = chunks(images, labels, targets, indices)
  first = next(found, None)
  if first is None:
    raise UserError('there are no images to attack')
  work = Evaluating(as_function(logits_fn), settings, first)
  with _bar(settings, labels, progress) as through:
    work.run(itertools.chain([first], found), through)
  return conclude(work, settings, check_health, confidence)


def conclude(work: Evaluating, settings: Settings, checked: bool, confidence: float) -> Evaluation:
  """Draws the pictures, checks the model's health where that is wanted, and writes the tables."""
  work.finish()
  records = work.records()
  checks = []
  if checked:
    norm, grid = next(iter(settings.radii.items()))
    threat = Threat(norm, max(grid))
    checks = health.check_model_health(work.model, work.sample(), threat)
    black_box = [attack.label for attack in settings.attacks if attack.black_box]
    checks += health.check_results_health(records, black_box)
  rows = summarise(records, settings.radii, confidence)
  evaluation = Evaluation(rows, checks, records, confidence)
  if settings.output_dir is not None:
    summary = {
      'confidence': confidence,
      'rows': [dataclasses.asdict(row) for row in rows],
      'health': [dataclasses.asdict(check) for check in checks],
    }
    write_json(settings.output_dir / 'summary.json', summary)
    write_text(settings.output_dir / 'summary.md', evaluation.report())
    for norm in settings.radii if settings.pictures else ():
      draw_curves(settings.output_dir / 'pictures' / f'curve_{norm}.png', rows, records, norm)
  return evaluation


def _bar(settings: Settings, labels: Any, shown: bool):
  """A bar over all images in all cases, where that was asked for; gives what it is told by."""
  if not shown:
    return contextlib.nullcontext()
  each = sum(
    1 if a.minimum_norm else len(g) for a in settings.attacks for g in settings.radii.values()
  )
  return images_bar(0 if labels is None else each * np.size(labels))


def _list(threats: Threat | Sequence[Threat]) -> list[Threat]:
  threats = [threats] if isinstance(threats, Threat) else list(threats)
  if not threats or not all(isinstance(threat, Threat) for threat in threats):
    raise UserError("threats are one or more Threat(norm, eps), such as Threat('linf', 8 / 255)")
  return threats


def radii_of(
  threats: Threat | Sequence[Threat], targets: Any = None
) -> dict[Norm, tuple[float, ...]]:
  """The radii of each norm, rising; `UserError` for what is no grid, or targets without a goal."""
  radii: dict[Norm, set[float]] = {}
  for threat in _list(threats):
    if not np.isfinite(threat.eps):
      raise UserError('an evaluation needs finite radii: they are where accuracy is measured')
    radii.setdefault(threat.norm, set()).add(float(threat.eps))
  if targets is not None and not _targeted(threats):
    raise UserError('targets are given, but the threat is not targeted: Threat(..., targeted=True)')
  return {norm: tuple(sorted(grid)) for norm, grid in radii.items()}


def _targeted(threats: Threat | Sequence[Threat]) -> bool:
  goals = {threat.targeted for threat in _list(threats)}
  if len(goals) > 1:
    raise UserError('targeted and untargeted threats; evaluate them one after the other')
  return goals.pop()


def _one_key(key: Any) -> jax.Array:
  key = check_key(key)
  if key.ndim:
    raise UserError('an evaluation takes one PRNG key, from which it makes one for each image')
  return key


def _batch_size(size: int, labels: Any) -> int:
  check_count('batch_size', size)
  # Of a few images a whole batch would be filler.
  return shared_batch(size if labels is None else max(1, min(size, np.size(labels))))


def _check_files(output_dir: Any, **options: Any) -> None:
  """What is about files needs a place for them."""
  for name, value in options.items():
    if output_dir is None and value is not None and value is not False and value != 0:
      raise UserError(f'{name} needs an output_dir, where the files go; give one or leave it out')


def check_settings(settings: Settings, confidence: float) -> None:
  """Raises `UserError` where numbers are out of their range, or an attack has not the norm."""
  check_count('pictures', settings.pictures, 0)
  if not 0 < confidence < 1:
    raise UserError(f'confidence must be between 0 and 1, got {confidence}')
  for attack in settings.attacks:
    if unknown := [norm for norm in settings.radii if norm not in attack.norms]:
      raise UserError(
        f'the attack {attack.label} has no norm {unknown[0]!r}; it has {", ".join(attack.norms)}'
      )
