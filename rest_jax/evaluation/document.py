"""A small document of headings, paragraphs, tables and figures, as Markdown and HTML; CSV tables.

All texts are Markdown, of which code between backquotes and escapes are understood in HTML too.
Names of others pass through `rest_jax.text.markdown` or `markdown_code` on their way in.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rest_jax.text import csv_text, legible, markdown, markdown_cell, unmarked


class Heading(NamedTuple):
  """A heading within the document."""

  text: str


class Text(NamedTuple):
  """A paragraph; `strong` ones carry the message."""

  text: str
  strong: bool = False


class Bullets(NamedTuple):
  """A list."""

  items: Sequence[str]


class Cell(NamedTuple):
  """A cell of a table: `mark` is '', 'best', 'worst', 'flag' or 'quiet'."""

  text: str
  mark: str = ''


class Table(NamedTuple):
  """A table: the first column is text, the others are numbers; the caption may be empty."""

  caption: str
  head: Sequence[str]
  rows: Sequence[Sequence[Cell]]


def plain_table(head: Sequence[str], rows: Iterable[Iterable[str]]) -> Table:
  """A table without marks or a caption."""
  return Table('', head, [[Cell(text) for text in row] for row in rows])


class Figure(NamedTuple):
  """A picture from a PNG file, and what it shows."""

  path: Path
  caption: str


Block = Heading | Text | Bullets | Table | Figure

# ---- Markdown -----------------------------------------------------------------------------------


def to_markdown(title: str, blocks: Sequence[Block], folder: Path) -> str:
  """The document as Markdown.

  Args:
    title: of the document, plain text.
    blocks: what it holds.
    folder: where it will lie; figures are linked relative to it.
  """
  return '\n'.join(
    [f'# {markdown(title)}', '', *(_markdown(block, folder) + '\n' for block in blocks)]
  )


def _markdown(block: Block, folder: Path) -> str:
  if isinstance(block, Heading):
    return f'## {block.text}'
  if isinstance(block, Text):
    return f'**{block.text}**' if block.strong else block.text
  if isinstance(block, Bullets):
    return '\n'.join(f'- {item}' for item in block.items)
  if isinstance(block, Figure):
    return f'![{block.caption}]({os.path.relpath(block.path, folder)})\n\n*{block.caption}*'
  rows = [[_marked(cell) for cell in row] for row in block.rows]
  caption = f'{block.caption}\n\n' if block.caption else ''
  return caption + markdown_table(block.head, rows, numbers=True)


def _marked(cell: Cell) -> str:
  """The text of a cell as Markdown sets it: the best bold, the worst slanted."""
  sign = {'best': '**', 'worst': '*'}.get(cell.mark, '')
  return f'{sign}{cell.text}{sign}'


def markdown_table(
  head: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = False
) -> str:
  """A table alone, without an end of line after it.

  Args:
    head: titles of the columns, Markdown.
    rows: as many cells each, Markdown.
    numbers: whether all columns but the first stand at their right side.
  """
  line = '|---' + ('|---:' if numbers else '|---') * (len(head) - 1) + '|'
  cells = ['| ' + ' | '.join(map(markdown_cell, row)) + ' |' for row in (head, *rows)]
  return '\n'.join([cells[0], line, *cells[1:]])


# ---- CSV ----------------------------------------------------------------------------------------


def to_csv(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """A table as CSV: texts that no spreadsheet takes for formulas, numbers in full, flags as 0 or 1.

  Args:
    head: names of the columns.
    rows: as many values each; None and NaN are empty cells.
  """
  file = io.StringIO()
  writer = csv.writer(file, lineterminator='\n')
  writer.writerow(head)
  writer.writerows([_csv_value(value) for value in row] for row in rows)
  return file.getvalue()


def _csv_value(value: Any) -> Any:
  if value is None or (isinstance(value, float) and math.isnan(value)):
    return ''
  if isinstance(value, str):
    return csv_text(value)
  return int(value) if isinstance(value, bool) else value


# ---- HTML ---------------------------------------------------------------------------------------

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --page: #fff; --line: #d5dae0; --soft: #57606a;
  --best: #d6ecdf; --worst: #f6dddb; --flag: #fff1c9; --lead: #eef3f8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --page: #15181c; --line: #3a424c;
  --soft: #a2acb7; --best: #1f4a33; --worst: #572a27; --flag: #544410; --lead: #1f2730; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 62rem; color: var(--ink);
  background: var(--page); font: 1rem/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0.5rem 0 1rem; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 0.6rem; border-bottom: 1px solid var(--line); }
p, ul { max-width: 46rem; }
p.strong { background: var(--lead); border-left: 4px solid #0072b2; padding: 0.7rem 1rem;
  font-size: 1.05rem; }
.wide { overflow-x: auto; margin: 0 0 1rem; }
table { border-collapse: collapse; font-size: 0.92rem; font-variant-numeric: tabular-nums; }
p.caption { color: var(--soft); font-size: 0.92rem; margin: 1.2rem 0 0.2rem; }
@media (max-width: 40rem) { th, td { padding: 0.3rem 0.4rem; } table { font-size: 0.85rem; } }
th, td { padding: 0.3rem 0.7rem; border-bottom: 1px solid var(--line); text-align: right; }
th { border-bottom-width: 2px; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; white-space: nowrap; }
td.best { background: var(--best); font-weight: 600; } td.worst { background: var(--worst); }
td.flag { background: var(--flag); } td.quiet { color: var(--soft); }
figure { margin: 1.4rem 0; } figcaption { color: var(--soft); font-size: 0.92rem;
  max-width: 46rem; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
code { font-size: 0.92em; overflow-wrap: anywhere; }
"""


