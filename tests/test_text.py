"""Names of others in terminals, Markdown, CSV: they read as the name and as nothing else."""

import csv
import html
import io
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest_jax import text
from rest_jax.evaluation.document import Cell, Table, Text, to_html, to_markdown

# Everything that file names and class names can hold, lone surrogates among it.
NAMES = st.text(st.characters(), max_size=30)
NASTY = st.text('ab_*`[]()<>|\\$#&;!~-+=@1. \n\t"\'', max_size=20)


@given(NAMES)
def test_legible_is_one_printable_line(name):
  shown = text.legible(name)
  assert len(shown.splitlines()) <= 1 and shown.isprintable()
  shown.encode()  # no lone surrogate is left
  assert text.legible(shown) == shown


@pytest.mark.parametrize(
  ('name', 'shown'),
  [
    ('caf\udce9', 'caf\\xe9'),
    ('a\nb\x1b[2J', 'a\\nb\\x1b[2J'),
    ('狗 🐶', '狗 🐶'),
    ('a\N{RIGHT-TO-LEFT OVERRIDE}b', 'a\\u202eb'),
    ('a\N{NO-BREAK SPACE}b', 'a b'),
  ],
)
def test_legible(name, shown):
  assert text.legible(name) == shown


@given(st.one_of(NAMES, NASTY))
def test_markdown_is_undone_by_reading_it(name):
  marked = text.markdown(name)
  assert text.unmarked(marked) == text.legible(name)
  assert '<' not in marked and '>' not in marked
  assert not re.search(r'(?<!\\)(?:\\\\)*[`*\[\]|~$]', marked)
  assert not marked.startswith(('#', '-', '+', '='))


def test_plain_names_stay_as_they_are():
  for name in ('digit_scenes', 'apgd_ce', 'R&D', 'gaussian 0.5', 'non_local@stage2', 'a.b-c'):
    assert text.markdown(name) == name


@given(st.one_of(NAMES, NASTY))
def test_code_holds_any_backquotes(name):
  marked = text.markdown_code(name)
  if not name:
    assert marked == ''
    return
  fence = marked[: len(marked) - len(marked.lstrip('`'))]
  inner = marked[len(fence) : -len(fence)]
  assert marked.endswith(fence)
  assert all(len(run) != len(fence) for run in re.findall('`+', inner))
  page = to_html('t', [Text(f'before {marked} after')])
  found = re.search(r'before <code>(.*)</code> after', page)
  assert found and html.unescape(found[1]) == text.legible(name)


@given(st.one_of(NAMES, NASTY))
def test_documents_show_names_and_nothing_else(name):
  blocks = [
    Text(text.markdown(name)),
    Table('c', ['head'], [[Cell(text.markdown(name))], [Cell(text.markdown_code(f'|{name}'))]]),
  ]
  page = to_html(name, blocks)
  shown = text.legible(name)
  for tag in ('h1', 'title', 'p', 'td'):
    inside = re.search(f'<{tag}>(.*)</{tag}>', page)
    assert inside and html.unescape(inside[1]) == shown
  assert set(re.findall('<(script|img|b|i)[ >]', page)) == set()
  lines = to_markdown(name, blocks, Path()).splitlines()
  rows = [line for line in lines if line.startswith('| ')]
  assert len(rows) == 3  # none was broken, none has another cell
  assert all(len(re.findall(r'(?<!\\)(?:\\\\)*\|', row)) == 2 for row in rows)


@pytest.mark.parametrize('start', '=+-@\t\r\n')
def test_cells_of_spreadsheets_are_no_formulas(start):
  assert text.csv_text(f'{start}1+1')[0] == "'"
  file = io.StringIO()
  csv.writer(file).writerow([text.csv_text('a"b,c\nd'), text.csv_text('cat')])
  assert next(csv.reader([file.getvalue()])) == ['a"b,c\\nd', 'cat']


def test_numbers_and_their_words():
  assert text.plural(1, 'class') == '1 class' and text.plural(2, 'class') == '2 classes'
  assert text.plural(0, 'image') == '0 images' and text.plural(2, 'batch') == '2 batches'
  assert text.plural(2, 'man', 'men') == '2 men'
  assert text.shortened('x' * 50, 10) == 'xxxxxx…xxx' and text.shortened('abc', 3) == 'abc'
  assert text.radius_text(1 / 255) == '1/255' and text.radius_text(0.5) == '0.5'


@pytest.mark.parametrize(
  'names',
  [
    ('crane', 'tench', 'crane'),
    ('crane (2)', 'tench', 'crane', 'crane'),
    ('crane', 'crane (0)', 'crane', 'crane (2)', 'crane (0)'),
  ],
)
def test_no_name_is_lost_to_another(names):
  keys = text.distinct(names)
  assert len(set(keys)) == len(names)
  assert all(key.startswith(name) for key, name in zip(keys, names, strict=True))
  assert all(key == name for key, name in zip(keys, names, strict=True) if names.count(name) == 1)


@pytest.mark.parametrize(
  ('share', 'digits', 'shown'),
  [
    *(
      (1, 0, '100'),
      (1 - 2e-16, 1, '100.0'),
      (0, 2, '0.00'),
      (0.876, 0, '88'),
      (0.876, 2, '87.60'),
    ),
    *((0.996, 0, '99.6'), (49999 / 50000, 2, '99.998'), (1 / 5000, 0, '0.02'), (-0.004, 0, '-0.4')),
    (float('nan'), 1, '-'),
  ],
)
def test_a_percentage_is_all_or_nothing_of_that_alone(share, digits, shown):
  assert text.percent(share, digits) == shown


def test_what_float32_rounds_to_all_is_all():
  """Shares of energy are sums of float32; one mistake in ImageNet's training images is none."""
  assert text.percent(float(np.float32(1) + np.finfo(np.float32).eps)) == '100'
  assert text.percent(1e-7) == '0'
  assert text.percent(1 - 1 / 1_281_167) != '100' and text.percent(1 / 1_281_167) != '0'
