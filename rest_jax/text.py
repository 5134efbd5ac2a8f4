"""Text of others (names of files, classes, models) in terminals, Markdown, HTML, CSV.

What somebody else called a thing may hold anything: line breaks, bytes that are no text, the marks
of the language that it is written into. Each function here gives what reads as the name and as
nothing else. For figures there is `rest_jax.evaluation.figures.literal`.
"""

from __future__ import annotations

import collections
import math
import re
import unicodedata
from collections.abc import Sequence

_SAME = 1e-7  # relative; a radius that went through float32 is written alike
_WHOLE = 5e-7  # what rounds to all in float32 is that near to it; one of ImageNet's images is more
_FORMULA = ('=', '+', '-', '@', '\t', '\r', '\n')
_PUNCTUATION = re.compile(r'\\([!-/:-@\[-`{-~])')


def escaped(char: str) -> str:
  r"""A character as an escape in ASCII: '\n', '\u72d7', '\xff' for a byte that is no UTF-8."""
  code = ord(char)
  return f'\\x{code - 0xDC00:02x}' if 0xDC80 <= code <= 0xDCFF else ascii(char)[1:-1]


def legible(text: object) -> str:
  """One line that any terminal and any UTF-8 file takes: what cannot be printed is escaped.

  Args:
    text: anything; bytes of a file name that are no UTF-8 stand in it as lone surrogates, as
      `os.fsdecode` makes them.
  """
  return ''.join(map(_printable, str(text)))


def _printable(char: str) -> str:
  if char.isprintable():
    return char
  return ' ' if unicodedata.category(char) == 'Zs' else escaped(char)


def shortened(text: str, most: int) -> str:
  """At most `most` characters: the middle of a longer text gives way to '…'."""
  if len(text) <= most:
    return text
  end = most // 3
  return f'{text[: most - 1 - end]}…{text[len(text) - end :]}'


def distinct(names: Sequence[str]) -> list[str]:
  """Names as keys, one each: those that stand twice, as ImageNet's 'crane' does, get a number.

  Args:
    names: in order; the number is the place there, from 0.
  """
  count, used, keys = collections.Counter(names), set(names), []
  for number, name in enumerate(names):
    key = name
    while count[name] > 1 and key in used:  # another one may be called as this would be
      key = f'{key} ({number})'
    used.add(key)
    keys.append(key)
  return keys


def plural(count: int, word: str, words: str | None = None) -> str:
  """'1 image', '2 images'; `words` where the plural does not end as English words do."""
  if count == 1:
    return f'{count} {word}'
  ending = 'es' if word.endswith(('s', 'x', 'z', 'ch', 'sh')) else 's'
  return f'{count} {words or word + ending}'


def percent(share: float, digits: int = 0, sign: str = '') -> str:
  """A share in percent: '88', '99.6'; '-' for what is no number.

  Args:
    share: 1 is all.
    digits: after the point; more where rounding would make all or nothing of what is neither, for
      100 % says that there was no mistake.
    sign: what stands behind the number.
  """
  if math.isnan(share):
    return '-'
  shown = f'{100 * share:.{digits}f}'
  if float(shown) in (0, 100) and not math.isclose(share, round(share), abs_tol=_WHOLE):
    return percent(share, digits + 1, sign)
  return shown + sign


def radius_text(value: float | None) -> str:
  """A radius as people write it: '8/255', '0.5/255', '0.25'; 'none' where there is no limit."""
  if value is None or value == math.inf:
    return 'none'
  short = f'{value:.3g}'
  if math.isclose(float(short), value, rel_tol=_SAME):
    return short
  for parts in (1, 2):
    count = round(value * 255 * parts)
    if count and math.isclose(value, count / (255 * parts), rel_tol=_SAME):
      return f'{count / parts:g}/255'
  return f'{value:.6g}'


# ---- Markdown -----------------------------------------------------------------------------------


def markdown(text: object) -> str:
  """Text that Markdown (CommonMark, GitHub's tables and formulas) shows as it is, on one line."""
  marked = re.sub(r'([\\`*\[\]|~#$])', r'\\\1', legible(text))
  marked = re.sub(r'(?<![^\W_])_|_(?![^\W_])', r'\\_', marked)  # within a word it is a character
  marked = re.sub(r'&(?=#?\w+;)', '&amp;', marked).replace('<', '&lt;').replace('>', '&gt;')
  marked = re.sub(r'^([-+=])', r'\\\1', marked)  # a list, a line under a heading
  return re.sub(r'^(\d+)([.)])', r'\1\\\2', marked)


def markdown_code(text: object) -> str:
  """Text as code in Markdown, whatever backquotes it holds; see `markdown_cell` for tables."""
  shown = legible(text)
  longest = max(map(len, re.findall('`+', shown)), default=0)
  fence = '`' * (longest + 1)
  # One space at each end belongs to the fence: needed beside a backquote, and by a space.
  space = ' ' if not shown.strip(' ') or shown[0] in ' `' or shown[-1] in ' `' else ''
  return f'{fence}{space}{shown}{space}{fence}' if shown else ''


def markdown_cell(marked: str) -> str:
  """Markdown within a table, where a bar ends the cell even in code."""
  return re.sub(r'(?<!\\)((?:\\\\)*)\|', r'\1\\|', marked)


def unmarked(marked: str) -> str:
  """The inverse of `markdown`, up to what `legible` escaped."""
  plain = _PUNCTUATION.sub(r'\1', marked)
  return plain.replace('&lt;', '<').replace('&gt;', '>').replace('&amp;', '&')


# ---- CSV ----------------------------------------------------------------------------------------


def csv_text(text: object) -> str:
  """A text for a cell of a CSV file: no spreadsheet takes it for a formula.

  Quotes and commas are the CSV writer's matter.
  """
  shown = legible(text)
  return f"'{shown}" if str(text).startswith(_FORMULA) else shown
