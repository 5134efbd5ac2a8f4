"""Health checks: signs that an evaluation says more about the attack than about the model.

After Carlini et al., "On evaluating adversarial robustness" (2019), Croce & Hein, "Reliable
evaluation of adversarial robustness" (2020), and Pintor et al., "Indicators of attack failure"
(2022). A raised check does not prove the evaluation wrong, nor does silence prove it right.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from jax.tree_util import Partial

from rest_jax.attacks import health_probe as probe
from rest_jax.attacks.health_list import (
  BATCH_CHANGE,
  BLACK_BOX_GAIN,
  CHECKS,
  HELD_AT_GREY,
  LOSS_RISE,
  RANDOM_CHANGE,
  SOFTMAX_SLACK,
)
from rest_jax.attacks.queries import fold_each, is_random
from rest_jax.attacks.results import Record, RunName
from rest_jax.attacks.summary import at_radius
from rest_jax.attacks.threat import Threat
from rest_jax.text import plural, radius_text


@dataclasses.dataclass(frozen=True)
class HealthCheck:
  """One check of an evaluation.

  Attributes:
    name: one of `CHECKS`.
    raised: whether something looks wrong.
    evidence: what was measured.
    raised_if: the condition.
    what_to_do: what helps.
  """

  name: str
  raised: bool
  evidence: str
  raised_if: str
  what_to_do: str


def _check(name: str, raised: bool, evidence: str) -> HealthCheck:
  return HealthCheck(name, bool(raised), evidence, *CHECKS[name])


def check_model_health(model: Partial, sample: probe.Sample, threat: Threat) -> list[HealthCheck]:
  """Probes a model: some evaluations, and short attacks of 1, 20 and 50 steps.

  Args:
    model: images to logits.
    sample: images to probe with.
    threat: the radius at which steps and radius are compared.

  Returns:
    One check each of what can be said from the model alone.
  """
  return [*_check_outputs(model, sample), *_check_gradients(model, sample, threat)]


def _check_outputs(model: Partial, sample: probe.Sample) -> list[HealthCheck]:
  images, keys, real = sample.images, sample.keys, sample.real
  other = fold_each(keys, 1)
  first = np.asarray(probe.logits_once(model, images, keys))
  again = np.asarray(probe.logits_once(model, images, other))
  anew = np.asarray(probe.logits_traced_anew(model, images, keys))
  outputs = first[real]
  sums = outputs.sum(axis=1)
  softmax = (outputs.min() >= -SOFTMAX_SLACK and outputs.max() <= 1 + SOFTMAX_SLACK) and np.abs(
    sums - 1
  ).max() <= SOFTMAX_SLACK
  spread = f'outputs from {outputs.min():.4g} to {outputs.max():.4g}, sums from {sums.min():.6g} '
  change = max(probe.relative_change(first[real], x[real]) for x in (again, anew))
  company = probe.change_with_company(model, images, keys, first, real)
  # Where the same batch does not give the same, another tells nothing.
  random = change > RANDOM_CHANGE
  takes = ' with another key' if is_random(model) else ''
  return [
    _check('softmax_output', softmax, spread + f'to {sums.max():.6g}'),
    _check('random_output', random, f'relative change of logits{takes} {change:.3g}'),
    _check(
      'batch_dependence',
      company > BATCH_CHANGE and not random,
      'not to be told from chance' if random else f'relative change of logits {company:.3g}',
    ),
  ]


def _check_gradients(model: Partial, sample: probe.Sample, threat: Threat) -> list[HealthCheck]:
  few = probe.short_attack(model, sample, threat.norm, threat.eps, probe.FEW_STEPS)
  checks = [
    _check('zero_gradients', few.flat > 0, f'{few.flat:.2%} of the images'),
    _check('nan_gradients', few.broken > 0, f'{few.broken:.2%} of the images'),
  ]
  if not few.count:
    none = 'no image is classified correctly'
    names = ('steps_do_not_help', 'radius_does_not_help', 'survives_grey_radius')
    return checks + [_check(name, False, none) for name in names]
  return checks + _check_progress(model, sample, threat, few) + [_check_grey(model, sample)]


def _check_progress(
  model: Partial, sample: probe.Sample, threat: Threat, few: probe.Held
) -> list[HealthCheck]:
  """More steps, and a larger radius, must lead somewhere."""
  names = ('steps_do_not_help', 'radius_does_not_help')
  if threat.eps == 0:
    return [_check(name, False, 'radius 0') for name in names]
  norm, eps = threat.norm, threat.eps
  many = probe.short_attack(model, sample, norm, eps, probe.MANY_STEPS)
  wide = probe.short_attack(model, sample, norm, 2 * eps, probe.MANY_STEPS, start=eps)
  steps = f'{probe.FEW_STEPS} and {probe.MANY_STEPS} steps'
  radii = f'radius {radius_text(eps)} and {radius_text(2 * eps)}'
  return [
    _check(names[0], _no_gain(few, many), _compared(steps, few, many)),
    _check(names[1], _no_gain(many, wide), _compared(radii, many, wide)),
  ]


def _no_gain(weak: probe.Held, strong: probe.Held) -> bool:
  falls = strong.accuracy < weak.accuracy
  rises = strong.loss > weak.loss + LOSS_RISE * abs(weak.loss)
  return strong.accuracy > 0 and not (falls or rises)


def _compared(what: str, weak: probe.Held, strong: probe.Held) -> str:
  return (
    f'{what}: robust accuracy {weak.accuracy:.2%} and {strong.accuracy:.2%}, '
    f'mean margin {weak.loss:.4g} and {strong.loss:.4g}, '
    f'{plural(weak.count, "image")}'
  )


def _check_grey(model: Partial, sample: probe.Sample) -> HealthCheck:
  held = probe.short_attack(model, sample, 'linf', probe.GREY_RADIUS, probe.GREY_STEPS)
  evidence = f'robust accuracy {held.accuracy:.2%} of {plural(held.count, "image")}'
  return _check('survives_grey_radius', held.accuracy > HELD_AT_GREY, evidence)


def check_results_health(
  records: Mapping[RunName, Mapping[int, Record]], black_box: Collection[str]
) -> list[HealthCheck]:
  """Checks what the attacks found.

  Args:
    records: by run and image index.
    black_box: labels of the attacks that use no gradient of the model.

  Returns:
    One check each of what can be said from the results.
  """
  found = [record for run in records.values() for record in run.values()]
  fooled = [record for record in found if record.success and record.correct]
  lost = [record for record in fooled if not record.confirmed]
  outside = [record for record in found if not record.inside]
  attacked = [record for record in found if record.correct]
  undefined = [record for record in attacked if record.adversarial < 0 and record.inside]
  return [
    _check_black_box(records, black_box),
    _check('undefined_logits', bool(undefined), _counted(undefined, len(attacked), 'image')),
    _check('out_of_bounds', bool(outside), _counted(outside, len(found), 'image')),
    _check('unconfirmed_success', bool(lost), _counted(lost, len(fooled), 'success')),
  ]


def _counted(bad: Sequence[Record], count: int, what: str) -> str:
  text = f'{len(bad)} of {plural(count, what)}'
  if not bad:
    return text
  one = bad[0]
  return (
    f'{text}, {len(bad) / count:.2%}'
    + f', such as image {one.index} of {one.attack}, {one.norm} {one.distance:.6g} away'
  )


def _check_black_box(
  records: Mapping[RunName, Mapping[int, Record]], black_box: Collection[str]
) -> HealthCheck:
  gains = {}
  for norm, eps in sorted({(n.norm, n.eps) for n in records if n.eps is not None}):
    at = {
      n.attack: at_radius(found, n, eps)
      for n, found in records.items()
      if n.norm == norm and n.eps in (None, eps)
    }
    white = [found for attack, found in at.items() if attack not in black_box]
    black = [found for attack, found in at.items() if attack in black_box]
    if white and black:
      gains[f'{norm} {radius_text(eps)}'] = _gain(white, black)
  if not gains:
    return _check('black_box_wins', False, 'not both kinds of attack at one radius')
  where = max(gains, key=lambda name: gains[name])
  evidence = f'{gains[where]:.2%} of the images at {where}'
  return _check('black_box_wins', gains[where] > BLACK_BOX_GAIN, evidence)


def _gain(white: Sequence[Mapping[int, Record]], black: Sequence[Mapping[int, Record]]) -> float:
  """Share of images that only the black-box attacks fooled."""
  common = set.intersection(*(set(found) for found in (*white, *black)))
  only = sum(
    all(found[i].robust for found in white) and any(found[i].success for found in black)
    for i in common
  )
  return only / max(len(common), 1)


def markdown(checks: Sequence[HealthCheck]) -> str:
  """The checks as a Markdown list, the raised ones with what to do."""
  lines = []
  for check in checks:
    mark = '**raised**' if check.raised else 'quiet'
    lines.append(f'- {check.name}: {mark}; {check.evidence}')
    if check.raised:
      lines.append(f'  Raised if {check.raised_if}. What to do: {check.what_to_do}.')
  return ''.join(line + '\n' for line in lines)
