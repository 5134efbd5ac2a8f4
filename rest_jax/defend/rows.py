"""The table of an evaluation of defences: from records to rows, and what a row is flagged for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rest_jax.attacks.health import HealthCheck
from rest_jax.attacks.record import Record, RunName
from rest_jax.attacks.table import at_radius
from rest_jax.attacks.threat import Norm
from rest_jax.evaluation.intervals import Interval, accuracy_interval, mcnemar

UNDEFENDED = 'undefended'
# Checks of the attacks' gradients; the others speak of the model or of single results.
GRADIENT_CHECKS = (
  'zero_gradients',
  'nan_gradients',
  'steps_do_not_help',
  'radius_does_not_help',
  'survives_grey_radius',
)
LEVEL = 0.05  # of the paired test

Records = Mapping[int, Record]


@dataclasses.dataclass(frozen=True)
class DefenceRow:
  """One defence under one attack at one radius; accuracies are shares of all images.

  Attributes:
    defence: its label, `UNDEFENDED` for the model by itself.
    attack: label of the attack.
    norm: 'linf', 'l2' or 'l1'.
    eps: radius, in units of [0, 1].
    images: number of images.
    clean_undefended: accuracy of the model by itself, no attack.
    clean: accuracy behind the defence, no attack.
    non_adaptive: behind the defence, of adversarial images made on the undefended model.
    adaptive: behind the defence, attacked through it (BPDA, EOT); None where that was not run.
    worst: of the images that withstood both; what to quote.
    gain: `worst` minus the undefended model's at the same attack and radius.
    gain_p: two-sided p-value of that gain, paired (McNemar's exact test); None for the undefended.
    masked_gradients: the adaptive attack is weaker than the non-adaptive one by more than chance
      (one-sided exact McNemar test, p under 0.05), or one of `GRADIENT_CHECKS` is raised.
    reasons: why, in words; empty where it is not.
    raised: names of all health checks that are raised for the defended model.
  """

  defence: str
  attack: str
  norm: Norm
  eps: float
  images: int
  clean_undefended: Interval
  clean: Interval
  non_adaptive: Interval
  adaptive: Interval | None
  worst: Interval
  gain: float
  gain_p: float | None
  masked_gradients: bool
  reasons: tuple[str, ...]
  raised: tuple[str, ...]

  def to_json(self) -> dict[str, Any]:
    """JSON values; a share is an object of value, low and high."""
    values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    return {k: v._asdict() if isinstance(v, Interval) else v for k, v in values.items()}


@dataclasses.dataclass(frozen=True)
class Cell:
  """The records of one defence under one attack.

  Attributes:
    non_adaptive: by run and image index.
    adaptive: likewise; None where it was not run.
  """

  non_adaptive: Mapping[RunName, Records]
  adaptive: Mapping[RunName, Records] | None


def make_row(
  defence: str,
  attack: str,
  norm: Norm,
  eps: float,
  cell: Cell,
  undefended: Cell,
  health: Sequence[HealthCheck],
  confidence: float,
) -> DefenceRow:
  """One row.

  Args:
    defence: label.
    attack: label.
    norm: of the threat.
    eps: its radius.
    cell: records of the defence.
    undefended: records of the undefended model under the same attack.
    health: checks of the defended model.
    confidence: of the intervals.
  """
  held = _held(cell.non_adaptive, norm, eps)
  adaptive = None if cell.adaptive is None else _held(cell.adaptive, norm, eps)
  worst = held if adaptive is None else {i: held[i] and adaptive[i] for i in held}
  base = _held(undefended.non_adaptive, norm, eps)
  reasons = () if adaptive is None else _masking(held, adaptive, health)

  def share(which: Mapping[int, bool]) -> Interval:
    return accuracy_interval(sum(which.values()), len(which), confidence)

  return DefenceRow(
    defence=defence,
    attack=attack,
    norm=norm,
    eps=eps,
    images=len(held),
    clean_undefended=share(_correct(undefended.non_adaptive)),
    clean=share(_correct(cell.non_adaptive)),
    non_adaptive=share(held),
    adaptive=None if adaptive is None else share(adaptive),
    worst=share(worst),
    gain=(sum(worst.values()) - sum(base.values())) / max(len(held), 1),
    gain_p=None if defence == UNDEFENDED else mcnemar(*_discordant(worst, base), two_sided=True),
    masked_gradients=bool(reasons),
    reasons=reasons,
    raised=tuple(check.name for check in health if check.raised),
  )


def _held(records: Mapping[RunName, Records], norm: Norm, eps: float) -> dict[int, bool]:
  """Whether each image is classified correctly and withstood the attack at a radius."""
  for run, found in records.items():
    if run.norm == norm and run.eps in (None, eps):
      return {index: record.robust for index, record in at_radius(found, run, eps).items()}
  raise KeyError((norm, eps))


def _correct(records: Mapping[RunName, Records]) -> dict[int, bool]:
  return {index: record.correct for index, record in next(iter(records.values())).items()}


def _discordant(first: Mapping[int, bool], second: Mapping[int, bool]) -> tuple[int, int]:
  return (
    sum(first[i] and not second[i] for i in first),
    sum(second[i] and not first[i] for i in first),
  )


def _masking(
  held: Mapping[int, bool], adaptive: Mapping[int, bool], health: Sequence[HealthCheck]
) -> tuple[str, ...]:
  reasons = []
  only_adaptive, only_transferred = _discordant(adaptive, held)
  p = mcnemar(only_adaptive, only_transferred, two_sided=False)
  if p < LEVEL:
    reasons.append(
      f'{only_adaptive} images withstand the attack through the defence and fall to one made '
      f'without it, {only_transferred} the other way round (p = {p:.2g})'
    )
  found = [check for check in health if check.raised and check.name in GRADIENT_CHECKS]
  return (*reasons, *(f'{check.name}: {check.evidence}' for check in found))
