"""The table of an evaluation of defences as Markdown and CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence

from rest_jax.defend.rows import UNDEFENDED, DefenceRow
from rest_jax.evaluation.intervals import Interval
from rest_jax.text import csv_text, radius_text
from rest_jax.text import markdown as as_text

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
  names += [f'{confidence:.0%} interval', 'gain', '']
  lines = ['| ' + ' | '.join(names) + ' |', '|---' * len(names) + '|']
  for block in blocks(rows):
    best = {kind: best_rows(block, kind) for kind in SHARES}
    for row in block:
      cells = [as_text(row.attack), f'{row.norm} {radius_text(row.eps)}', as_text(row.defence)]
      for kind in ('clean', 'non_adaptive', 'adaptive', 'worst'):
        cells.append(_percent(getattr(row, kind), row in best[kind]))
      cells += [f'{100 * row.worst.low:.1f} to {100 * row.worst.high:.1f}', gain(row)]
      lines.append('| ' + ' | '.join([*cells, FLAG if row.masked_gradients else '']) + ' |')
  return '\n'.join([*lines, '', *_flags(rows)]) + '\n'


def blocks(rows: Sequence[DefenceRow]) -> list[list[DefenceRow]]:
  """The rows of each attack and radius, in the order in which they come."""
  found: dict[tuple[str, str, float], list[DefenceRow]] = {}
  for row in rows:
    found.setdefault((row.attack, row.norm, row.eps), []).append(row)
  return list(found.values())


def gain(row: DefenceRow) -> str:
  """Points that the defence adds in the worst case, with a star where chance hardly explains it."""
  if row.gain_p is None:
    return '–'
  return f'{100 * row.gain:+.1f}' + ('*' if row.gain_p < 0.05 else '')


def _percent(share: Interval | None, bold: bool) -> str:
  if share is None:
    return '–'
  text = f'{100 * share.value:.1f}'
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
  file = io.StringIO()
  writer = csv.writer(file, lineterminator='\n')
  heads = [f'{kind}{end}' for kind in SHARES for end in ('', '_low', '_high')]
  plain = ('defence', 'attack', 'norm', 'eps', 'images')
  ends = ('gain', 'gain_p', 'masked_gradients', 'reasons', 'raised')
  writer.writerow([*plain, *heads, *ends])
  for row in rows:
    values = dataclasses.asdict(row)
    values |= {name: csv_text(values[name]) for name in ('defence', 'attack', 'norm')}
    shares = [n for kind in SHARES for n in (values[kind] or ('', '', ''))]
    flags = [int(row.masked_gradients), '; '.join(row.reasons), ' '.join(row.raised)]
    p = '' if row.gain_p is None else row.gain_p
    writer.writerow([*(values[name] for name in plain), *shares, row.gain, p, *flags])
  return file.getvalue()
