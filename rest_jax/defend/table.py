"""The table of an evaluation of defences: rows made of records, their flags, and what they say.

Rows as Markdown and CSV; sentences that are made of the figures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rest_jax.attacks.health import HealthCheck
from rest_jax.attacks.record import Record, RunName, at_radius
from rest_jax.evaluation import document
from rest_jax.evaluation.document import markdown_table
from rest_jax.evaluation.intervals import Interval, accuracy_interval, mcnemar
from rest_jax.inputs import Norm
from rest_jax.text import markdown as as_text
from rest_jax.text import percent as in_percent
from rest_jax.text import plural, radius_text

SHARES = ('clean_undefended', 'clean', 'non_adaptive', 'adaptive', 'worst')
FLAG = '⚠'
_TITLES = {
  'fgsm': 'FGSM',
  'pgd': 'PGD',
  'mi_fgsm': 'MI-FGSM',
  'apgd_ce': 'APGD (cross-entropy)',
  'apgd_dlr': 'APGD (DLR)',
  'apgd_t': 'APGD-T',
  'fab': 'FAB',
  'fab_t': 'FAB-T',
  'cw': 'Carlini-Wagner',
  'deepfool': 'DeepFool',
  'square': 'Square',
  'auto_attack': 'AutoAttack',
}
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
    withstood: the images that `worst` counts.
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
  withstood: frozenset[int] = dataclasses.field(default=frozenset(), compare=False, repr=False)

  def to_json(self) -> dict[str, Any]:
    """JSON values; a share is an object of value, low and high."""
    values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    del values['withstood']
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
    withstood=frozenset(i for i, kept in worst.items() if kept),
  )


def of_all_attacks(rows: Sequence[DefenceRow]) -> list[DefenceRow]:
  """A row for each defence and radius: an attacker has all the attacks, image by image.

  Args:
    rows: of an evaluation.
  """
  found: dict[tuple[str, str, float], list[DefenceRow]] = {}
  for row in rows:
    found.setdefault((row.defence, row.norm, row.eps), []).append(row)
  return [_joined(several, found[UNDEFENDED, *key[1:]]) for key, several in found.items()]


def _joined(rows: Sequence[DefenceRow], undefended: Sequence[DefenceRow]) -> DefenceRow:
  if len(rows) == 1:
    return rows[0]
  kept, base = (
    frozenset.intersection(*(row.withstood for row in some)) for some in (rows, undefended)
  )
  return dataclasses.replace(
    rows[0],
    attack=f'all {len(rows)} attacks',
    worst=accuracy_interval(len(kept), rows[0].images),
    gain=(len(kept) - len(base)) / max(rows[0].images, 1),
    gain_p=mcnemar(len(kept - base), len(base - kept), two_sided=True),
    masked_gradients=any(row.masked_gradients for row in rows),
    withstood=kept,
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


def title_of(attack: str) -> str:
  """An attack's name as its paper writes it; labels of your own stay."""
  return _TITLES.get(attack, attack)


def best_rows(rows: Sequence[DefenceRow], value: str) -> list[DefenceRow]:
  """The defended rows with the highest share of a kind, as far as it is printed."""
  shown = {
    i: round(100 * share.value, 1)
    for i, row in enumerate(rows)
    if row.defence != UNDEFENDED and (share := getattr(row, value)) is not None
  }
  top = max(shown.values(), default=None)
  return [rows[i] for i, number in shown.items() if number == top]


def markdown(rows: Sequence[DefenceRow], confidence: float) -> str:
  """The table, a block for each attack and radius; best defence in bold, flags explained.

  Args:
    rows: of an evaluation.
    confidence: of the intervals.
  """
  names = ['attack', 'radius', 'defence', 'clean %', 'non-adaptive %', 'adaptive %', 'worst %']
  names += [f'{100 * confidence:g}% interval', 'gain', '']
  lines = []
  for block in blocks(rows):
    best = {kind: best_rows(block, kind) for kind in SHARES}
    for row in block:
      cells = [as_text(row.attack), f'{row.norm} {radius_text(row.eps)}', as_text(row.defence)]
      for kind in ('clean', 'non_adaptive', 'adaptive', 'worst'):
        cells.append(_percent(getattr(row, kind), row in best[kind]))
      cells += [interval(row), gain(row)]
      lines.append([*cells, FLAG if row.masked_gradients else ''])
  return '\n'.join([markdown_table(names, lines), '', *_flags(rows)]) + '\n'


def blocks(rows: Sequence[DefenceRow]) -> list[list[DefenceRow]]:
  """The rows of each attack and radius, in the order in which they come."""
  found: dict[tuple[str, str, float], list[DefenceRow]] = {}
  for row in rows:
    found.setdefault((row.attack, row.norm, row.eps), []).append(row)
  return list(found.values())


def interval(row: DefenceRow) -> str:
  """Of the worst of both, in percent."""
  return f'{in_percent(row.worst.low, 1)} to {in_percent(row.worst.high, 1)}'


def gain(row: DefenceRow) -> str:
  """Points that the defence adds in the worst case, with a star where chance hardly explains it."""
  if row.gain_p is None:
    return '–'
  return f'{100 * row.gain:+.1f}' + ('*' if row.gain_p < 0.05 else '')


def _percent(share: Interval | None, bold: bool) -> str:
  if share is None:
    return '–'
  text = in_percent(share.value, 1)
  return f'**{text}**' if bold else text


def _flags(rows: Sequence[DefenceRow]) -> list[str]:
  lines = []
  for row in rows:
    if row.masked_gradients:
      place = f'{as_text(row.defence)} under {as_text(row.attack)}'
      where = f'{row.norm} {radius_text(row.eps)}'
      lines.append(
        f'- {FLAG} {place}, {where}: signs of masked gradients. {"; ".join(row.reasons)}.'
      )
  return lines


