"""The code of the guides is executed, from top to bottom."""

import importlib.util
import re
from pathlib import Path

import jax
import pytest

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