def to_html(title: str, blocks: Sequence[Block]) -> str:
  """The document as one HTML file without anything outside it; figures are part of it.

  Args:
    title: of the document, plain text.
    blocks: what it holds.

  Returns:
    The page.

  Raises:
    OSError: a figure cannot be read.
  """
  body = '\n'.join(_html(block) for block in blocks)
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f'<title>{html.escape(legible(title))}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n'
    f'<h1>{html.escape(legible(title))}</h1>\n{body}\n</body>\n</html>\n'
  )


def _html(block: Block) -> str:
  if isinstance(block, Heading):
    return f'<h2>{_inline(block.text)}</h2>'
  if isinstance(block, Text):
    return f'<p{" class=strong" if block.strong else ""}>{_inline(block.text)}</p>'
  if isinstance(block, Bullets):
    return '<ul>\n' + '\n'.join(f'<li>{_inline(item)}</li>' for item in block.items) + '\n</ul>'
  if isinstance(block, Figure):
    data = base64.b64encode(block.path.read_bytes()).decode('ascii')
    words = re.sub('<[^>]*>', '', _inline(block.caption))
    image = f'<img src="data:image/png;base64,{data}" alt="{words}">'
    return f'<figure>{image}<figcaption>{_inline(block.caption)}</figcaption></figure>'
  return _html_table(block)


def _html_table(table: Table) -> str:
  head = ''.join(f'<th scope="col">{_inline(text)}</th>' for text in table.head)
  rows = ['<tr>' + ''.join(map(_html_cell, row)) + '</tr>' for row in table.rows]
  caption = f'<p class="caption">{_inline(table.caption)}</p>\n' if table.caption else ''
  return (
    f'{caption}<div class="wide"><table>'
    f'<thead><tr>{head}</tr></thead>\n<tbody>\n' + '\n'.join(rows) + '\n</tbody></table></div>'
  )


def _html_cell(cell: Cell) -> str:
  mark = f' class="{cell.mark}"' if cell.mark else ''
  return f'<td{mark}>{_inline(cell.text)}</td>'


_CODE = re.compile(r'(?<![\\`])(`+)(?!`)(.+?)(?<!`)\1(?!`)')


def _inline(text: str) -> str:
  """Markdown within a line as HTML: code, escaped characters."""
  parts, end = [], 0
  for span in _CODE.finditer(text):
    code = span[2]
    if code.strip(' ') and code[0] == code[-1] == ' ':
      code = code[1:-1]
    parts += [html.escape(unmarked(text[end : span.start()])), f'<code>{html.escape(code)}</code>']
    end = span.end()
  return ''.join(parts) + html.escape(unmarked(text[end:]))