def to_csv(rows: Sequence[DefenceRow]) -> str:
  """A line a row; shares unscaled with their bounds, empty where they were not measured."""
  plain = ('defence', 'attack', 'norm', 'eps', 'images')
  shares = [f'{kind}{end}' for kind in SHARES for end in ('', '_low', '_high')]
  head = [*plain, *shares, 'gain', 'gain_p', 'masked_gradients', 'reasons', 'raised']
  return document.to_csv(head, [_csv_row(row, plain) for row in rows])


def _csv_row(row: DefenceRow, plain: Sequence[str]) -> list[Any]:
  """The values of a line."""
  values = [getattr(row, name) for name in plain]
  for kind in SHARES:
    values += getattr(row, kind) or (None, None, None)
  flags = (row.masked_gradients, '; '.join(row.reasons), ' '.join(row.raised))
  return [*values, row.gain, row.gain_p, *flags]


def percent(share: float) -> str:
  """A share as a whole percentage, with a digit where it is small."""
  value = 100 * share
  return in_percent(share, 0 if value >= 10 or value == round(value) else 1, ' %')


def verdict(rows: Sequence[DefenceRow]) -> str:
  """The message in a sentence or two.

  Args:
    rows: of an evaluation.
  """
  defended = [row for row in rows if row.defence != UNDEFENDED]
  if not defended:
    return 'No defence was evaluated; the figures are those of the model by itself.'
  if all(row.adaptive is None for row in defended):
    return (
      'The attacks did not know of the defences, so these figures say little: an attacker who '
      'knows a defence can do better. Run it again with `--adaptive`.'
    )
  defended = [row for row in of_all_attacks(rows) if row.defence != UNDEFENDED]
  trusted = [row for row in defended if not row.masked_gradients]
  helped = [row for row in trusted if row.gain > 0 and (row.gain_p or 0.0) < LEVEL]
  if not helped:
    return (
      'No defence makes the model significantly more robust against an attacker who knows it '
      f'({plural(defended[0].images, "image")}).'
    )
  best = max(helped, key=lambda row: (row.gain, row.worst.value))
  names = len({row.defence for row in helped})
  return (
    f'{names} of {len({row.defence for row in defended})} defences make the model significantly '
    f'more robust against an attacker who knows them. The most that one adds is '
    f'{100 * best.gain:.0f} points ({_place(best)}): {percent(best.worst.value)} withstand the '
    f'attack, where {percent(best.clean.value)} are right without one.'
  )


def findings(rows: Sequence[DefenceRow]) -> list[str]:
  """Sentences about each attack and radius, the price on clean images, and flags.

  Args:
    rows: of an evaluation.
  """
  found = [_about(block) for block in blocks(rows)]
  defended = [row for row in rows if row.defence != UNDEFENDED]
  if defended:
    found.append(_price(defended))
  if rows and all(row.attack != 'auto_attack' for row in rows):
    found.append(
      'These figures are upper bounds: stronger attacks may find more. The one to quote is that of '
      'AutoAttack (`--attack auto_attack`), which was not run.'
    )
  flagged = list(dict.fromkeys(row.defence for row in rows if row.masked_gradients))
  if flagged:
    found.append(
      f'Signs of masked gradients: {", ".join(flagged)}. There the attack may have failed instead '
      'of the defence having held; more attacks have to be tried first.'
    )
  return found


def _about(block: Sequence[DefenceRow]) -> str:
  plain = next(row for row in block if row.defence == UNDEFENDED)
  others = [row for row in block if row.defence != UNDEFENDED]
  text = (
    f'{title_of(plain.attack)} within {radius_text(plain.eps)} ({plain.norm}): undefended, '
    f'the model stays right on {percent(plain.worst.value)} of the images.'
  )
  if not others:
    return text
  best = max(others, key=lambda row: row.non_adaptive.value)
  text += (
    f' Against an attacker who does not know of them, {best.defence} is the best defence with '
    f'{percent(best.non_adaptive.value)}'
  )
  aware = [row for row in others if row.adaptive is not None]
  if not aware:
    return text + '.'
  top = max(aware, key=lambda row: row.worst.value)
  if top.worst.value == 0:
    return text + '; once the attacker knows, none is left behind any of them.'
  if top is best:
    return text + f'; once the attacker knows, it is still the best, with {_kept(best)}.'
  return text + (
    f', and has {_kept(best)} once the attacker knows; then {top.defence} is the best with '
    f'{_kept(top)}.'
  )


def _kept(row: DefenceRow) -> str:
  return percent(row.worst.value)


def _price(defended: Sequence[DefenceRow]) -> str:
  """What the defences cost where nobody attacks."""
  clean = {row.defence: row.clean.value for row in defended}
  dear, cheap = min(clean, key=lambda n: clean[n]), max(clean, key=lambda n: clean[n])
  start = f'Without an attack {percent(defended[0].clean_undefended.value)} are right undefended'
  if len(clean) == 1:
    return f'{start}, {percent(clean[dear])} behind {dear}.'
  if percent(clean[dear]) == percent(clean[cheap]):
    return f'{start}, {percent(clean[dear])} behind every defence.'
  ends = f'{percent(clean[dear])} ({dear}) to {percent(clean[cheap])} ({cheap})'
  return f'{start}, from {ends} behind the defences.'


def _place(row: DefenceRow) -> str:
  return f'{row.defence}, {title_of(row.attack)} within {radius_text(row.eps)} in {row.norm}'
