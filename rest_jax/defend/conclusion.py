"""What the figures of an evaluation say, in sentences made from them."""

from __future__ import annotations

from collections.abc import Sequence

from rest_jax.defend.evaluation_table import blocks, radius_text, title_of
from rest_jax.defend.rows import LEVEL, UNDEFENDED, DefenceRow
from rest_jax.text import plural


def percent(share: float) -> str:
  """A share as a whole percentage, with a digit where it is small."""
  value = 100 * share
  return f'{value:.0f} %' if value >= 10 or value == round(value) else f'{value:.1f} %'


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
    f', of which {_kept(best)} remain once the attacker knows; then {top.defence} is the best '
    f'with {_kept(top)}.'
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
