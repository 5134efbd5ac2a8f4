"""What an error says about a word that is not known, and how scripts end."""

import subprocess
import sys

import pytest

from rest_jax.errors import as_line, did_you_mean

KNOWN = ('stage1', 'stage2', 'head')


def test_the_nearest_words_come_first():
  assert did_you_mean('stge2', KNOWN) == 'did you mean stage2 or stage1?'
  assert did_you_mean('stge2', iter(KNOWN), count=1) == 'did you mean stage2?'
  assert did_you_mean('heda', KNOWN, shown='--{}'.format) == 'did you mean --head?'


def test_where_nothing_is_near_the_rest_is_offered():
  assert did_you_mean('xyz', KNOWN) == 'did you mean stage1 or stage2 or head?'
  assert did_you_mean('xyz', KNOWN, ['neck']) == 'did you mean neck?'
  assert did_you_mean('xyz', KNOWN, 'see --help') == 'see --help'
  assert did_you_mean('hxyz', KNOWN, cutoff=0.2).startswith('did you mean head')
  assert did_you_mean(3, KNOWN, 'take one') == 'take one'


def test_an_error_is_one_line_that_steers_no_terminal():
  assert as_line('a\n  b \x1b[2J caf\udce9') == 'a b \\x1b[2J caf\\xe9'


SCRIPT = """
from rest_jax.errors import UserError, run_script
def main():
  {body}
run_script(main)
"""
LONG = "print('x' * 100_000)"


@pytest.mark.parametrize(
  ('body', 'shell', 'status', 'said'),
  [
    (LONG, '| head -c 1 > /dev/null; exit ${PIPESTATUS[0]}', 141, ''),
    (LONG, '> /dev/full', 2, 'error: cannot write the output: No space left on device'),
    ("print('x')", '> /dev/full', 2, 'error: cannot write the output: No space left on device'),
    ("raise UserError('bad\\nline')", '', 2, 'error: bad line\n'),
    ("print('\\u72d7 caf\\udce9')", '> /dev/null', 0, ''),
    ("raise OSError(5, 'of ours')", '', 1, 'Traceback'),
  ],
)
def test_how_scripts_end(body, shell, status, said):
  """Nobody reads, nothing can be written, bad input, letters that the terminal lacks."""
  command = f'"$0" -c "$1" {shell}'
  done = subprocess.run(
    ['bash', '-c', command, sys.executable, SCRIPT.format(body=body)],
    capture_output=True,
    text=True,
    env={'PYTHONIOENCODING': 'ascii'},
    timeout=60,
  )
  assert done.returncode == status, done.stderr
  assert done.stderr.startswith(said) and (said == 'Traceback' or done.stderr.count('\n') <= 1)
