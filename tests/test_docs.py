"""The code of the guides is executed, from top to bottom."""

import importlib.util
import re
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import pytest

pytestmark = pytest.mark.usefixtures('alone')
DOCS = Path(__file__).parents[1] / 'docs'
_BLOCK = re.compile(r'(?:<!-- needs: (\w+) -->\n)?```python\n(.*?)```', re.S)


def blocks(name):
  """(package that it needs or None, code, line) of each block of Python on a page."""
  text = (DOCS / name).read_text(encoding='utf-8')
  for match in _BLOCK.finditer(text):
    yield match[1], match[2], text[: match.start(2)].count('\n')


def execute(name, changes=()):
  """Runs the blocks of a page in one namespace; lines of a traceback are those of the page."""
  space = {'__name__': '__main__'}
  for needed, code, line in blocks(name):
    if needed is not None and importlib.util.find_spec(needed) is None:
      continue
    for old, new in changes:
      code = code.replace(old, new)
    # As in a reader's session, whose arrays are promoted.
    with jax.numpy_dtype_promotion('standard'), jax.numpy_rank_promotion('allow'):
      exec(compile('\n' * line + code, str(DOCS / name), 'exec'), space)
  return space


def test_your_own_model():
  # Of AutoAttack one attack a model: the four are tested elsewhere.
  space = execute('your_own_model.md', [('MEMBERS = None', "MEMBERS = ('apgd_ce',)")])
  assert space['value'] > 0


def calls_of_five():
  text = (DOCS / 'your_own_model.md').read_text(encoding='utf-8')
  return re.findall(r'^five\(.*\)$', text, re.M)


def test_each_model_takes_one_line():
  assert len(calls_of_five()) == 6
  code = max((code for _, code, _ in blocks('your_own_model.md')), key=lambda c: 'def step' in c)
  assert code.count('\n') < 25
  step = code[code.index('@jax.jit') :]
  assert sum(bool(line.strip()) for line in step.splitlines()) < 20


@pytest.mark.parametrize('name', ['your_own_model.md'])
def test_code_is_as_narrow_as_ours(name):
  for _, code, line in blocks(name):
    assert all(len(text) <= 100 for text in code.splitlines()), (name, line)


def test_the_site_is_built_without_a_warning(tmp_path):
  """Guides, the reference from the docstrings, and every link between them."""
  for name in ('sphinx', 'furo', 'myst_parser'):
    pytest.importorskip(name)
  command = [sys.executable, '-m', 'sphinx', '-q', '-W', '--keep-going', '-b', 'html']
  # A process of its own: Sphinx imports all there is.
  done = subprocess.run([*command, DOCS, tmp_path], text=True, capture_output=True)
  assert done.returncode == 0, done.stderr
  pages = {path.name: path.read_text(encoding='utf-8') for path in tmp_path.glob('**/*.html')}
  assert 'rest_jax.attacks.pgd' in pages['attacks.html'] and 'search.html' in pages
  for path in tmp_path.glob('**/*.html'):
    for link in re.findall(r'(?:href|src)="([^"#?]+)', path.read_text(encoding='utf-8')):
      if not re.match(r'[a-z]+:', link):
        assert (path.parent / link).exists(), (path.name, link)


def test_links_of_the_readme():
  root = DOCS.parent
  text = (root / 'README.md').read_text(encoding='utf-8')
  for link in re.findall(r'\]\(([^)#]+)', text):
    if not link.startswith('https:'):
      assert (root / link).exists(), link
  pictures = re.findall(r'!\[[^\]]*\]\(([^)]+)\)', text)
  assert pictures and all(link.startswith('https://') for link in pictures)
  assert all((DOCS / link.rsplit('/', 1)[1]).exists() for link in pictures if '/docs/' in link)


def test_photographs_are_shown_with_their_authors():
  """CC BY: author, page and licence stand below the figure, as the script that draws it says."""
  script = runpy.run_path(str(DOCS.parent / 'scripts' / 'photographs_figure.py'))
  licence = 'https://creativecommons.org/licenses/by/2.0/'
  shown = (
    ('Paul Reynolds', 'https://www.flickr.com/photos/bigtallguy/29072932140'),
    (
      r'Ag\303\252ncia Bras\303\255lia',
      'https://www.flickr.com/photos/agenciabrasilia/28628001341',
    ),
    ('Gordon Watt', 'http://www.flickr.com/16915761@N08/27918206525'),
  )
  rows = [{'author': a, 'landing_page': page, 'licence': licence} for a, page in shown]
  credits = re.findall(r'\[.*?\]\(.*?\)', script['caption'](rows))
  assert len(credits) == 4 and credits[1].startswith('[Agência Brasília](https://')
  for page in (DOCS.parent / 'README.md', DOCS / 'index.md'):
    text = ' '.join(page.read_text(encoding='utf-8').split())
    assert all(credit in text for credit in credits)
