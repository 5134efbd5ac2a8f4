"""Defences judged by attacks that know of them and by attacks that do not."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

from rest_jax.attacks.cases import Evaluating, Made, Make, Settings, seed_of
from rest_jax.attacks.ensemble import AutoAttack
from rest_jax.attacks.evaluation import check_settings, conclude, radii_of
from rest_jax.attacks.health import HealthCheck, SampleRows, check_model_health
from rest_jax.attacks.judge import judge
from rest_jax.attacks.record import Record, RunName
from rest_jax.attacks.registry import Attack, as_attacks
from rest_jax.attacks.threat import Threat, check_inputs, check_key
from rest_jax.attacks.wrappers import shared_batch
from rest_jax.callables import as_function
from rest_jax.defend.protection import DRAWS, as_defences, attackable, is_random, protect
from rest_jax.defend.table import UNDEFENDED, Cell, DefenceRow, make_row, markdown, to_csv
from rest_jax.errors import UserError
from rest_jax.evaluation.batches import Chunk, batch_rows, chunks, keys_of
from rest_jax.evaluation.files import write_json, write_text
from rest_jax.evaluation.fingerprint import pin, weights_hash
from rest_jax.evaluation.records import Records
from rest_jax.evaluation.runner import Tick
from rest_jax.inputs import check_count
from rest_jax.paths import local
from rest_jax.programs import in_use, release_programs

SAMPLE = 32  # images at most; as in any short attack, more of them hardly change what is raised
FILE = 'health.jsonl'


@dataclasses.dataclass(frozen=True)
class DefenceEvaluation:
  """What an evaluation of defences found.

  Attributes:
    rows: by attack, norm, radius and defence, the undefended model first.
    health: the checks of each defended model, by label; empty where they were not asked for.
    confidence: of the intervals.
  """

  rows: list[DefenceRow]
  health: Mapping[str, list[HealthCheck]]
  confidence: float

  def row(self, defence: str, attack: str, eps: float) -> DefenceRow:
    """The row of a defence; `KeyError` where there is none."""
    for row in self.rows:
      if (row.defence, row.attack) == (defence, attack) and abs(row.eps - eps) <= 1e-9:
        return row
    raise KeyError((defence, attack, eps))

  def report(self) -> str:
    """The table as Markdown, flagged rows explained below it."""
    return markdown(self.rows, self.confidence)

  def to_json(self) -> dict[str, Any]:
    """Rows and checks as JSON values."""
    health = {k: [dataclasses.asdict(c) for c in checks] for k, checks in self.health.items()}
    rows = [row.to_json() for row in self.rows]
    return {'confidence': self.confidence, 'rows': rows, 'health': health}

  def to_csv(self) -> str:
    """A line a row."""
    return to_csv(self.rows)


@dataclasses.dataclass(frozen=True)
class Defended:
  """A model with its defence inside, for `evaluate_defences`: adversarially trained, or with band
  compression or feature denoising between its layers.

  Attributes:
    model: images to logits, of its own weights; a `Classifier` or any function.
    attacked: the same with usable gradients; `model` itself where it has such.
  """

  model: Any
  attacked: Any = None


# ---- What attacks of defences are ----------------------------------------------------------------


def images_at_a_time(batch_size: int, count: int) -> int:
  """The batch for `count` images where `batch_size` are asked for, that divides over devices."""
  return shared_batch(max(1, min(batch_size, count)))


def for_transfer(attack: Attack) -> Attack:
  """The attack without an end at the first success: more loss transfers better."""
  return _with_default(attack, 'stop_early', False)


def through(attack: Attack, random: bool) -> Attack:
  """The attack as it goes through a defence: AutoAttack in its version for random models."""
  if random and attack.function is AutoAttack:
    return _with_default(attack, 'version', 'rand')
  return attack


def _with_default(attack: Attack, name: str, value: Any) -> Attack:
  """The attack with an option that it has and that was left open."""
  if name not in inspect.signature(attack.function).parameters or name in attack.options:
    return attack
  return dataclasses.replace(attack, options={**attack.options, name: value})


def made_without(
  model: Partial,
  attack: Attack,
  images: np.ndarray,
  labels: np.ndarray,
  *,
  key: jax.Array,
  batch_size: int,
  directory: Path | None,
  model_id: str | None = None,
) -> Made:
  """Adversarial images of the undefended model, which every defence is tried on.

  Args:
    model: the undefended one.
    attack: how.
    images: float32 (N, H, W, C).
    labels: integers (N,).
    key: one PRNG key.
    batch_size: images at a time, as `images_at_a_time` gives it.
    directory: of the evaluation; None for in memory.
    model_id: the user's word for the model.

  Returns:
    Where they come from: made when they are asked for, or read.

  Raises:
    UserError: bad input, or a directory of another model or other settings.
  """
  place = None if directory is None else directory / 'transferred' / attack.label
  return Made(
    model,
    for_transfer(attack),
    _chunk(images, labels),
    key=key,
    size=batch_size,
    directory=place,
    model_id=model_id,
  )


def _chunk(images: np.ndarray, labels: np.ndarray) -> Chunk:
  (chunk,) = chunks(images, labels, None, None)
  return chunk


@dataclasses.dataclass(frozen=True)
class _Entry:
  """A defended model under evaluation."""

  label: str
  judged: Partial
  attacked: Partial
  random: bool
  directory: Path | None


def evaluate_defences(
  model: Any,
  images: Any,
  labels: Any,
  defences: Mapping[str, Any],
  *,
  threats: Threat | Sequence[Threat],
  attack: str | Attack | Sequence[str | Attack] = 'pgd',
  key: jax.Array,
  adaptive: bool = True,
  draws: int = DRAWS,
  output_dir: str | Path | None = None,
  batch_size: int = 128,
  check_health: bool = True,
  confidence: float = 0.95,
  model_id: str | None = None,
  progress: Any = None,
) -> DefenceEvaluation:
  """Attacks a model behind each defence, with the attack knowing of the defence and without.

  The non-adaptive figure judges, behind the defence, adversarial images of the undefended model;
  they are made once, without an end at the first success. The adaptive one attacks through the
  defence (`attackable`: BPDA and EOT where needed), which is what a defence has to withstand:
  Tramer et al., "On adaptive attacks to adversarial example defenses", 2020. Both are judged on
  `protect(model, defence)` and count towards `worst`. An adaptive attack that does worse than the
  other one, or whose gradients fail the health checks, flags its row.

  Args:
    model: the undefended model: a `Classifier` or any function of images to logits.
    images: floats (N, H, W, C) in [0, 1].
    labels: integers (N,).
    defences: label to a defence as `protect` takes it, several in a tuple, or a `Defended` model.
      The undefended model is evaluated in any case.
    threats: norms and radii, untargeted.
    attack: one or several, names of `attacks.list_attacks()` or `Attack`s.
    key: one PRNG key; image i is attacked with `fold_in(key, i)`. Same key, same results.
    adaptive: whether to attack through the defences too.
    draws: of random defences.
    output_dir: where results are kept and an evaluation that was stopped goes on; None for memory.
    batch_size: images at a time, shared over the devices of this process; rounded up to a multiple
      of their number.
    check_health: run the attacks' health checks on the undefended model and, as far as attacks go
      through them (`adaptive`), on every defended one.
    confidence: of the intervals.
    model_id: the user's word for the model; otherwise its weights and logits pin it.
    progress: `progress(text, images)`, called with what is at work and how many images of it are
      through since the last call.

  Returns:
    The evaluation.

  Raises:
    UserError: bad input, a radius that holds every image, or results of something else in
      output_dir.
  """
  threats = check_threats(threats, np.shape(images))
  attacks = as_attacks([attack] if isinstance(attack, str | Attack) else attack)
  first = check_inputs(model, np.asarray(images)[:1], np.asarray(labels)[:1])
  check_inputs(model, images, labels)
  check_count('batch_size', batch_size)
  root = None if output_dir is None else local(output_dir, 'output_dir')
  work = _Work(
    model=first.model,
    images=np.asarray(images, np.float32),
    labels=np.asarray(labels),
    threats=threats,
    key=check_key(key),
    size=images_at_a_time(batch_size, len(images)),
    directory=root,
    confidence=confidence,
    model_id=model_id,
    progress=progress or (lambda text, count: None),
  )
  entries = _entries(first.model, defences, work.key, draws, root)
  found, health = _both(work, entries, attacks, adaptive, check_health)
  evaluation = DefenceEvaluation(work.rows(entries, attacks, found, health), health, confidence)
  if root is not None:
    write_json(root / 'evaluation.json', evaluation.to_json())
    write_text(root / 'evaluation.md', evaluation.report())
  return evaluation


def _both(
  work: _Work,
  entries: Sequence[_Entry],
  attacks: Sequence[Attack],
  adaptive: bool,
  check_health: bool,
) -> tuple[dict[tuple[str, str], Cell], dict[str, list[HealthCheck]]]:
  """The attacks, and beside them the health checks: most of both is compilation on one core.

  The checks are about gradients that an attack follows, so that those of a defence that is not
  attacked through are left out.
  """
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    checked = [e for e in entries if check_health and (adaptive or e.label == UNDEFENDED)]
    pending = {e.label: pool.submit(work.health, e) for e in checked}
    try:
      found = work.cells(entries, attacks, adaptive)
      work.progress('health checks', 0)
      health = {}
      for label, future in pending.items():
        health[label] = future.result()
        release_programs()
      return found, health
    finally:
      pool.shutdown(wait=False, cancel_futures=True)


def check_threats(threats: Threat | Sequence[Threat], shape: tuple[int, ...]) -> list[Threat]:
  """Returns the threats as a list, rising by radius.

  Args:
    threats: one or several.
    shape: of the images (N, H, W, C).

  Raises:
    UserError: none, a targeted one, or a radius within which every image can become any other.
  """
  several = [threats] if isinstance(threats, Threat) else list(threats)
  if not several or not all(isinstance(one, Threat) for one in several):
    raise UserError("threats are one or more Threat(norm, eps), such as Threat('linf', 8 / 255)")
  if any(one.targeted for one in several):
    raise UserError('defences are evaluated under untargeted threats; leave targeted=True out')
  size = int(np.prod(shape[1:]))
  for one in several:
    largest = {'linf': 1.0, 'l2': size**0.5, 'l1': float(size)}[one.norm]
    if not one.eps <= largest:
      raise UserError(
        f'eps {one.eps:g} in {one.norm} is beyond {largest:g}, within which every image of '
        f'{size} values can become any other; radii are in units of [0, 1], such as 8/255'
      )
  return sorted(dict.fromkeys(several), key=lambda one: (one.norm, one.eps))


def _entries(
  model: Partial, defences: Mapping[str, Any], key: jax.Array, draws: int, root: Path | None
) -> list[_Entry]:
  entries = [_entry(UNDEFENDED, model, (), key, draws, root)]
  for label, value in defences.items():
    if not re.fullmatch(r'[\w .:@+,-]+', label) or label == UNDEFENDED:
      raise UserError(f'the label of a defence is letters, digits and " .:@+,-", not {label!r}')
    entries.append(_entry(label, model, value, key, draws, root))
  places = [entry.directory for entry in entries if entry.directory is not None]
  if len(set(places)) < len(places):
    raise UserError('two labels of defences differ in punctuation only; rename one')
  return entries


def _entry(
  label: str, model: Partial, value: Any, key: jax.Array, draws: int, root: Path | None
) -> _Entry:
  directory = None if root is None else root / re.sub(r'[^\w.-]+', '_', label)
  if isinstance(value, Defended):
    judged = as_function(value.model)
    attacked = judged if value.attacked is None else as_function(value.attacked)
    return _Entry(label, judged, attacked, False, directory)
  several = as_defences(tuple(value) if isinstance(value, tuple | list) else (value,))
  return _Entry(
    label,
    protect(model, *several, key=key, draws=draws),
    attackable(model, *several, key=key, draws=draws),
    any(map(is_random, several)),
    directory,
  )


@dataclasses.dataclass(frozen=True)
class _Work:
  """Checked arguments of `evaluate_defences`."""

  model: Partial
  images: np.ndarray
  labels: np.ndarray
  threats: Sequence[Threat]
  key: jax.Array
  size: int
  directory: Path | None
  confidence: float
  model_id: str | None
  progress: Any

  def cells(
    self, entries: Sequence[_Entry], attacks: Sequence[Attack], adaptive: bool
  ) -> dict[tuple[str, str], Cell]:
    """Runs every attack on every entry; by labels of the defence and the attack."""
    found = {}
    for attack in attacks:
      check_settings(self._settings(attack, None, None), self.confidence)
      made = self._made(attack)
      for entry in entries:
        plain = self._run(entry, for_transfer(attack), 'non_adaptive', self.model, made.hand_out)
        aware = plain if entry.label == UNDEFENDED else None
        if adaptive and aware is None:
          text = f'{entry.label}: {attack.label} through the defence'
          aimed = through(attack, entry.random)
          aware = self._run(entry, aimed, 'adaptive', entry.attacked, None, text)
        found[entry.label, attack.label] = Cell(plain, aware)
    return found

  def health(self, entry: _Entry) -> list[HealthCheck]:
    """The health checks of a defended model, as the adaptive attack sees it."""
    with in_use():
      return defended_health(
        entry.judged,
        entry.attacked,
        (self.images, self.labels),
        threat=max(self.threats, key=lambda one: (one.norm == self.threats[0].norm, one.eps)),
        key=self.key,
        directory=entry.directory,
      )

  def rows(
    self,
    entries: Sequence[_Entry],
    attacks: Sequence[Attack],
    found: Mapping[tuple[str, str], Cell],
    health: Mapping[str, Sequence[HealthCheck]],
  ) -> list[DefenceRow]:
    """The table."""
    return [
      make_row(
        entry.label,
        attack.label,
        threat.norm,
        float(threat.eps),
        found[entry.label, attack.label],
        found[UNDEFENDED, attack.label],
        health.get(entry.label, ()),
        self.confidence,
      )
      for attack in attacks
      for threat in self.threats
      for entry in entries
    ]

  def _made(self, attack: Attack) -> Made:
    """The perturbations of the undefended model, made now."""
    made = made_without(
      self.model,
      attack,
      self.images,
      self.labels,
      key=self.key,
      batch_size=self.size,
      directory=self.directory,
      model_id=self.model_id,
    )
    for threat in self.threats[:1] if attack.minimum_norm else self.threats:
      made.images(threat, self._tick(f'{UNDEFENDED}: {attack.label}'))
    return made

  def _run(
    self,
    entry: _Entry,
    attack: Attack,
    kind: str,
    made_on: Partial,
    make: Make | None,
    text: str | None = None,
  ) -> Mapping[RunName, Mapping[int, Record]]:
    """The records of an attack made on a model and judged by a defended one."""
    place = None if entry.directory is None else entry.directory / attack.label / kind
    named = None if self.model_id is None else f'{self.model_id}, {entry.label}'
    settings, chunk = self._settings(attack, place, named), _chunk(self.images, self.labels)
    evaluating = Evaluating(entry.judged, settings, chunk, made_on, make)
    evaluating.run([chunk], None if text is None else self._tick(text))
    return conclude(evaluating, settings, False, self.confidence).records

  def _settings(self, attack: Attack, place: Path | None, model_id: str | None) -> Settings:
    return Settings(
      attacks=[attack],
      radii=radii_of(self.threats),
      targeted=False,
      key=self.key,
      batch_size=self.size,
      output_dir=place,
      class_names=None,
      model_id=model_id,
      save_images=False,
      pictures=0,
    )

  def _tick(self, text: str) -> Tick:
    return lambda label, count: self.progress(text, count)


def defended_health(
  judged: Partial,
  attacked: Partial,
  data: tuple[np.ndarray, np.ndarray],
  *,
  threat: Threat,
  key: jax.Array,
  directory: Path | None,
) -> list[HealthCheck]:
  """Checks a defended model on the first images that it classifies correctly.

  Args:
    judged: the defended model.
    attacked: the same with the gradients that the adaptive attack follows.
    data: images float32 (N, H, W, C) and labels (N,).
    threat: the radius at which steps and radius are compared.
    key: one PRNG key.
    directory: where they are kept; None for nowhere.

  Returns:
    The checks that look at the model; what was kept, where it is of the same model and settings.
  """
  records = Records(
    None if directory is None else directory / FILE,
    {'seed': seed_of(key), 'sample': SAMPLE},
    model=pin(attacked),
    replace=True,
  )
  # The sample grows with --limit, until there are enough of them; radii may come later.
  first = weights_hash(tuple(one[: 2 * SAMPLE] for one in data)) or ''
  case = f'{threat.norm} {threat.eps:.9g} {first[:16]}'
  kept = records.rows(case)
  if kept and weights_hash(attacked) is not None:  # else any function would pass for this one
    return [HealthCheck(**kept[number]) for number in sorted(kept)]
  checks = check_model_health(attacked, _sample(judged, data, key), threat)
  rows = [dataclasses.asdict(check) for check in checks]
  records.add(case, range(len(rows)), {name: [row[name] for row in rows] for name in rows[0]})
  return checks


def _sample(judged: Partial, data: tuple[np.ndarray, np.ndarray], key: jax.Array):
  size = min(SAMPLE, len(data[0]))  # fewer images are not filled up
  rows = SampleRows(size)
  for at in batch_rows(min(len(data[0]), 2 * SAMPLE), size):  # the shape that is probed
    real = np.unique(at)
    (chunk,) = chunks(data[0][real], data[1][real], None, real)
    found = judge(judged, data[0][at], data[1][at], keys_of(key, at)).predicted
    rows.add(chunk, found[: len(real)] == chunk.labels)
  return rows.sample(key)
