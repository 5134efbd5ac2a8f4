"""Tables alone, as Markdown and CSV; documents are tested where they are written."""

import csv
import io
import math

from rest_jax.evaluation.document import Cell, Table, markdown_table, to_csv, to_markdown


def test_a_table_in_markdown(tmp_path):
  rows = [['a|b', '1'], ['**c**', r'2 \| 3']]
  lines = markdown_table(['name', 'value'], rows).split('\n')
  assert lines == ['| name | value |', '|---|---|', r'| a\|b | 1 |', r'| **c** | 2 \| 3 |']
  table = Table('Caption.', ['name', 'value'], [[Cell('x|y', 'best'), Cell('1', 'worst')]])
  assert to_markdown('T', [table], tmp_path).endswith(
    'Caption.\n\n| name | value |\n|---|---:|\n| **x\\|y** | *1* |\n'
  )


def test_a_table_as_csv():
  values = ['=SUM(A1)', 'a, "b"', 0.1, 3, True, None, math.nan, 'line\nbreak']
  text = to_csv(list('abcdefgh'), [values])
  head, row = csv.reader(io.StringIO(text))
  assert head == list('abcdefgh')
  assert row == ["'=SUM(A1)", 'a, "b"', '0.1', '3', '1', '', '', 'line\\nbreak']
