"""Compiled programs on disk: kept whole, found again, never at the cost of a run."""

import os
import signal
import subprocess
import sys
import textwrap

import jax
import pytest

from rest_jax import program_cache
from rest_jax.errors import UserError

# Compiles one program, and says what JAX found on disk and what it wrote.
RUN = """
import os, signal, sys
import jax
from rest_jax import program_cache

counts = {}
jax.monitoring.register_event_listener(
  lambda event, **_: counts.update({event: counts.get(event, 0) + 1}))
place, end = sys.argv[1:]
run = program_cache.use(None if place == 'default' else place)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
jax.jit(lambda x: (x @ x).sum())(jax.numpy.ones((8, 8))).block_until_ready()
print(run is not None, counts.get('/jax/compilation_cache/cache_hits', 0) > 0)
if end == 'kill':
  (run / 'torn-cache').write_bytes(b'half')
  sys.stdout.flush()
  os.kill(os.getpid(), signal.SIGKILL)
"""


def run(tmp_path, place, end='', **variables):
  """Runs the program above with a home of its own; returns its words and its status."""
  environment = {k: v for k, v in os.environ.items() if not k.startswith('JAX_')}
  environment |= {'JAX_PLATFORMS': 'cpu', 'XDG_CACHE_HOME': str(tmp_path / 'home'), **variables}
  done = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(RUN), str(place), end],
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert 'rror' not in done.stderr, done.stderr
  return done.stdout.split(), done.returncode


def entries(place):
  """Names of the entries of a cache that is used on this machine alone, and of its runs."""
  names = [path.name for path in place.rglob('*') if path.parent.parent == place]
  return [n for n in names if n.endswith('-cache')], [n for n in names if n.startswith('run-')]


def test_a_program_is_found_by_the_next_run_and_a_killed_run_leaves_nothing(tmp_path):
  place = tmp_path / 'programs'
  words, status = run(tmp_path, place, 'kill')
  assert (words, status) == (['True', 'False'], -signal.SIGKILL)
  assert entries(place)[0] == [] and len(entries(place)[1]) == 1
  assert run(tmp_path, place) == (['True', 'False'], 0)  # the killed one's is not trusted
  kept, runs = entries(place)
  assert kept and not runs
  assert run(tmp_path, place) == (['True', 'True'], 0)
  assert entries(place) == (kept, [])


@pytest.mark.parametrize(
  ('place', 'variables', 'words'),
  [
    ('default', {}, ['True', 'False']),
    ('off', {}, ['False', 'False']),
    ('default', {'JAX_ENABLE_COMPILATION_CACHE': 'false'}, ['False', 'False']),
    ('default', {'XDG_CACHE_HOME': '/proc/none'}, ['False', 'False']),
  ],
)
def test_whose_word_counts(tmp_path, place, variables, words):
  assert run(tmp_path, place, **variables) == (words, 0)
  kept = entries(tmp_path / 'home' / 'rest_jax' / 'programs')[0]
  assert bool(kept) == (words[0] == 'True')


def test_a_folder_of_jaxs_own_is_left_to_jax(tmp_path, restored):
  jax.config.update('jax_compilation_cache_dir', str(tmp_path))
  assert program_cache.use() is None
  assert jax.config.jax_compilation_cache_dir == str(tmp_path)


@pytest.fixture
def restored(monkeypatch):
  """JAX's settings as they were; what a run does at its end is for the test to call."""
  names = (
    'jax_compilation_cache_dir',
    'jax_enable_compilation_cache',
    'jax_persistent_cache_min_compile_time_secs',
    'jax_persistent_cache_enable_xla_caches',
  )
  before = {name: getattr(jax.config, name) for name in names}
  ends = []
  monkeypatch.setattr(program_cache.atexit, 'register', lambda *call: ends.append(call))
  monkeypatch.setattr(program_cache, '_RUNS', [])
  yield ends
  for name, value in before.items():
    jax.config.update(name, value)


def test_runs_side_by_side_keep_their_folders(tmp_path, restored):
  first = program_cache.use(str(tmp_path))
  (first / 'a-cache').write_bytes(b'a')
  program_cache._RUNS.clear()
  second = program_cache.use(str(tmp_path))
  assert first != second and first.exists() and not (second / 'a-cache').exists()
  for end, *arguments in restored:
    end(*arguments)
  assert entries(tmp_path) == (['a-cache'], [])
  program_cache._RUNS.clear()
  third = program_cache.use(str(tmp_path))
  assert (third / 'a-cache').read_bytes() == b'a'
  assert program_cache.use(str(tmp_path)) == third  # two commands in one process
  program_cache.leave()
  assert not jax.config.jax_enable_compilation_cache


def test_the_oldest_entries_go_where_it_grows_too_large(tmp_path, restored, monkeypatch):
  monkeypatch.setattr(program_cache, 'LARGEST', 10)
  folder = program_cache.use(str(tmp_path))
  for age, name in enumerate(['new-cache', 'old-cache', 'oldest-cache']):
    (folder / name).write_bytes(b'12345')
    os.utime(folder / name, (1000 - age, 1000 - age))
  ((end, *arguments),) = restored
  end(*arguments)
  assert sorted(entries(tmp_path)[0]) == ['new-cache', 'old-cache']


def test_where_there_are_no_links_entries_are_copied(tmp_path, restored, monkeypatch):
  def refuse(*_):
    raise PermissionError

  common = tmp_path / program_cache._machine()
  common.mkdir()
  (common / 'a-cache').write_bytes(b'a')
  monkeypatch.setattr(program_cache.os, 'link', refuse)
  folder = program_cache.use(str(tmp_path))
  assert (folder / 'a-cache').read_bytes() == b'a'


def test_a_place_that_cannot_be_written_is_named(tmp_path, restored):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match=r'file.*give another --compilation_cache, or off'):
    program_cache.use(str(tmp_path / 'file'))


def test_the_flag_is_taken_out_of_a_command_line():
  split = program_cache.split_flag
  assert split(['--a', '--compilation_cache', 'x', 'b']) == (['--a', 'b'], 'x')
  assert split(['-compilation_cache=x=y']) == ([], 'x=y')
  assert split(['--compilation', 'compilation_cache']) == (
    ['--compilation', 'compilation_cache'],
    None,
  )
  for words in (['--compilation_cache'], ['--compilation_cache='], ['--compilation_cache', '--b']):
    with pytest.raises(UserError, match='takes a folder, or off'):
      split(words)
  with pytest.raises(UserError, match='given 2 times'):
    split(['--compilation_cache=a', '--compilation_cache=b'])
